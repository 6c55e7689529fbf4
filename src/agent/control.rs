// SPDX-License-Identifier: Apache-2.0
//! The control loop: the one task that writes desired state.

mod change;
mod numbers;
mod outside;
#[cfg(test)]
mod tests;

pub use change::{Change, Planned};
pub use outside::{Announced, Known};

use crate::ipam::{Ipam, IpamError, Wish};
use crate::reconcile::{Status, Statuses};
use crate::state::*;
use crate::table::{Reader, Revision, Writer, table};
use pilus_api::types::LogEntry;
use pilus_model::abi::{self, POLICY_OPEN, RULE_RECORDS, Reserved};
use pilus_model::endpoint::{EndpointId, EndpointRef, EndpointState};
use pilus_model::identity::{IdentityAllocator, NumericIdentity, reserved_identities};
use pilus_model::label::{Labels, Source};
use pilus_model::policy::{self, Direction, EnforcementMode, Engine, PortNames, Room, Rule, Service, ServiceName, Services};
use pilus_model::prefix::Prefix;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::sync::Arc;
use tokio::sync::{mpsc, oneshot};

/// Why a request was refused. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    #[error("no endpoint {0}")]
    NotFound(EndpointRef),
    #[error("endpoint name {name} is taken by endpoint {by} in {netns}; delete that one first or choose another name", netns = netns.display())]
    NameTaken { name: String, by: EndpointId, netns: PathBuf },
    #[error("network namespace {netns} already has interface {ifname} of endpoint {by}", netns = netns.display())]
    InterfaceTaken { netns: PathBuf, ifname: String, by: EndpointId },
    #[error(transparent)]
    Ipam(#[from] IpamError),
    #[error("identities: {0}")]
    Identity(String),
    #[error("labels: {0}")]
    Labels(String),
    #[error("{0}; nothing was imported")]
    TooLarge(String),
    #[error("{0}; nothing was changed")]
    Refused(String),
    #[error("address {ip} belongs to node {by}; take it from that one first")]
    AddressTaken { ip: IpAddr, by: String },
    /// What is in the way is deleted, and soon gone.
    #[error(transparent)]
    Leaving(Box<ControlError>),
    #[error("the agent is stopping")]
    Stopping,
}

/// A new endpoint, everything parsed.
#[derive(Clone, Debug)]
pub struct AddEndpoint {
    pub name: String,
    pub container_id: Option<String>,
    pub netns: PathBuf,
    pub ifname: String,
    pub labels: Labels,
    pub ipv6: Option<Ipv6Addr>,
    pub ipv4: Wish<Ipv4Addr>,
    pub ipv4_alone: bool,
    pub mac: Option<[u8; 6]>,
    pub mtu: Option<u16>,
    pub own: Option<bool>,
    pub ports: PortNames,
}

/// What an accepted request gives: the endpoint and the table revision that holds the change.
#[derive(Clone, Debug)]
pub struct Accepted {
    pub record: Arc<EndpointRecord>,
    pub revision: Revision,
    /// The same for the table of addresses.
    pub ipcache: Revision,
    /// The endpoint was there before, as asked.
    pub existed: bool,
}

pub type Reply<T> = oneshot::Sender<Result<T, ControlError>>;

/// Everything that changes desired state.
pub enum Event {
    Add(AddEndpoint, Reply<Accepted>),
    /// At once, whether or not the disk follows.
    Delete(EndpointRef, Reply<Option<EndpointId>>),
    /// Every plan is ended by `Close`, made or not.
    Plan {
        endpoint: EndpointRef,
        change: Change,
        reply: Reply<Planned>,
    },
    Make(EndpointId, Reply<Accepted>),
    Close(EndpointId, Reply<()>),
    Regenerate(Option<EndpointRef>, Reply<Revision>),
    /// Rules that are to come: their prefixes are told apart first, so that no address is judged by half of an import.
    Announce(Vec<Rule>, Reply<Announced>),
    /// Ends an announcement: the rules came, or were refused.
    Unannounce(Vec<Prefix>, Reply<()>),
    Import(Vec<Rule>, Reply<RuleSet>),
    /// Back to rules that are on disk: a change of them could not be kept.
    RestoreRules(RuleSet, Reply<()>),
    /// `None`: all rules.
    DeletePolicy(Option<Labels>, Reply<(usize, RuleSet)>),
    /// The mode, and whether every endpoint only reports. Followed as of a revision of the endpoints.
    Enforcement(EnforcementMode, bool, Reply<Revision>),
    /// `None`: it is no more.
    Service(ServiceName, Option<Service>, Reply<Known<Service>>),
    /// Another node; `None`: it is no more.
    Node(String, Option<NodeRecord>, Reply<Known<NodeRecord>>),
    /// A copy of the engine, to ask it.
    Engine(Reply<Box<Engine>>),
    /// A template tree that was checked is the one to run from now on.
    Tree(Arc<str>, Reply<Revision>),
    HostAddresses(Vec<IpAddr>),
    ReserveAddress(Option<Ipv6Addr>, Wish<Ipv4Addr>, Reply<(Option<Ipv6Addr>, Option<Ipv4Addr>)>),
    ReserveExact(IpAddr, Reply<(Option<Ipv6Addr>, Option<Ipv4Addr>)>),
    ReleaseAddress(IpAddr, Reply<()>),
}

/// What the loop starts from.
pub struct Initial {
    pub records: Vec<EndpointRecord>,
    pub rules: RuleSet,
    pub services: Services,
    pub nodes: BTreeMap<String, NodeRecord>,
    /// First policy id that no row or block of the kernel uses.
    pub first_policy: u32,
    pub tree: Arc<str>,
    pub ipam: Ipam,
    pub mode: EnforcementMode,
    pub host_always: bool,
    /// Every endpoint only reports.
    pub audit: bool,
    pub own: bool,
    pub mtu: u16,
    /// Whether packets are translated for containers without IPv4.
    pub nat46: bool,
    /// Node prefixes: what no endpoint has of them belongs to nobody.
    pub ranges: Vec<IpcachePrefix>,
}

/// Readers of everything that the loop writes.
#[derive(Clone)]
pub struct Readers {
    pub endpoints: Reader<EndpointId, EndpointSpec>,
    /// Deleted, and not yet gone from the kernel: until then nobody gets what is theirs.
    pub leaving: Reader<EndpointId, Arc<EndpointRecord>>,
    /// Endpoints as they are about to be; `None`: removed.
    pub planned: Reader<EndpointId, Option<Arc<EndpointRecord>>>,
    pub policies: Reader<u32, PolicySpec>,
    pub ipcache: Reader<IpcachePrefix, IpcacheSpec>,
    pub identities: Reader<NumericIdentity, Arc<Labels>>,
    pub rules: Reader<(), RuleSet>,
    pub settled: Reader<(), Settled>,
    pub services: Reader<ServiceName, Service>,
    pub nodes: Reader<String, NodeRecord>,
    pub status: Reader<EndpointId, EndpointStatus>,
}

const LOG_ENTRIES: usize = 32;

/// Old blocks stay until no endpoint uses them: new ones must fit beside them.
pub fn room() -> Room {
    let blocks = abi::MAPS.iter().find(|m| m.name == abi::map::POLICY).map_or(0, |m| m.max_entries as usize / 2);
    Room { blocks, records: RULE_RECORDS as usize - 1 }
}

/// The engine with the rules of before. If they cannot be taken, nothing passes.
fn restored(mode: EnforcementMode, host_always: bool, rules: &RuleSet) -> Engine {
    Engine::restore(mode, host_always, (*rules.rules).clone(), policy::Revision(rules.revision)).unwrap_or_else(|e| {
        tracing::error!(error = %e, "rules of before cannot be taken; everything is denied");
        Engine::new(EnforcementMode::Always, host_always)
    })
}

/// Answers a request once the tables are settled.
type Answer = Box<dyn FnOnce(&World) + Send>;

pub struct World {
    engine: Engine,
    identities: IdentityAllocator,
    ipam: Ipam,
    own: bool,
    audit: bool,
    mtu: u16,
    nat46: bool,
    tree: Arc<str>,
    policy_numbers: numbers::PolicyNumbers,
    host: BTreeSet<IpAddr>,
    outside: outside::Outside,
    /// The node's own, in which rules about prefixes match nothing.
    ranges: Vec<Prefix>,
    wanted: BTreeMap<EndpointId, Revision>,
    pending: BTreeMap<EndpointId, change::Pending>,
    /// Rules, identities or endpoints changed since the last `settle`.
    dirty: bool,
    endpoints: Writer<EndpointId, EndpointSpec>,
    leaving: Writer<EndpointId, Arc<EndpointRecord>>,
    planned: Writer<EndpointId, Option<Arc<EndpointRecord>>>,
    policies: Writer<u32, PolicySpec>,
    ipcache: Writer<IpcachePrefix, IpcacheSpec>,
    identity_table: Writer<NumericIdentity, Arc<Labels>>,
    rules: Writer<(), RuleSet>,
    settled: Writer<(), Settled>,
    services: Writer<ServiceName, Service>,
    nodes: Writer<String, NodeRecord>,
    status: Writer<EndpointId, EndpointStatus>,
}

impl World {
    /// Restores what was: after this the tables are complete, so reconcilers may prune.
    pub fn new(initial: Initial) -> (Self, Readers) {
        let (endpoints, r_endpoints) = table();
        let (leaving, r_leaving) = table();
        let (planned, r_planned) = table();
        let (policies, r_policies) = table();
        let (ipcache, r_ipcache) = table();
        let (identity_table, r_identities) = table();
        let (rules, r_rules) = table();
        let (settled, r_settled) = table();
        let (services, r_services) = table();
        let (nodes, r_nodes) = table();
        let (status, r_status) = table();
        let readers = Readers {
            endpoints: r_endpoints,
            leaving: r_leaving,
            planned: r_planned,
            policies: r_policies,
            ipcache: r_ipcache,
            identities: r_identities,
            rules: r_rules,
            settled: r_settled,
            services: r_services,
            nodes: r_nodes,
            status: r_status,
        };
        let mut world = Self {
            engine: restored(initial.mode, initial.host_always, &initial.rules),
            identities: IdentityAllocator::new(),
            ipam: initial.ipam,
            own: initial.own,
            audit: initial.audit,
            mtu: initial.mtu,
            nat46: initial.nat46,
            tree: initial.tree,
            policy_numbers: numbers::PolicyNumbers::new(initial.first_policy),
            host: BTreeSet::new(),
            outside: outside::Outside::default(),
            ranges: initial.ranges.iter().filter_map(|r| Prefix::new(r.ip, r.len).ok()).collect(),
            wanted: BTreeMap::new(),
            pending: BTreeMap::new(),
            dirty: true,
            endpoints,
            leaving,
            planned,
            policies,
            ipcache,
            identity_table,
            rules,
            settled,
            services,
            nodes,
            status,
        };
        for identity in reserved_identities() {
            world.identity_table.upsert(identity.id, identity.labels);
        }
        for range in initial.ranges {
            world.ipcache.upsert(range, IpcacheSpec { identity: Reserved::Unknown.into(), slot: 0, after: Revision::default() });
        }
        world.rules.upsert((), initial.rules);
        for (name, service) in initial.services {
            if let Err(e) = world.set_service(name.clone(), Some(service)) {
                tracing::error!(namespace = name.0, service = name.1, error = %e, "service of before is not known");
            }
        }
        for (name, node) in initial.nodes {
            if let Err(e) = world.set_node(name.clone(), Some(node)) {
                tracing::error!(node = name, error = %e, "node of before is not known");
            }
        }
        // None is given what another has.
        initial.records.iter().for_each(|r| world.ipam.restore(r.id.0, r.ipv6, r.any_ipv4()));
        for record in initial.records {
            world.restore(record);
        }
        world.settle();
        world.endpoints.set_initialised();
        world.policies.set_initialised();
        world.ipcache.set_initialised();
        world.identity_table.set_initialised();
        world.rules.set_initialised();
        world.services.set_initialised();
        world.nodes.set_initialised();
        (world, readers)
    }

    fn restore(&mut self, mut record: EndpointRecord) {
        if let Err(e) = self.identities.restore(record.identity, &record.labels) {
            tracing::warn!(endpoint = %record.id, error = %e, "identity changed over the restart");
            match self.identities.allocate(&record.labels) {
                Ok((id, _)) => record.identity = id,
                Err(e) => tracing::error!(endpoint = %record.id, error = %e, "no identity"),
            }
        }
        self.give_nat46(&mut record);
        let id = record.id;
        self.learn_identity(record.identity, &record.labels);
        self.status.upsert(
            id,
            EndpointStatus {
                state: EndpointState::Restoring,
                problem: None,
                ingress: PolicyMode::Open,
                egress: PolicyMode::Open,
                log: Arc::default(),
            },
        );
        self.put(Arc::new(record), 0);
    }

    /// Runs until every sender is gone. The statuses tell how far the kernel is.
    pub async fn run(
        mut self,
        mut events: mpsc::Receiver<Event>,
        mut statuses: Statuses<EndpointId>,
        mut addresses: Statuses<IpcachePrefix>,
    ) {
        loop {
            tokio::select! {
                event = events.recv() => {
                    let Some(event) = event else { return };
                    if statuses.has_changed().unwrap_or_default() {
                        self.see(&mut statuses, &mut addresses);
                    }
                    let mut after = self.apply(event);
                    // What is queued already is resolved together.
                    while let Ok(event) = events.try_recv() {
                        after.extend(self.apply(event));
                    }
                    self.settle();
                    after.into_iter().for_each(|answer| answer(&self));
                }
                changed = statuses.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    self.see(&mut statuses, &mut addresses);
                }
                changed = addresses.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    self.see(&mut statuses, &mut addresses);
                }
            }
        }
    }

    /// Applies one event. What it returns is called after the tables are settled, to answer.
    fn apply(&mut self, event: Event) -> Vec<Answer> {
        let mut after: Vec<Answer> = Vec::new();
        match event {
            Event::Add(add, reply) => match self.add(add) {
                Ok((record, existed)) => after.push(Box::new(move |w| w.accept(record.id, existed, reply))),
                Err(e) => drop(reply.send(Err(self.in_the_way(e)))),
            },
            Event::Delete(endpoint, reply) => {
                let id = self.find(&endpoint).map(|r| r.id);
                if let Some(id) = id {
                    self.delete(id);
                }
                after.push(Box::new(move |_| drop(reply.send(Ok(id)))));
            }
            Event::Plan { endpoint, change, reply } => after.extend(self.plan(endpoint, change, reply)),
            Event::Make(id, reply) => after.extend(self.make(id, reply)),
            Event::Close(id, reply) => {
                after.extend(self.close(id));
                after.push(Box::new(move |_| drop(reply.send(Ok(())))));
            }
            Event::Regenerate(endpoint, reply) => {
                let all = self.endpoints.rows();
                let ids: Vec<EndpointId> = match &endpoint {
                    Some(e) => self.find(e).map(|r| r.id).into_iter().collect(),
                    None => all.keys().copied().collect(),
                };
                if ids.is_empty()
                    && let Some(endpoint) = endpoint
                {
                    drop(reply.send(Err(ControlError::NotFound(endpoint))));
                } else {
                    for id in ids {
                        let next = all[&id].regeneration + 1;
                        self.put(Arc::clone(&all[&id].record), next);
                    }
                    after.push(Box::new(move |w| drop(reply.send(Ok(w.endpoints.reader().snapshot().revision)))));
                }
            }
            Event::Announce(rules, reply) => match self.engine.announce(&rules) {
                Ok(prefixes) => {
                    self.dirty |= !prefixes.is_empty();
                    after.push(Box::new(move |w| {
                        drop(reply.send(Ok(Announced { prefixes, endpoints: w.endpoints.reader().snapshot().revision })));
                    }));
                }
                Err(e) => drop(reply.send(Err(ControlError::TooLarge(e.to_string())))),
            },
            Event::Unannounce(prefixes, reply) => {
                self.dirty |= !prefixes.is_empty();
                prefixes.into_iter().for_each(|prefix| self.engine.let_go(prefix));
                drop(reply.send(Ok(())));
            }
            Event::Import(rules, reply) => {
                if let Err(e) = self.engine.import(rules, Some(room())) {
                    drop(reply.send(Err(ControlError::TooLarge(e.to_string()))));
                    return after;
                }
                self.publish_rules();
                after.push(Box::new(move |w| drop(reply.send(Ok(w.rules.rows()[&()].clone())))));
            }
            Event::RestoreRules(set, reply) => {
                if let Err(e) = self.engine.replace((*set.rules).clone(), policy::Revision(set.revision)) {
                    drop(reply.send(Err(ControlError::TooLarge(e.to_string()))));
                    return after;
                }
                self.publish_rules();
                after.push(Box::new(move |_| drop(reply.send(Ok(())))));
            }
            Event::DeletePolicy(labels, reply) => {
                let (count, _) = match labels {
                    Some(labels) => self.engine.delete_by_labels(&labels),
                    None => self.engine.delete_all(),
                };
                self.publish_rules();
                after.push(Box::new(move |w| drop(reply.send(Ok((count, w.rules.rows()[&()].clone()))))));
            }
            Event::Enforcement(mode, audit, reply) => {
                self.engine.set_mode(mode);
                self.audit = audit;
                self.dirty = true;
                after.push(Box::new(move |w| drop(reply.send(Ok(w.endpoints.reader().snapshot().revision)))));
            }
            Event::Service(name, service, reply) => match self.set_service(name, service) {
                Ok(before) => after.push(Box::new(move |w| {
                    let (table, endpoints) = (w.services.reader().snapshot().revision, w.endpoints.reader().snapshot().revision);
                    drop(reply.send(Ok(Known { before, table, endpoints })));
                })),
                Err(e) => drop(reply.send(Err(e))),
            },
            Event::Node(name, node, reply) => match self.set_node(name, node) {
                Ok(before) => after.push(Box::new(move |w| {
                    let (table, endpoints) = (w.nodes.reader().snapshot().revision, w.endpoints.reader().snapshot().revision);
                    drop(reply.send(Ok(Known { before, table, endpoints })));
                })),
                Err(e) => drop(reply.send(Err(e))),
            },
            Event::Engine(reply) => drop(reply.send(Ok(Box::new(self.engine.clone())))),
            Event::Tree(tree, reply) => {
                self.tree = tree;
                let rows: Vec<_> = self.endpoints.rows().values().map(|s| (Arc::clone(&s.record), s.regeneration)).collect();
                for (record, regeneration) in rows {
                    self.put(record, regeneration);
                }
                after.push(Box::new(move |w| drop(reply.send(Ok(w.endpoints.reader().snapshot().revision)))));
            }
            Event::HostAddresses(addresses) => self.host_addresses(addresses.into_iter().collect()),
            Event::ReserveAddress(v6, v4, reply) => drop(reply.send(self.ipam.reserve(v6, v4).map_err(|e| self.in_the_way(e.into())))),
            Event::ReserveExact(ip, reply) => drop(reply.send(self.ipam.reserve_exact(ip).map_err(|e| self.in_the_way(e.into())))),
            Event::ReleaseAddress(ip, reply) => {
                self.ipam.release_reserved(ip);
                drop(reply.send(Ok(())));
            }
        }
        after
    }

    fn accept(&self, id: EndpointId, existed: bool, reply: Reply<Accepted>) {
        let rows = self.endpoints.rows();
        let record = rows.get(&id).map(|spec| Arc::clone(&spec.record)).ok_or(ControlError::NotFound(EndpointRef::Id(id)));
        drop(reply.send(record.map(|record| self.accepted(record, existed))));
    }

    fn accepted(&self, record: Arc<EndpointRecord>, existed: bool) -> Accepted {
        // The whole table's revision: it includes what the change did to the others' policies.
        let revision = self.endpoints.reader().snapshot().revision;
        Accepted { record, revision, ipcache: self.ipcache.reader().snapshot().revision, existed }
    }

    pub fn find(&self, endpoint: &EndpointRef) -> Option<Arc<EndpointRecord>> {
        find_endpoint(&self.endpoints.rows(), endpoint).map(|s| Arc::clone(&s.record))
    }

    fn add(&mut self, add: AddEndpoint) -> Result<(Arc<EndpointRecord>, bool), ControlError> {
        for spec in self.endpoints.rows().values() {
            let r = &spec.record;
            if r.name == add.name {
                // The same request again, after an answer that got lost.
                let v4 = match add.ipv4 {
                    Wish::Auto => true,
                    Wish::None => r.ipv4.is_none(),
                    Wish::Exact(ip) => r.ipv4 == Some(ip),
                };
                let same = v4
                    && add.ipv4_alone == r.ipv4_alone
                    && add.ipv6.is_none_or(|ip| r.ipv6 == ip)
                    && add.mac.is_none_or(|mac| r.mac == mac)
                    && add.mtu.is_none_or(|mtu| r.mtu == mtu)
                    && add.own.is_none_or(|own| r.own == own);
                if same && r.netns == add.netns && r.ifname == add.ifname && r.labels == add.labels && r.ports == add.ports {
                    return Ok((Arc::clone(r), true));
                }
                return Err(ControlError::NameTaken { name: add.name, by: r.id, netns: r.netns.clone() });
            }
            if r.netns == add.netns && r.ifname == add.ifname {
                return Err(ControlError::InterfaceTaken { netns: add.netns, ifname: add.ifname, by: r.id });
            }
        }
        if let Some((by, _)) = self.leaving.rows().iter().find(|(_, r)| r.netns == add.netns && r.ifname == add.ifname) {
            return Err(ControlError::InterfaceTaken { netns: add.netns, ifname: add.ifname, by: *by });
        }
        let ipv6 = self.ipam.take_reserved_v6(add.ipv6)?;
        let undo6 = |ipam: &mut Ipam| ipam.release(None, Some(ipv6), None);
        let ipv4 = self.ipam.take_reserved_v4(add.ipv4).inspect_err(|_| undo6(&mut self.ipam))?;
        if add.ipv4_alone && ipv4.is_none() {
            undo6(&mut self.ipam);
            return Err(ControlError::Refused("there is no IPv4 on this node for an endpoint without IPv6".into()));
        }
        let slot = self.ipam.take_slot().inspect_err(|_| self.ipam.release(None, Some(ipv6), ipv4))?;
        let identity = match self.identities.allocate(&add.labels) {
            Ok((identity, _)) => identity,
            Err(e) => {
                self.ipam.release(Some(slot), Some(ipv6), ipv4);
                return Err(ControlError::Identity(e.to_string()));
            }
        };
        self.learn_identity(identity, &add.labels);
        let mut record = EndpointRecord {
            id: EndpointId(slot),
            name: add.name,
            container_id: add.container_id,
            netns: add.netns,
            ifname: add.ifname,
            labels: add.labels,
            identity,
            ipv6,
            ipv4,
            ipv4_alone: add.ipv4_alone,
            nat46: None,
            mac: add.mac.unwrap_or_else(random_mac),
            host_mac: random_mac(),
            mtu: add.mtu.unwrap_or(self.mtu),
            own: add.own.unwrap_or(self.own),
            options: EndpointOptions::default(),
            ports: add.ports,
        };
        self.give_nat46(&mut record);
        let record = Arc::new(record);
        self.status.upsert(
            record.id,
            EndpointStatus {
                state: EndpointState::Creating,
                problem: None,
                ingress: PolicyMode::Open,
                egress: PolicyMode::Open,
                log: Arc::default(),
            },
        );
        self.put(Arc::clone(&record), 0);
        self.dirty = true;
        Ok((record, false))
    }

    /// A container without IPv4 has an address that stands for it, where packets are translated, as long as there is one free.
    fn give_nat46(&mut self, record: &mut EndpointRecord) {
        let wanted = self.nat46 && record.ipv4.is_none();
        if !wanted {
            self.ipam.release(None, None, record.nat46.take());
        } else if record.nat46.is_none() {
            match self.ipam.take_v4(Wish::Auto) {
                Ok(ip) => record.nat46 = ip,
                Err(e) => tracing::warn!(endpoint = %record.id, error = %e, "IPv4 does not reach it"),
            }
        }
    }

    fn delete(&mut self, id: EndpointId) {
        let Some(spec) = self.endpoints.rows().get(&id).cloned() else { return };
        let r = &spec.record;
        let mut gone = vec![IpcachePrefix::address(r.ipv6.into())];
        gone.extend(r.any_ipv4().map(|ip| IpcachePrefix::address(ip.into())));
        self.ipcache.batch(Vec::new(), &gone);
        self.endpoints.remove(&id);
        self.status.remove(&id);
        self.wanted.remove(&id);
        self.planned.remove(&id);
        self.forget_identity(r.identity);
        self.leaving.upsert(id, Arc::clone(r));
        self.release_gone();
        self.dirty = true;
    }

    fn learn_identity(&mut self, id: NumericIdentity, labels: &Labels) {
        self.engine.set_identity(id, Some(labels));
        self.dirty = true;
        self.identity_table.upsert(id, Arc::new(labels.clone()));
    }

    fn forget_identity(&mut self, id: NumericIdentity) {
        if self.identities.release(id) {
            self.engine.set_identity(id, None);
            self.identity_table.remove(&id);
            self.dirty = true;
        }
    }

    /// Writes an endpoint's row, with its policy as it stands.
    fn put(&mut self, record: Arc<EndpointRecord>, regeneration: u64) {
        let id = record.id;
        let spec = match self.endpoints.rows().get(&id).cloned() {
            Some(old) => EndpointSpec { record, tree: Arc::clone(&self.tree), regeneration: old.regeneration.max(regeneration), ..old },
            None => {
                // Reconcilers never see a row without its policy.
                let [policy_in, policy_out] = self.policies_of(&record);
                let policy_revision = self.revision();
                EndpointSpec {
                    record,
                    policy_in,
                    policy_out,
                    policy_revision,
                    audit: self.audit,
                    tree: Arc::clone(&self.tree),
                    regeneration,
                }
            }
        };
        self.write(id, spec);
    }

    fn write(&mut self, id: EndpointId, spec: EndpointSpec) {
        let before = self.endpoints.rows().get(&id).cloned();
        if before.as_ref() == Some(&spec) {
            return;
        }
        let revision = self.endpoints.upsert(id, spec);
        self.wanted.insert(id, revision);
        self.step(id, EndpointState::WaitingToRegenerate, "");
        self.step(id, EndpointState::Regenerating, "");
    }

    fn publish_rules(&mut self) {
        let rules: Vec<Arc<Rule>> = self.engine.repository().rules().cloned().collect();
        self.rules.upsert((), RuleSet { revision: self.revision(), rules: Arc::new(rules) });
        self.dirty = true;
    }

    /// Ids of the ingress and egress policy of an endpoint. A policy that is new is in the table when this returns; the
    /// reconciler keeps an old one until no row refers to it.
    fn policies_of(&mut self, record: &EndpointRecord) -> [u32; 2] {
        let subject = record.subject();
        let p = self.engine.policy(&subject).unwrap_or_else(|| self.engine.add_subject(subject));
        [(Direction::Ingress, p.ingress), (Direction::Egress, p.egress)].map(|key| {
            let (id, new) = self.policy_numbers.of(key.0, &key.1);
            if new {
                self.policies.upsert(id, PolicySpec { direction: key.0, policy: key.1 });
            }
            id
        })
    }

    fn revision(&self) -> u64 {
        self.engine.repository().revision().0
    }

    /// Brings policies and endpoint rows up to the rules and identities that are known now.
    fn settle(&mut self) {
        while std::mem::take(&mut self.dirty) {
            self.settle_once();
        }
    }

    fn settle_once(&mut self) {
        let rows = self.endpoints.rows();
        let revision = self.revision();
        let mut names: BTreeMap<NumericIdentity, PortNames> = BTreeMap::new();
        for record in rows.values().map(|spec| &spec.record) {
            let of = names.entry(record.identity).or_default();
            record.ports.iter().for_each(|(name, ports)| of.entry(name.clone()).or_default().extend(ports));
        }
        names.into_iter().for_each(|(identity, ports)| self.engine.set_peer_ports(identity, ports));
        let mut memo: HashMap<(&Labels, &PortNames), [u32; 2]> = HashMap::new();
        let mut specs = Vec::with_capacity(rows.len());
        for (id, spec) in rows.iter() {
            let subject = (&spec.record.labels, &spec.record.ports);
            let [policy_in, policy_out] = match memo.get(&subject) {
                Some(ids) => *ids,
                None => {
                    let ids = self.policies_of(&spec.record);
                    memo.insert(subject, ids);
                    ids
                }
            };
            // Rules that leave its policies as they are leave the endpoint alone.
            let same = [policy_in, policy_out] == [spec.policy_in, spec.policy_out];
            let policy_revision = if same { spec.policy_revision } else { revision };
            let new = EndpointSpec { policy_in, policy_out, policy_revision, audit: self.audit, ..spec.clone() };
            specs.push((*id, new, [policy_in == POLICY_OPEN, policy_out == POLICY_OPEN]));
        }
        self.engine.retain_subjects(|s| memo.contains_key(&(&s.labels, &s.ports)));
        let gone = self.policy_numbers.retain(&memo.values().flatten().copied().collect());
        for (id, spec, open) in specs {
            let audit = spec.audits();
            let addresses: Vec<IpAddr> = spec.record.addresses().collect();
            let entry = IpcacheSpec { identity: spec.record.identity, slot: id.0, after: Revision::default() };
            self.write(id, spec);
            self.ipcache.batch(addresses.into_iter().map(|ip| (IpcachePrefix::address(ip), entry)).collect(), &[]);
            let mode = |open| match (open, audit) {
                (true, _) => PolicyMode::Open,
                (false, true) => PolicyMode::Audit,
                (false, false) => PolicyMode::Enforced,
            };
            if let Some(old) = self.status.rows().get(&id) {
                self.status.upsert(id, EndpointStatus { ingress: mode(open[0]), egress: mode(open[1]), ..old.clone() });
            }
        }
        self.policies.batch(Vec::new(), &gone);
        self.settle_outside();
        self.settled.upsert((), Settled { rules: revision, endpoints: self.endpoints.reader().snapshot().revision });
    }

    /// Takes over what the endpoint reconciler says.
    fn learn(&mut self, statuses: &BTreeMap<EndpointId, Status>) {
        for (id, wanted) in self.wanted.clone() {
            match statuses.get(&id) {
                Some(Status::Done(revision)) if *revision >= wanted => self.step(id, EndpointState::Ready, ""),
                Some(Status::Failed(_, why)) => self.step(id, EndpointState::NotReady, why),
                _ => {}
            }
        }
    }

    fn step(&mut self, id: EndpointId, next: EndpointState, problem: &str) {
        let Some(old) = self.status.rows().get(&id).cloned() else { return };
        let same = old.state == next && old.problem.as_deref().unwrap_or("") == problem;
        if same || (old.state != next && !old.state.can_become(next)) {
            return;
        }
        let mut log = (*old.log).clone();
        log.push(LogEntry { time: crate::clock::now(), state: next.to_string(), message: problem.to_owned() });
        let surplus = log.len().saturating_sub(LOG_ENTRIES);
        log.drain(..surplus);
        let problem = (!problem.is_empty()).then(|| Arc::from(problem));
        self.status.upsert(id, EndpointStatus { state: next, problem, log: Arc::new(log), ..old });
    }
}

/// The endpoint that a reference names.
pub fn find_endpoint<'a>(rows: &'a BTreeMap<EndpointId, EndpointSpec>, endpoint: &EndpointRef) -> Option<&'a EndpointSpec> {
    let by = |f: &dyn Fn(&EndpointRecord) -> bool| rows.values().find(|s| f(&s.record));
    match endpoint {
        EndpointRef::Id(id) => rows.get(id),
        EndpointRef::Name(name) => by(&|r| r.name == *name),
        EndpointRef::ContainerId(c) => by(&|r| r.container_id.as_ref() == Some(c)),
        EndpointRef::PodName { namespace, name } => by(&|r| {
            r.labels.get(Source::K8s, "io.kubernetes.pod.namespace") == Some(namespace)
                && r.labels.get(Source::K8s, "io.kubernetes.pod.name") == Some(name)
        }),
        EndpointRef::Ipv4(ip) => by(&|r| r.any_ipv4() == Some(*ip)),
        EndpointRef::Ipv6(ip) => by(&|r| r.ipv6 == *ip),
    }
}

/// A locally administered unicast address.
fn random_mac() -> [u8; 6] {
    let mut mac: [u8; 6] = rand::random();
    mac[0] = (mac[0] & 0xfc) | 0x02;
    mac
}
