// SPDX-License-Identifier: Apache-2.0
//! Policies of all endpoints, kept up to date: a change touches only what it concerns.

use super::block::{self, TooLarge};
use super::compile::Compiled;
use super::repository::{Repository, Revision, Stored};
use super::resolve::{Direction, DirectionPolicy, EndpointPolicy, EnforcementMode, L7Conflict, Peer, PeerPorts, Scope, Settings};
use super::rule::{ObjectRef, Rule};
use super::selector_cache::SelectorCache;
use super::tables::{PortNames, Services};
use crate::identity::{NumericIdentity, PrefixIdentities, TooManyPrefixes, reserved_labels};
use crate::label::Labels;
use crate::policy::postings::Postings;
use crate::prefix::Prefix;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use thiserror::Error;

/// Why rules were refused. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Refused {
    #[error("{direction} policy of endpoints with labels [{labels}]: {error}")]
    TooLarge { direction: Direction, labels: Labels, error: TooLarge },
    #[error("{direction} policy of endpoints with labels [{labels}]: {conflict}")]
    Conflict { direction: Direction, labels: Labels, conflict: L7Conflict },
    #[error(transparent)]
    Prefixes(#[from] TooManyPrefixes),
    #[error("{needed} blocks are needed for {policies} policies, the kernel's table has room for {room}")]
    Full { needed: usize, policies: usize, room: usize },
    #[error("{needed} rules are in use, the kernel's table has room for {room}")]
    Records { needed: usize, room: usize },
}

/// What the policies of all endpoints take in the kernel's tables.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Size {
    pub policies: usize,
    pub blocks: usize,
    /// Rules that policies are made of, and one for what is allowed by option.
    pub records: usize,
}

/// Room in the kernel's tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    pub blocks: usize,
    pub records: usize,
}

/// Whose policy it is: labels and names of ports. Endpoints that are equal in both share it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Subject {
    pub labels: Labels,
    pub ports: PortNames,
}

impl From<Labels> for Subject {
    fn from(labels: Labels) -> Self {
        Self { labels, ports: PortNames::new() }
    }
}

/// Number of a subject.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct SubjectId(u64);

#[derive(Clone, Debug)]
struct Row {
    subject: Arc<Subject>,
    references: u64,
    /// Rules that select it.
    rules: BTreeSet<u64>,
    groups: [GroupKey; 2],
}

/// Everything that a policy of one direction follows from besides the identities: who shares it shares the policy.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct GroupKey {
    direction: Direction,
    rules: Arc<[u64]>,
    /// Present if some rule names ports of the endpoint itself.
    ports: Option<Arc<Subject>>,
}

#[derive(Clone, Debug)]
struct Group {
    policy: Arc<DirectionPolicy>,
    blocks: Result<usize, TooLarge>,
    members: BTreeSet<SubjectId>,
}

/// Rules, identities and endpoints, and what follows from them.
#[derive(Clone, Debug, Default)]
pub struct Engine {
    repository: Repository,
    cache: SelectorCache,
    settings: Settings,
    rules: BTreeMap<u64, Arc<Compiled>>,
    subjects: BTreeMap<SubjectId, Row>,
    by_subject: HashMap<Arc<Subject>, SubjectId>,
    by_labels: Postings<SubjectId>,
    groups: HashMap<GroupKey, Group>,
    prefixes: PrefixIdentities,
    peer_ports: PeerPorts,
    next_subject: u64,
    /// Subjects whose policy changed since this was asked last.
    changed: BTreeSet<SubjectId>,
}

impl Engine {
    /// `host_always`: where ingress is enforced, the local host may come in whatever the rules say.
    pub fn new(mode: EnforcementMode, host_always: bool) -> Self {
        Self { settings: Settings { mode, host_always }, ..Self::default() }
    }

    /// With the rules that were known before a restart.
    ///
    /// # Errors
    /// Too many prefixes.
    pub fn restore(mode: EnforcementMode, host_always: bool, rules: Vec<Arc<Rule>>, revision: Revision) -> Result<Self, Refused> {
        let mut new = Self { repository: Repository::restore(rules, revision), ..Self::new(mode, host_always) };
        new.follow()?;
        Ok(new)
    }

    pub fn repository(&self) -> &Repository {
        &self.repository
    }
    pub fn mode(&self) -> EnforcementMode {
        self.settings.mode
    }
    /// Known identities, those of prefixes among them.
    pub fn identities(&self) -> impl Iterator<Item = (NumericIdentity, &Labels)> {
        self.cache.identities()
    }
    pub fn labels(&self, id: NumericIdentity) -> Option<&Labels> {
        self.cache.labels(id)
    }
    /// What the prefix table of the kernel has to hold. A prefix must be written after the policies that know its number, and
    /// removed after those that no longer name it, while they still know it: see [`Self::hold`].
    pub fn prefixes(&self) -> &PrefixIdentities {
        &self.prefixes
    }

    /// See [`PrefixIdentities::take_touched`].
    pub fn take_touched_prefixes(&mut self) -> BTreeSet<Prefix> {
        self.prefixes.take_touched()
    }

    /// Adds rules as [`Repository::import`] does. If an endpoint's policy would not fit or contradict itself, nothing is
    /// changed.
    ///
    /// # Errors
    /// As [`Refused`] says.
    pub fn import(&mut self, rules: Vec<Rule>, room: Option<Room>) -> Result<Revision, Refused> {
        let before = self.repository.clone();
        let revision = self.repository.import(rules);
        self.accept(before, room)?;
        Ok(revision)
    }

    /// Exactly these rules from now on.
    ///
    /// # Errors
    /// As [`Self::import`].
    pub fn replace(&mut self, rules: Vec<Arc<Rule>>, revision: Revision) -> Result<(), Refused> {
        let before = self.repository.clone();
        self.repository.replace(rules, revision);
        self.accept(before, None)
    }

    /// As [`Repository::delete_by_labels`]. What is left always fits: it did before, or is less.
    pub fn delete_by_labels(&mut self, labels: &Labels) -> (usize, Revision) {
        let answer = self.repository.delete_by_labels(labels);
        self.follow_less();
        answer
    }
    /// As [`Repository::delete_object`].
    pub fn delete_object(&mut self, object: &ObjectRef) -> (usize, Revision) {
        let answer = self.repository.delete_object(object);
        self.follow_less();
        answer
    }
    /// As [`Repository::delete_all`].
    pub fn delete_all(&mut self) -> (usize, Revision) {
        let answer = self.repository.delete_all();
        self.follow_less();
        answer
    }

    pub fn set_mode(&mut self, mode: EnforcementMode) {
        if self.settings.mode != mode {
            self.settings.mode = mode;
            self.again(&BTreeSet::new(), true);
        }
    }

    /// Gives the known services; rules that ask for some follow.
    ///
    /// # Errors
    /// Policies would not fit; the services stay as they were.
    pub fn set_services(&mut self, services: Services, room: Option<Room>) -> Result<(), Refused> {
        let before = self.repository.clone();
        self.repository.set_services(services);
        self.accept(before, room)
    }

    /// Keeps a prefix told apart even when no rule names it any more: its policies then say what its addresses inherit.
    /// As often as this was called, [`Self::let_go`] must be.
    pub fn hold(&mut self, prefix: Prefix) {
        if self.prefixes.lookup(prefix).is_some() {
            // It is there: there is room for it.
            let _ = self.prefixes.allocate(prefix);
        }
    }

    /// Tells the prefixes apart that rules name and nobody named before, and holds them: until the rules come, policies say
    /// about them what their addresses inherit.
    ///
    /// # Errors
    /// Too many prefixes; nothing is changed.
    pub fn announce(&mut self, rules: &[Rule]) -> Result<Vec<Prefix>, Refused> {
        let mut new = Vec::new();
        let named: BTreeSet<Prefix> = rules.iter().flat_map(|r| self.repository.prefixes_of(r)).collect();
        for prefix in named {
            if self.prefixes.lookup(prefix).is_some() {
                continue;
            }
            match self.prefixes.allocate(prefix) {
                Ok((id, _)) => {
                    new.push(prefix);
                    self.set_identity(id, Some(&PrefixIdentities::labels(prefix)));
                }
                Err(e) => {
                    new.into_iter().for_each(|prefix| self.let_go(prefix));
                    return Err(e.into());
                }
            }
        }
        Ok(new)
    }

    /// Forgets a prefix that was held, unless it is still named or held.
    pub fn let_go(&mut self, prefix: Prefix) {
        if let Some(id) = self.prefixes.release(prefix) {
            self.forget_prefix(id);
        }
    }

    fn forget_prefix(&mut self, id: NumericIdentity) {
        let fixed = id.reserved().map(reserved_labels);
        let touched = self.cache.update(id, fixed.as_ref());
        self.patch(&touched.users, &BTreeSet::from([id]));
    }

    /// Makes an identity known, changes its labels, or (without labels) forgets it. Fixed identities stay.
    pub fn set_identity(&mut self, id: NumericIdentity, labels: Option<&Labels>) {
        if labels.is_none() && id.is_reserved() {
            return;
        }
        let touched = self.cache.update(id, labels);
        let mut rules = touched.users;
        if labels.is_none() && self.peer_ports.remove(&id).is_some() {
            rules.extend(self.naming_ports());
        }
        self.patch(&rules, &BTreeSet::from([id]));
    }

    /// Names of ports that the endpoints of an identity have.
    pub fn set_peer_ports(&mut self, id: NumericIdentity, ports: PortNames) {
        let old = if ports.is_empty() { self.peer_ports.remove(&id) } else { self.peer_ports.insert(id, ports) };
        if old.as_ref() != self.peer_ports.get(&id) {
            let rules = self.naming_ports();
            self.patch(&rules, &BTreeSet::from([id]));
        }
    }

    fn naming_ports(&self) -> BTreeSet<u64> {
        let named = |c: &Compiled| c.parts(Direction::Egress).iter().any(|p| p.named);
        self.rules.iter().filter(|(_, c)| named(c)).map(|(seq, _)| *seq).collect()
    }

    /// Has an endpoint's policy kept, and gives it. As often as this was called, [`Self::remove_subject`] must be.
    pub fn add_subject(&mut self, subject: Subject) -> EndpointPolicy {
        let subject = Arc::new(subject);
        if let Some(row) = self.by_subject.get(&subject).and_then(|id| self.subjects.get_mut(id)) {
            row.references += 1;
        } else {
            let id = SubjectId(self.next_subject);
            self.next_subject += 1;
            let rules = self.selecting(&subject.labels);
            self.by_labels.insert(id, subject.labels.clone());
            self.by_subject.insert(Arc::clone(&subject), id);
            let groups = Direction::ALL.map(|direction| self.key(direction, &rules, &subject));
            for key in &groups {
                self.join(key.clone(), id, None);
            }
            self.subjects.insert(id, Row { subject: Arc::clone(&subject), references: 1, rules, groups });
            self.changed.insert(id);
        }
        self.policy(&subject).unwrap_or_else(EndpointPolicy::none)
    }

    pub fn remove_subject(&mut self, subject: &Subject) {
        let Some(&id) = self.by_subject.get(subject) else { return };
        let Some(row) = self.subjects.get_mut(&id) else { return };
        row.references -= 1;
        if row.references > 0 {
            return;
        }
        if let Some(row) = self.subjects.remove(&id) {
            row.groups.iter().for_each(|key| self.leave(key, id));
        }
        self.by_subject.remove(subject);
        self.by_labels.remove(id);
        self.changed.remove(&id);
    }

    /// Forgets every subject that is not kept, however often it was added.
    pub fn retain_subjects(&mut self, keep: impl Fn(&Subject) -> bool) {
        let gone: Vec<SubjectId> = self.subjects.iter().filter(|(_, row)| !keep(&row.subject)).map(|(id, _)| *id).collect();
        for id in gone {
            let Some(row) = self.subjects.get_mut(&id) else { continue };
            row.references = 1;
            let subject = Arc::clone(&row.subject);
            self.remove_subject(&subject);
        }
    }

    /// Policy of a subject that was added.
    pub fn policy(&self, subject: &Subject) -> Option<EndpointPolicy> {
        let row = self.by_subject.get(subject).and_then(|id| self.subjects.get(id))?;
        let of = |key: &GroupKey| self.groups.get(key).map(|g| Arc::clone(&g.policy));
        let [egress, ingress] = &row.groups;
        Some(EndpointPolicy { ingress: of(ingress)?, egress: of(egress)? })
    }

    /// The policy that a subject would have.
    pub(super) fn would_be(&self, subject: &Subject) -> EndpointPolicy {
        let rules = self.selecting(&subject.labels);
        let subject = Arc::new(subject.clone());
        let [egress, ingress] = Direction::ALL.map(|d| Arc::new(self.scope(&self.key(d, &rules, &subject)).policy()));
        EndpointPolicy { ingress, egress }
    }

    /// Every subject with its policy.
    pub fn policies(&self) -> impl Iterator<Item = (&Arc<Subject>, EndpointPolicy)> {
        self.subjects.values().filter_map(|row| Some((&row.subject, self.policy(&row.subject)?)))
    }

    /// Subjects whose policy changed since this was asked last.
    pub fn take_changed(&mut self) -> Vec<Arc<Subject>> {
        let changed = std::mem::take(&mut self.changed);
        changed.iter().filter_map(|id| self.subjects.get(id)).map(|row| Arc::clone(&row.subject)).collect()
    }

    /// What everything takes, counted without writing anything.
    ///
    /// # Errors
    /// A peer's list is too long.
    pub fn size(&self) -> Result<Size, Refused> {
        let mut size = Size::default();
        let mut rules: BTreeSet<u64> = BTreeSet::new();
        for (key, group) in &self.groups {
            let too_large = |error| Refused::TooLarge { direction: key.direction, labels: self.example(group), error };
            size.blocks += group.blocks.map_err(too_large)?;
            size.policies += usize::from(*group.policy != DirectionPolicy::Open);
            rules.extend(key.rules.iter());
        }
        size.records = rules.len() + 1;
        Ok(size)
    }

    fn example(&self, group: &Group) -> Labels {
        group.members.first().and_then(|id| self.subjects.get(id)).map(|row| row.subject.labels.clone()).unwrap_or_default()
    }

    /// Follows the repository, or takes everything back.
    fn accept(&mut self, before: Repository, room: Option<Room>) -> Result<(), Refused> {
        let changes = self.repository.take_changes();
        let result = self.apply(&changes.removed, &changes.added).and_then(|touched| self.check(&touched, room));
        if result.is_err() {
            // What the failed attempt did not reach is not undone twice: both are idempotent by number.
            self.undo(&changes.removed, &changes.added);
            self.repository = before;
            self.repository.take_changes();
        }
        result
    }

    fn follow(&mut self) -> Result<(), Refused> {
        let changes = self.repository.take_changes();
        self.apply(&changes.removed, &changes.added).map(drop)
    }

    fn follow_less(&mut self) {
        let changes = self.repository.take_changes();
        let mut subjects = BTreeSet::new();
        let mut peers = Affected { gone: self.uninstall(&changes.removed), ..Affected::default() };
        self.reselect(&changes.removed, &[], &mut subjects, &mut peers);
        self.regroup(&subjects, &peers);
    }

    fn undo(&mut self, removed: &[Stored], added: &[Stored]) {
        let installed: Vec<Stored> = added.iter().filter(|s| self.is_installed(s)).cloned().collect();
        let gone = self.uninstall(&installed);
        let missing: Vec<Stored> = removed.iter().filter(|s| !self.is_installed(s)).cloned().collect();
        // They fitted before.
        drop(self.install(&missing));
        self.settle(added, removed, gone);
    }

    /// Brings subjects and policies up to rules that were taken out and in.
    fn settle(&mut self, removed: &[Stored], added: &[Stored], gone: BTreeSet<NumericIdentity>) -> BTreeSet<SubjectId> {
        let remade: BTreeSet<u64> = added.iter().map(|s| s.seq).filter(|seq| removed.iter().any(|r| r.seq == *seq)).collect();
        if !remade.is_empty() {
            self.again(&remade, false);
        }
        let (mut subjects, mut peers) = (BTreeSet::new(), Affected { gone, ..Affected::default() });
        self.reselect(removed, added, &mut subjects, &mut peers);
        self.regroup(&subjects, &peers);
        subjects
    }

    fn is_installed(&self, stored: &Stored) -> bool {
        self.rules.get(&stored.seq).is_some_and(|c| Arc::ptr_eq(c, &stored.compiled))
    }

    /// Takes rules out and in. Gives the subjects concerned.
    fn apply(&mut self, removed: &[Stored], added: &[Stored]) -> Result<BTreeSet<SubjectId>, Refused> {
        // In first: a prefix that stays in use keeps its number. What is made anew under its old number goes out before.
        let numbers: BTreeSet<u64> = added.iter().map(|s| s.seq).collect();
        let (old, rest): (Vec<Stored>, Vec<Stored>) = removed.iter().cloned().partition(|r| numbers.contains(&r.seq));
        let mut gone = self.uninstall(&old);
        self.install(added)?;
        gone.extend(self.uninstall(&rest));
        Ok(self.settle(removed, added, gone))
    }

    fn install(&mut self, added: &[Stored]) -> Result<(), Refused> {
        for stored in added {
            let mut new = Vec::new();
            let mut taken = Vec::new();
            for prefix in stored.compiled.prefixes() {
                match self.prefixes.allocate(prefix) {
                    Ok((id, fresh)) => {
                        taken.push(prefix);
                        new.extend(fresh.then_some((prefix, id)));
                    }
                    Err(e) => {
                        for prefix in taken {
                            self.prefixes.release(prefix);
                        }
                        return Err(e.into());
                    }
                }
            }
            for (prefix, id) in new {
                self.set_identity(id, Some(&PrefixIdentities::labels(prefix)));
            }
            stored.compiled.selectors().for_each(|s| self.cache.acquire(s, stored.seq));
            self.rules.insert(stored.seq, Arc::clone(&stored.compiled));
        }
        Ok(())
    }

    /// Gives the identities that are no more.
    fn uninstall(&mut self, removed: &[Stored]) -> BTreeSet<NumericIdentity> {
        let mut all = BTreeSet::new();
        for stored in removed {
            let Some(compiled) = self.rules.remove(&stored.seq) else { continue };
            compiled.selectors().for_each(|s| self.cache.release(s, stored.seq));
            // While groups still name the rule, nothing may be patched through it.
            let gone: Vec<NumericIdentity> = compiled.prefixes().filter_map(|p| self.prefixes.release(p)).collect();
            for id in gone {
                self.forget_prefix(id);
                all.insert(id);
            }
        }
        all
    }

    /// Notes which subjects the rules select or selected, and which peers they speak about.
    fn reselect(&mut self, removed: &[Stored], added: &[Stored], subjects: &mut BTreeSet<SubjectId>, peers: &mut Affected) {
        for (stored, gone) in removed.iter().map(|s| (s, true)).chain(added.iter().map(|s| (s, false))) {
            for id in self.by_labels.select(&stored.compiled.subject) {
                let Some(row) = self.subjects.get_mut(&id) else { continue };
                let _ = if gone && !self.rules.contains_key(&stored.seq) {
                    row.rules.remove(&stored.seq)
                } else {
                    row.rules.insert(stored.seq)
                };
                subjects.insert(id);
                peers.rules.insert(stored.seq, Arc::clone(&stored.compiled));
            }
        }
    }

    /// Rules for endpoints with these labels.
    fn selecting(&self, labels: &Labels) -> BTreeSet<u64> {
        self.rules.iter().filter(|(_, c)| c.subject.matches(labels)).map(|(seq, _)| *seq).collect()
    }

    fn key(&self, direction: Direction, rules: &BTreeSet<u64>, subject: &Arc<Subject>) -> GroupKey {
        let speaking = |seq: &&u64| self.rules.get(seq).is_some_and(|c| c.speaks(direction));
        let rules: Arc<[u64]> = rules.iter().filter(speaking).copied().collect();
        let named = |seq: &u64| self.rules.get(seq).is_some_and(|c| c.parts(direction).iter().any(|p| p.named));
        let ports = direction == Direction::Ingress && !subject.ports.is_empty() && rules.iter().any(named);
        // Labels do not matter there.
        let ports = ports.then(|| Arc::new(Subject { labels: Labels::new(), ports: subject.ports.clone() }));
        GroupKey { direction, rules, ports }
    }

    fn scope<'a>(&'a self, key: &'a GroupKey) -> Scope<'a> {
        let rules: Vec<(u64, &Compiled)> = key.rules.iter().filter_map(|seq| Some((*seq, &**self.rules.get(seq)?))).collect();
        Scope::new(&rules, &self.cache, key.direction, self.settings, key.ports.as_ref().map(|s| &s.ports), &self.peer_ports)
    }

    /// Adds a subject to a group. A new one is made from `like`, which is right but for these peers, or from scratch.
    fn join(&mut self, key: GroupKey, id: SubjectId, like: Option<(&Arc<DirectionPolicy>, &BTreeSet<Peer>)>) {
        if let Some(group) = self.groups.get_mut(&key) {
            group.members.insert(id);
            return;
        }
        let policy = match like {
            Some((old, peers)) => self.scope(&key).patched(old, peers),
            None => self.scope(&key).policy(),
        };
        self.groups.insert(key, Group { blocks: block::count(&policy), policy: Arc::new(policy), members: BTreeSet::from([id]) });
    }

    fn leave(&mut self, key: &GroupKey, id: SubjectId) {
        if let Some(group) = self.groups.get_mut(key) {
            group.members.remove(&id);
            if group.members.is_empty() {
                self.groups.remove(key);
            }
        }
    }

    /// Moves subjects to the groups that their rules give now.
    fn regroup(&mut self, subjects: &BTreeSet<SubjectId>, affected: &Affected) {
        let peers = Direction::ALL.map(|direction| affected.peers(direction, &self.cache));
        for id in subjects {
            let Some(row) = self.subjects.get(id) else { continue };
            let (subject, old_keys) = (Arc::clone(&row.subject), row.groups.clone());
            let new_keys = Direction::ALL.map(|direction| self.key(direction, &row.rules, &subject));
            for ((old, new), peers) in old_keys.iter().zip(&new_keys).zip(&peers) {
                if old == new {
                    continue;
                }
                let before = self.groups.get(old).map(|g| Arc::clone(&g.policy));
                self.leave(old, *id);
                self.join(new.clone(), *id, before.as_ref().zip(peers.as_ref()));
                let after = self.groups.get(new).map(|g| &g.policy);
                if before.as_ref() != after {
                    self.changed.insert(*id);
                }
            }
            if let Some(row) = self.subjects.get_mut(id) {
                row.groups = new_keys;
            }
        }
    }

    /// Brings the lists of some peers up to date in every policy that these rules are part of.
    fn patch(&mut self, rules: &BTreeSet<u64>, peers: &BTreeSet<Peer>) {
        if !rules.is_empty() {
            self.redo(rules, Some(peers));
        }
    }

    /// Every policy that these rules are part of, or all, from scratch.
    fn again(&mut self, rules: &BTreeSet<u64>, all: bool) {
        if all {
            let keys: Vec<GroupKey> = self.groups.keys().cloned().collect();
            self.redo_groups(keys, None);
        } else {
            self.redo(rules, None);
        }
    }

    fn redo(&mut self, rules: &BTreeSet<u64>, peers: Option<&BTreeSet<Peer>>) {
        let concerned = |key: &&GroupKey| key.rules.iter().any(|seq| rules.contains(seq));
        let keys: Vec<GroupKey> = self.groups.keys().filter(concerned).cloned().collect();
        self.redo_groups(keys, peers);
    }

    fn redo_groups(&mut self, keys: Vec<GroupKey>, peers: Option<&BTreeSet<Peer>>) {
        for key in keys {
            let Some(group) = self.groups.get(&key) else { continue };
            let scope = self.scope(&key);
            let policy = peers.map_or_else(|| scope.policy(), |peers| scope.patched(&group.policy, peers));
            if policy != *group.policy
                && let Some(group) = self.groups.get_mut(&key)
            {
                group.blocks = block::count(&policy);
                group.policy = Arc::new(policy);
                self.changed.extend(&group.members);
            }
        }
    }

    /// Whether the policies of these subjects can be written.
    fn check(&self, touched: &BTreeSet<SubjectId>, room: Option<Room>) -> Result<(), Refused> {
        let mut seen = BTreeSet::new();
        for row in touched.iter().filter_map(|id| self.subjects.get(id)) {
            for key in &row.groups {
                let Some(group) = self.groups.get(key) else { continue };
                if !seen.insert(Arc::as_ptr(&group.policy)) {
                    continue;
                }
                let (direction, labels) = (key.direction, || row.subject.labels.clone());
                if let Some(conflict) = self.scope(key).conflict() {
                    return Err(Refused::Conflict { direction, labels: labels(), conflict });
                }
                group.blocks.map_err(|error| Refused::TooLarge { direction, labels: labels(), error })?;
            }
        }
        let Some(room) = room else { return Ok(()) };
        let size = self.size()?;
        if size.blocks > room.blocks {
            return Err(Refused::Full { needed: size.blocks, policies: size.policies, room: room.blocks });
        }
        if size.records > room.records {
            return Err(Refused::Records { needed: size.records, room: room.records });
        }
        Ok(())
    }
}

/// Rules that came or went.
#[derive(Default)]
struct Affected {
    rules: BTreeMap<u64, Arc<Compiled>>,
    /// Identities that went with them.
    gone: BTreeSet<NumericIdentity>,
}

impl Affected {
    /// Peers whose lists may differ; `None`: all.
    fn peers(&self, direction: Direction, cache: &SelectorCache) -> Option<BTreeSet<Peer>> {
        let mut peers = self.gone.clone();
        for part in self.rules.values().flat_map(|c| c.parts(direction)) {
            if matches!(part.peers, super::compile::Peers::Any) || !part.requires.is_empty() {
                return None;
            }
            for selector in part.selectors() {
                // What no other rule uses is registered no more.
                if !cache.knows(selector) {
                    peers.extend(cache.select(selector));
                } else {
                    peers.extend(cache.selected(selector));
                }
            }
        }
        Some(peers)
    }
}

/// Prefixes of rules that lie in what the cluster itself uses: their addresses have identities of their own, so that
/// these rules never match them. One line each.
pub fn shadowed<'a>(rules: impl IntoIterator<Item = &'a Rule>, ranges: &[Prefix]) -> Vec<String> {
    let mut out = Vec::new();
    for rule in rules {
        let sections = rule.ingress.iter().chain(&rule.ingress_deny).chain(&rule.egress).chain(&rule.egress_deny);
        let prefixes = sections.flat_map(|s| s.cidr.iter().flatten().chain(s.cidr_set.iter().flatten().map(|c| &c.cidr)));
        let unique: BTreeSet<&Prefix> = prefixes.collect();
        for prefix in unique {
            // Everything covers containers too, and nobody takes it for them.
            let covers = |range: &&Prefix| prefix.length() > 0 && (prefix.covers(**range) || range.covers(*prefix));
            if let Some(range) = ranges.iter().find(covers) {
                out.push(format!(
                    "{}: {prefix} covers addresses of containers ({range}): the rule will not match them; select them by their labels",
                    rule.origin
                ));
            }
        }
    }
    out
}
