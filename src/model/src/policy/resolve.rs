// SPDX-License-Identifier: Apache-2.0
//! From rules and known identities to what one endpoint allows.

use super::compile::{Compiled, Part, Peers};
use super::entry::{Action, Entry, LOCALHOST, RuleRef, finish};
use super::repository::Repository;
use super::selector_cache::SelectorCache;
use super::tables::PortNames;
use crate::abi::{DIR_EGRESS, DIR_INGRESS, Reserved};
use crate::identity::NumericIdentity;
use crate::label::Labels;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::sync::Arc;

/// When policy is enforced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EnforcementMode {
    /// In a direction for which some rule that selects the endpoint has a section.
    #[default]
    Default,
    /// Everywhere: what no rule allows is denied.
    Always,
    Never,
}

/// Seen from the endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Direction {
    Egress,
    Ingress,
}

impl Direction {
    pub const ALL: [Self; 2] = [Self::Egress, Self::Ingress];

    /// `DIR_*` of the shared shapes.
    pub const fn raw(self) -> u8 {
        match self {
            Self::Egress => DIR_EGRESS,
            Self::Ingress => DIR_INGRESS,
        }
    }
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Egress => "egress",
            Self::Ingress => "ingress",
        }
    }
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The other side: its identity, or [`NumericIdentity::ANY`].
pub type Peer = NumericIdentity;

/// What one direction of an endpoint allows.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum DirectionPolicy {
    /// Not enforced.
    Open,
    /// Each peer's list is final: entries for any peer are merged in and the first match decides; no match is denied.
    /// Peers without a list have that of [`NumericIdentity::ANY`]; if there is none they are denied. An empty list denies.
    Rules(BTreeMap<Peer, Arc<[Entry]>>),
}

impl DirectionPolicy {
    /// Nobody is allowed.
    pub fn none() -> Self {
        Self::Rules(BTreeMap::new())
    }
}

/// Both directions; equal content compares and hashes equal.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct EndpointPolicy {
    pub ingress: Arc<DirectionPolicy>,
    pub egress: Arc<DirectionPolicy>,
}

impl EndpointPolicy {
    /// Nobody is allowed.
    pub fn none() -> Self {
        Self { ingress: Arc::new(DirectionPolicy::none()), egress: Arc::new(DirectionPolicy::none()) }
    }

    pub fn direction(&self, direction: Direction) -> &Arc<DirectionPolicy> {
        match direction {
            Direction::Egress => &self.egress,
            Direction::Ingress => &self.ingress,
        }
    }
}

/// Names of ports by the identity whose endpoints have them.
pub(super) type PeerPorts = BTreeMap<NumericIdentity, PortNames>;

/// What an endpoint with labels `subject` allows. `host_always`: where ingress is enforced, the local host may come in
/// whatever the rules say. Named ports are unknown here.
pub fn resolve(repo: &Repository, cache: &mut SelectorCache, subject: &Labels, mode: EnforcementMode, host_always: bool) -> EndpointPolicy {
    let selecting: Vec<(u64, &Compiled)> = repo.compiled().filter(|(_, c)| c.subject.matches(subject)).collect();
    for selector in selecting.iter().flat_map(|(_, c)| c.selectors()) {
        cache.selections(selector);
    }
    let settings = Settings { mode, host_always };
    let one = |direction| Arc::new(Scope::new(&selecting, cache, direction, settings, None, &BTreeMap::new()).policy());
    EndpointPolicy { ingress: one(Direction::Ingress), egress: one(Direction::Egress) }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Settings {
    pub mode: EnforcementMode,
    pub host_always: bool,
}

/// One section of one rule. `seq` is the place of its rule.
struct Item<'a> {
    seq: u64,
    rule: &'a RuleRef,
    part: &'a Part,
    /// Whom its selectors select; none if it is about every peer.
    selected: Vec<&'a BTreeSet<Peer>>,
}

/// Lists by the sections that they come from and the requirement that is not met. Most peers have one of few.
type Memo = HashMap<(Vec<usize>, Option<usize>), Arc<[Entry]>>;

/// Everything that one direction of an endpoint's policy follows from.
pub(super) struct Scope<'a> {
    items: Vec<Item<'a>>,
    cache: &'a SelectorCache,
    direction: Direction,
    settings: Settings,
    /// Of the endpoint itself.
    names: Option<&'a PortNames>,
    peer_names: &'a PeerPorts,
    open: bool,
    /// Entries that every peer has.
    any: Vec<(u64, Entry)>,
    /// Sections about every peer whose ports depend on the peer.
    any_named: Vec<usize>,
    requires: Vec<usize>,
    default: Arc<[Entry]>,
}

impl<'a> Scope<'a> {
    /// `rules` select the endpoint; in order. Their selectors are registered.
    pub fn new(
        rules: &[(u64, &'a Compiled)],
        cache: &'a SelectorCache,
        direction: Direction,
        settings: Settings,
        names: Option<&'a PortNames>,
        peer_names: &'a PeerPorts,
    ) -> Self {
        let item = |(seq, c): &(u64, &'a Compiled)| {
            let (seq, c) = (*seq, *c);
            c.parts(direction).iter().map(move |part| {
                let selected = match &part.peers {
                    Peers::Any => Vec::new(),
                    Peers::Selected(selectors) => selectors.iter().map(|s| cache.selected(s)).collect(),
                };
                Item { seq, rule: &c.rule, part, selected }
            })
        };
        let items: Vec<Item<'a>> = rules.iter().flat_map(item).collect();
        let enforced = match settings.mode {
            EnforcementMode::Never => false,
            EnforcementMode::Always => true,
            EnforcementMode::Default => rules.iter().any(|(_, c)| c.default_deny(direction)),
        };
        let restricts = |i: &Item<'_>| i.part.action == Action::Deny || !i.part.requires.is_empty() || i.part.l7_kinds().next().is_some();
        let first = items.first().filter(|_| settings.mode != EnforcementMode::Never && !enforced && items.iter().any(restricts));
        let wildcard = first.map(|i| (u64::MAX, Entry::everything(Action::Allow, i.rule.clone())));
        let mut new = Self {
            cache,
            direction,
            settings,
            names,
            peer_names,
            open: !enforced && wildcard.is_none(),
            any: wildcard.into_iter().collect(),
            any_named: Vec::new(),
            requires: Vec::new(),
            default: Arc::new([]),
            items,
        };
        for (n, item) in new.items.iter().enumerate() {
            if matches!(item.part.peers, Peers::Any) {
                if item.part.named && direction == Direction::Egress {
                    new.any_named.push(n);
                }
                // Without names, only numbers are entered.
                new.any.extend(item.part.entries(item.rule, names_of(direction, names, None)).into_iter().map(|e| (item.seq, e)));
            }
            if !item.part.requires.is_empty() {
                new.requires.push(n);
            }
        }
        new.default = match new.requires.first() {
            Some(n) => new.unmet_list(*n),
            None => finish(new.any.clone()),
        };
        new
    }

    fn unmet_list(&self, n: usize) -> Arc<[Entry]> {
        Arc::new([Entry::everything(Action::Deny, self.items[n].rule.clone())])
    }

    /// The first requirement that a peer does not meet.
    fn unmet(&self, peer: Peer) -> Option<usize> {
        let met = |n: &usize| self.items[*n].part.requires.iter().all(|s| self.cache.selected(s).contains(&peer));
        self.requires.iter().copied().find(|n| !met(n))
    }

    /// A peer's list. `mine`: sections that select it.
    fn list(&self, peer: Peer, mine: &[usize]) -> Arc<[Entry]> {
        if let Some(n) = self.unmet(peer) {
            return self.unmet_list(n);
        }
        let names = names_of(self.direction, self.names, self.peer_names.get(&peer));
        let mut entries = self.any.clone();
        for n in mine.iter().chain(&self.any_named) {
            let item = &self.items[*n];
            entries.extend(item.part.entries(item.rule, names).into_iter().map(|e| (item.seq, e)));
        }
        finish(entries)
    }

    /// Everything from scratch.
    pub fn policy(&self) -> DirectionPolicy {
        if self.open {
            return DirectionPolicy::Open;
        }
        let mut gathered: BTreeMap<Peer, Vec<usize>> = BTreeMap::new();
        for (n, item) in self.items.iter().enumerate() {
            for peer in item.selected.iter().copied().flatten() {
                let mine = gathered.entry(*peer).or_default();
                if mine.last() != Some(&n) {
                    mine.push(n);
                }
            }
        }
        let met = self.requires.first().and_then(|n| self.items[*n].part.requires.first()).map(|s| self.cache.selected(s));
        for peer in met.into_iter().flatten() {
            gathered.entry(*peer).or_default();
        }
        if !self.any_named.is_empty() {
            for peer in self.peer_names.keys().filter(|id| id.is_endpoint()) {
                gathered.entry(*peer).or_default();
            }
        }
        let (mut memo, mut lists) = (Memo::new(), BTreeMap::new());
        for (peer, mine) in gathered {
            let list = self.remembered(&mut memo, peer, mine);
            if list != self.default {
                lists.insert(peer, list);
            }
        }
        self.finished(lists)
    }

    /// As [`Self::list`], made once where peers cannot differ.
    fn remembered(&self, memo: &mut Memo, peer: Peer, mine: Vec<usize>) -> Arc<[Entry]> {
        let named = !self.any_named.is_empty() || mine.iter().any(|n| self.items[*n].part.named);
        if named && self.direction == Direction::Egress {
            return self.list(peer, &mine);
        }
        Arc::clone(memo.entry((mine, self.unmet(peer))).or_insert_with_key(|(mine, _)| self.list(peer, mine)))
    }

    fn finished(&self, mut lists: BTreeMap<Peer, Arc<[Entry]>>) -> DirectionPolicy {
        if self.default.is_empty() {
            lists.remove(&Peer::ANY);
        } else {
            lists.insert(Peer::ANY, Arc::clone(&self.default));
        }
        if self.settings.host_always && self.direction == Direction::Ingress {
            lists.insert(Reserved::Host.into(), Arc::new([Entry::everything(Action::Allow, LOCALHOST.clone())]));
        }
        DirectionPolicy::Rules(lists)
    }

    /// The same as [`Self::policy`], if `old` was right but for these peers.
    pub fn patched(&self, old: &DirectionPolicy, peers: &BTreeSet<Peer>) -> DirectionPolicy {
        let DirectionPolicy::Rules(lists) = old else { return self.policy() };
        let default = lists.get(&Peer::ANY).map_or(&[][..], |list| list);
        if self.open || !self.requires.is_empty() || *default != *self.default {
            return self.policy();
        }
        let (mut memo, mut lists) = (Memo::new(), lists.clone());
        for peer in peers {
            let selects = |item: &Item<'_>| item.selected.iter().any(|ids| ids.contains(peer));
            let mine: Vec<usize> = self.items.iter().enumerate().filter(|(_, i)| selects(i)).map(|(n, _)| n).collect();
            let named = !self.any_named.is_empty() && peer.is_endpoint();
            let list = if !mine.is_empty() || named { self.remembered(&mut memo, *peer, mine) } else { Arc::clone(&self.default) };
            if list == self.default {
                lists.remove(peer);
            } else {
                lists.insert(*peer, list);
            }
        }
        self.finished(lists)
    }

    /// Two rules that want different proxies on one port.
    pub fn conflict(&self) -> Option<L7Conflict> {
        let mut seen: BTreeMap<(String, u8), (&'static str, &RuleRef)> = BTreeMap::new();
        for item in &self.items {
            for (port, proto, kind) in item.part.l7_kinds() {
                let (known, rule) = *seen.entry((port.clone(), proto)).or_insert((kind, item.rule));
                if known != kind {
                    return Some(L7Conflict { port, kinds: [known, kind], rules: [rule.clone(), item.rule.clone()] });
                }
            }
        }
        None
    }
}

/// Whose names are meant: those of the destination.
fn names_of<'n>(direction: Direction, own: Option<&'n PortNames>, peer: Option<&'n PortNames>) -> Option<&'n PortNames> {
    match direction {
        Direction::Ingress => own,
        Direction::Egress => peer,
    }
}

/// Two rules that want different proxies on one port.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("port {port} cannot have {} rules ({}) and {} rules ({})", kinds[0], rules[0], kinds[1], rules[1])]
pub struct L7Conflict {
    pub port: String,
    pub kinds: [&'static str; 2],
    pub rules: [RuleRef; 2],
}
