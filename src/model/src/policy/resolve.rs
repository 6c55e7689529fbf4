// SPDX-License-Identifier: Apache-2.0
//! From rules and known identities to what one endpoint allows.

use super::repository::Repository;
use super::rule::{Entity, ObjectRef, Origin, PortRule, Rule, Section};
use super::selector_cache::SelectorCache;
use crate::abi::{DIR_EGRESS, DIR_INGRESS, POLICY_BLOCK_RULES, POLICY_CHAIN, Reserved};
use crate::identity::NumericIdentity;
use crate::label::{Labels, Source};
use crate::selector::{NAMESPACE, Selector, SelectorSpec};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, LazyLock};

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

/// The rule that made an entry, by where it was written.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RuleRef(pub Arc<Origin>);

impl fmt::Display for RuleRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Stands for no written rule: the local host is allowed by the option `allow-localhost`.
static LOCALHOST: LazyLock<RuleRef> =
    LazyLock::new(|| RuleRef(Arc::new(Origin { file: "allow-localhost".into(), line: 0, index: 0, object: None })));

/// One line of a peer's list. Ports in host order, both included; ICMP: types.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Entry {
    pub lo: u16,
    pub hi: u16,
    /// IP protocol, 0 any.
    pub proto: u8,
    pub deny: bool,
    pub rule: RuleRef,
}

impl Entry {
    pub fn matches(&self, dport: u16, proto: u8) -> bool {
        (self.proto == 0 || self.proto == proto) && (self.lo..=self.hi).contains(&dport)
    }

    /// Whether everything that `other` matches is matched here.
    fn covers(&self, other: &Self) -> bool {
        (self.proto == 0 || self.proto == other.proto) && self.lo <= other.lo && other.hi <= self.hi
    }

    /// Deny first, narrow before wide; an entry never sorts behind one that covers it.
    fn order(&self) -> (bool, u16, bool, u16, u8) {
        (!self.deny, self.hi - self.lo, self.proto == 0, self.lo, self.proto)
    }
}

/// What one direction of an endpoint allows.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum DirectionPolicy {
    /// Not enforced.
    Open,
    /// Each peer's list is final: entries for any peer are merged in and the first match decides; no match is denied.
    /// Peers without a list have that of [`NumericIdentity::ANY`]; if there is none they are denied.
    Rules(BTreeMap<Peer, Vec<Entry>>),
}

/// Both directions; equal content compares and hashes equal.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct EndpointPolicy {
    pub ingress: Arc<DirectionPolicy>,
    pub egress: Arc<DirectionPolicy>,
}

impl EndpointPolicy {
    pub fn direction(&self, direction: Direction) -> &Arc<DirectionPolicy> {
        match direction {
            Direction::Egress => &self.egress,
            Direction::Ingress => &self.ingress,
        }
    }
}

/// Keys of the labels of a pod's namespace begin with it.
const NAMESPACE_LABELS: &str = "io.cilium.k8s.namespace.labels";

/// Confines a peer selector to the object's namespace, unless it says itself which namespaces it means or asks for a
/// fixed identity, which has none.
fn peer_selector(spec: &SelectorSpec, object: Option<&ObjectRef>) -> Selector {
    let free = spec.keys().any(|key| match key.source() {
        Some(Source::Reserved) => true,
        Some(Source::K8s | Source::Any) | None => key.key() == NAMESPACE || key.key().starts_with(NAMESPACE_LABELS),
        Some(_) => false,
    });
    match object.and_then(|o| o.namespace.as_deref()) {
        Some(namespace) if !free => spec.selector_within(namespace),
        _ => spec.selector(),
    }
}

#[derive(Clone, Debug)]
enum Peers {
    Any,
    Selected(Vec<Selector>),
}

#[derive(Clone, Debug)]
struct CompiledSection {
    deny: bool,
    peers: Peers,
    /// Low port, high port, protocol.
    spans: Vec<(u16, u16, u8)>,
}

impl CompiledSection {
    fn new(deny: bool, section: Section<'_>, object: Option<&ObjectRef>) -> Self {
        let endpoints = section.endpoints.unwrap_or_default().iter().map(|s| peer_selector(s, object));
        let mut selectors: Vec<Selector> = endpoints.collect();
        // A section without any peer list is about every peer if it names ports, and about nobody if it is empty.
        let mut any = section.endpoints.is_none() && section.entities.is_none() && !section.to_ports.is_empty();
        for entity in section.entities.unwrap_or_default() {
            match (entity, entity.reserved()) {
                (Entity::All, _) => any = true,
                (Entity::Cluster, _) => selectors.push(Selector::cluster()),
                (_, Some(reserved)) => selectors.push(Selector::reserved(reserved)),
                (_, None) => {}
            }
        }
        any |= selectors.iter().any(Selector::is_everything);
        let peers = if any { Peers::Any } else { Peers::Selected(selectors) };
        Self { deny, peers, spans: spans(section.to_ports) }
    }
}

fn spans(to_ports: &[PortRule]) -> Vec<(u16, u16, u8)> {
    if to_ports.is_empty() {
        return vec![(0, u16::MAX, 0)];
    }
    let ports = to_ports.iter().flat_map(|p| &p.ports);
    ports.flat_map(|p| p.protocol.numbers().iter().map(|n| (p.port.get(), p.end_port.unwrap_or(p.port).get(), *n))).collect()
}

/// A rule made ready for resolving, once, at import.
#[derive(Clone, Debug)]
pub(super) struct Compiled {
    pub subject: Selector,
    ingress: Vec<CompiledSection>,
    egress: Vec<CompiledSection>,
    rule: RuleRef,
}

impl Compiled {
    pub fn new(rule: &Rule) -> Self {
        let object = rule.origin.object.as_ref();
        let subject = match object.and_then(|o| o.namespace.as_deref()) {
            Some(namespace) => rule.endpoint_selector.selector_within(namespace),
            None => rule.endpoint_selector.selector(),
        };
        let ingress = rule.ingress.iter().map(|s| (false, s.parts())).chain(rule.ingress_deny.iter().map(|s| (true, s.parts())));
        let egress = rule.egress.iter().map(|s| (false, s.parts())).chain(rule.egress_deny.iter().map(|s| (true, s.parts())));
        Self {
            subject,
            ingress: ingress.map(|(deny, s)| CompiledSection::new(deny, s, object)).collect(),
            egress: egress.map(|(deny, s)| CompiledSection::new(deny, s, object)).collect(),
            rule: RuleRef(rule.origin.clone()),
        }
    }

    /// Selectors of peers.
    pub fn selectors(&self) -> impl Iterator<Item = &Selector> {
        self.ingress.iter().chain(&self.egress).flat_map(|s| match &s.peers {
            Peers::Any => &[][..],
            Peers::Selected(selectors) => selectors,
        })
    }

    fn sections(&self, direction: Direction) -> &[CompiledSection] {
        match direction {
            Direction::Egress => &self.egress,
            Direction::Ingress => &self.ingress,
        }
    }
}

/// What an endpoint with labels `subject` allows. `host_always`: where ingress is enforced, the local host may come in
/// whatever the rules say.
///
/// A peer selector without a `reserved:` key selects endpoints only, never host or world, whatever it excludes.
pub fn resolve(repo: &Repository, cache: &mut SelectorCache, subject: &Labels, mode: EnforcementMode, host_always: bool) -> EndpointPolicy {
    let selecting: Vec<&Compiled> = repo.compiled().map(|(_, c)| c).filter(|c| c.subject.matches(subject)).collect();
    let ingress = resolve_direction(&selecting, cache, Direction::Ingress, mode, host_always);
    let egress = resolve_direction(&selecting, cache, Direction::Egress, mode, false);
    EndpointPolicy { ingress: Arc::new(ingress), egress: Arc::new(egress) }
}

fn resolve_direction(
    rules: &[&Compiled],
    cache: &mut SelectorCache,
    direction: Direction,
    mode: EnforcementMode,
    host_always: bool,
) -> DirectionPolicy {
    let enforced = match mode {
        EnforcementMode::Never => false,
        EnforcementMode::Always => true,
        EnforcementMode::Default => rules.iter().any(|r| !r.sections(direction).is_empty()),
    };
    if !enforced {
        return DirectionPolicy::Open;
    }
    // Entries carry their place in the order of rules: of equal entries the first one written is named.
    let mut gathered: BTreeMap<Peer, Vec<(usize, Entry)>> = BTreeMap::new();
    for (seq, rule, section) in rules.iter().enumerate().flat_map(|(n, r)| r.sections(direction).iter().map(move |s| (n, &r.rule, s))) {
        let entry = |&(lo, hi, proto): &(u16, u16, u8)| (seq, Entry { lo, hi, proto, deny: section.deny, rule: rule.clone() });
        let mut add = |peer| gathered.entry(peer).or_default().extend(section.spans.iter().map(entry));
        match &section.peers {
            Peers::Any => add(Peer::ANY),
            Peers::Selected(selectors) => {
                for selector in selectors {
                    let named = selector.names_reserved();
                    cache.selections(selector).iter().filter(|id| named || id.is_endpoint()).for_each(|id| add(*id));
                }
            }
        }
    }
    let any = gathered.remove(&Peer::ANY).unwrap_or_default();
    let default = finish(any.clone());
    let mut lists: BTreeMap<Peer, Vec<Entry>> = BTreeMap::new();
    for (peer, own) in gathered {
        let list = finish([own, any.clone()].concat());
        if list != default {
            lists.insert(peer, list);
        }
    }
    if !default.is_empty() {
        lists.insert(Peer::ANY, default);
    }
    if host_always {
        let entry = Entry { lo: 0, hi: u16::MAX, proto: 0, deny: false, rule: LOCALHOST.clone() };
        lists.insert(Reserved::Host.into(), vec![entry]);
    }
    DirectionPolicy::Rules(lists)
}

/// Sorts into the order of evaluation and drops what an earlier entry keeps from ever being reached.
fn finish(mut entries: Vec<(usize, Entry)>) -> Vec<Entry> {
    entries.sort_by_key(|(seq, entry)| (entry.order(), *seq));
    let mut list: Vec<Entry> = Vec::with_capacity(entries.len());
    for (_, entry) in entries {
        if !list.iter().any(|earlier| earlier.covers(&entry)) {
            list.push(entry);
        }
    }
    if list.len() > (POLICY_BLOCK_RULES * POLICY_CHAIN) as usize { compact(list) } else { list }
}

/// Gives up naming the narrowest rule to need fewer entries: what a wider entry of the same verdict says anyway goes, and
/// overlapping or adjoining ranges become one. Deny still comes first, so verdicts stay the same.
fn compact(list: Vec<Entry>) -> Vec<Entry> {
    let redundant = |n: usize, e: &Entry| list[n + 1..].iter().any(|wider| wider.deny == e.deny && wider.covers(e));
    let mut kept: Vec<Entry> = list.iter().enumerate().filter(|(n, e)| !redundant(*n, e)).map(|(_, e)| e.clone()).collect();
    kept.sort_by_key(|e| (e.deny, e.proto, e.lo));
    let mut merged: Vec<Entry> = Vec::with_capacity(kept.len());
    for entry in kept {
        match merged.last_mut() {
            Some(last) if last.deny == entry.deny && last.proto == entry.proto && u32::from(entry.lo) <= u32::from(last.hi) + 1 => {
                last.hi = last.hi.max(entry.hi);
            }
            _ => merged.push(entry),
        }
    }
    merged.sort_by_key(Entry::order);
    merged
}
