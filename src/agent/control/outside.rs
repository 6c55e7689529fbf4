// SPDX-License-Identifier: Apache-2.0
//! Who is outside of the node's containers: prefixes that rules name, services, other nodes.
//!
//! The kernel never finds an identity behind an address that a policy does not know. A prefix is written when every policy knows
//! its identity, before the rules that name it are in force, and removed when every policy is as of the rules that do not name it; until it is gone, policies say about its
//! identity what the address inherits. So an address is judged as before, or as from now on, and by nothing else.

use super::{ControlError, World, room};
use crate::reconcile::{Status, Statuses};
use crate::state::{IpcachePrefix, IpcacheSpec, NodeRecord};
use crate::table::Revision;
use pilus_model::abi::{Reserved, SLOT_HOST, SLOT_WORLD};
use pilus_model::endpoint::EndpointId;
use pilus_model::identity::{NodeIdentities, NumericIdentity, PrefixIdentities, reserved_labels};
use pilus_model::label::Labels;
use pilus_model::policy::{Service, ServiceName};
use pilus_model::prefix::Prefix;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

/// Why an identity is known.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Holder {
    Prefix(Prefix),
    Node(Arc<Labels>),
}

#[derive(Debug)]
struct Row {
    identity: NumericIdentity,
    holder: Holder,
    /// Nothing names it any more; it goes when the endpoints' rows are as of this revision.
    leaving: Option<Revision>,
}

/// How far the kernel is.
#[derive(Debug, Default)]
pub(super) struct Seen {
    pub endpoints: Arc<BTreeMap<EndpointId, Status>>,
    pub addresses: Arc<BTreeMap<IpcachePrefix, Status>>,
}

#[derive(Debug, Default)]
pub(super) struct Outside {
    rows: BTreeMap<IpcachePrefix, Row>,
    /// Identities that are forgotten when the kernel's addresses are as of a revision.
    retired: Vec<(Revision, Holder)>,
    nodes: NodeIdentities,
    /// Names of other nodes by their addresses.
    by_address: BTreeMap<IpAddr, String>,
    /// Rows that may be wanted otherwise than before.
    touched: BTreeSet<IpcachePrefix>,
    pub seen: Seen,
}

/// Prefixes that are told apart for rules to come, when the endpoints are as of a revision and the addresses written.
#[derive(Clone, Debug)]
pub struct Announced {
    pub prefixes: Vec<Prefix>,
    pub endpoints: Revision,
}

/// A change of a table that rules ask.
#[derive(Clone, Debug)]
pub struct Known<T> {
    pub before: Option<T>,
    /// The table that holds it.
    pub table: Revision,
    /// Policies follow from it as of this revision of the endpoints.
    pub endpoints: Revision,
}

fn exact(row: &IpcachePrefix) -> bool {
    *row == IpcachePrefix::address(row.ip)
}

impl World {
    /// Makes a service known, or forgets it. Gives the one before.
    pub(super) fn set_service(&mut self, name: ServiceName, service: Option<Service>) -> Result<Option<Service>, ControlError> {
        let mut all = (*self.services.rows()).clone();
        let before = match &service {
            Some(service) => all.insert(name.clone(), service.clone()),
            None => all.remove(&name),
        };
        if before != service {
            self.engine.set_services(all, Some(room())).map_err(|e| ControlError::Refused(e.to_string()))?;
            match service {
                Some(service) => self.services.upsert(name, service),
                None => self.services.remove(&name),
            };
            self.dirty = true;
        }
        Ok(before)
    }

    /// Makes another node known, or forgets it. Gives what it was before.
    pub(super) fn set_node(&mut self, name: String, node: Option<NodeRecord>) -> Result<Option<NodeRecord>, ControlError> {
        let rows = self.nodes.rows();
        let before = rows.get(&name).cloned();
        if before == node {
            return Ok(before);
        }
        if let Some(node) = &node {
            let taken = node.addresses.iter().find_map(|ip| self.outside.by_address.get(ip).filter(|by| **by != name).map(|by| (*ip, by)));
            if let Some((ip, by)) = taken {
                return Err(ControlError::AddressTaken { ip, by: by.clone() });
            }
            self.learn_node(&node.labels)?;
        }
        for ip in before.iter().flat_map(|n| &n.addresses) {
            self.outside.by_address.remove(ip);
            self.outside.touched.insert(IpcachePrefix::address(*ip));
        }
        for ip in node.iter().flat_map(|n| &n.addresses) {
            self.outside.by_address.insert(*ip, name.clone());
            self.outside.touched.insert(IpcachePrefix::address(*ip));
        }
        drop(rows);
        match node {
            Some(node) => self.nodes.upsert(name, node),
            None => self.nodes.remove(&name),
        };
        self.dirty = true;
        if let Some(before) = &before {
            self.let_go(Holder::Node(Arc::clone(&before.labels)));
        }
        Ok(before)
    }

    /// One more reference to the identity of a node's labels.
    pub(super) fn learn_node(&mut self, labels: &Arc<Labels>) -> Result<NumericIdentity, ControlError> {
        let all_taken = || ControlError::Identity("all identities of nodes are in use".to_owned());
        let id = self.outside.nodes.allocate(labels).ok_or_else(all_taken)?;
        if !id.is_reserved() {
            self.engine.set_identity(id, Some(labels));
            self.identity_table.upsert(id, Arc::clone(labels));
        }
        Ok(id)
    }

    pub(super) fn host_addresses(&mut self, now: BTreeSet<IpAddr>) {
        self.outside.touched.extend(self.host.symmetric_difference(&now).map(|ip| IpcachePrefix::address(*ip)));
        let gone: Vec<_> = self.host.difference(&now).map(|ip| IpcachePrefix::address(*ip)).collect();
        let spec = IpcacheSpec { identity: Reserved::Host.into(), slot: SLOT_HOST as u16, after: Revision::default() };
        let new: Vec<_> = now.difference(&self.host).map(|ip| (IpcachePrefix::address(*ip), spec)).collect();
        let taken: Vec<IpcachePrefix> = new.iter().map(|(row, _)| *row).collect();
        let revision = self.ipcache.batch(new, &gone);
        let taken = taken.iter().filter_map(|row| self.outside.rows.remove(row)).map(|row| (revision, row.holder));
        self.outside.retired.extend(taken);
        self.host = now;
        self.settle_outside();
    }

    /// Whom a row stands for if addresses are to be told apart by it: other nodes, and what rules name. Containers and the host
    /// keep theirs.
    fn wanted_outside(&self, row: &IpcachePrefix) -> Option<(NumericIdentity, Holder)> {
        if exact(row) && self.host.contains(&row.ip) {
            return None;
        }
        let node = self.outside.by_address.get(&row.ip).filter(|_| exact(row)).and_then(|name| self.nodes.rows().get(name).cloned());
        if let Some((id, node)) = node.and_then(|node| Some((self.outside.nodes.lookup(&node.labels)?, node))) {
            return Some((id, Holder::Node(node.labels)));
        }
        let prefix = Prefix::new(row.ip, row.len).ok()?;
        let holder = Holder::Prefix(prefix);
        let retired = self.outside.retired.iter().filter(|(_, h)| *h == holder).count();
        let held = retired + usize::from(self.outside.rows.get(row).is_some_and(|row| row.holder == holder));
        let named = self.engine.prefixes().references(prefix) > held as u64;
        let free = !self.ranges.iter().any(|r| r.covers(prefix));
        let id = self.engine.prefixes().lookup(prefix).filter(|_| named && free)?;
        Some((id, holder))
    }

    /// Brings the rows that a change may concern up to rules, services and nodes. The endpoints are in their table already.
    pub(super) fn settle_outside(&mut self) {
        let mut touched = std::mem::take(&mut self.outside.touched);
        touched.extend(self.engine.take_touched_prefixes().into_iter().map(|p| IpcachePrefix { ip: p.ip(), len: p.length() }));
        let after = self.endpoints.reader().snapshot().revision;
        let (mut new, mut replaced) = (Vec::new(), Vec::new());
        for row in touched {
            let wanted = self.wanted_outside(&row);
            if let Some(old) = self.outside.rows.get_mut(&row) {
                old.leaving = if wanted.is_some() { None } else { old.leaving.or(Some(after)) };
            }
            let Some((identity, holder)) = wanted else { continue };
            if self.outside.rows.get(&row).is_some_and(|old| old.identity == identity) {
                continue;
            }
            match &holder {
                Holder::Prefix(prefix) => {
                    self.engine.hold(*prefix);
                    self.identity_table.upsert(identity, Arc::new(PrefixIdentities::labels(*prefix)));
                }
                // There is one already.
                Holder::Node(labels) => drop(self.outside.nodes.allocate(labels)),
            }
            new.push((row, IpcacheSpec { identity, slot: SLOT_WORLD as u16, after }));
            replaced.extend(self.outside.rows.insert(row, Row { identity, holder, leaving: None }).map(|old| old.holder));
        }
        let revision = self.ipcache.batch(new, &[]);
        self.outside.retired.extend(replaced.into_iter().map(|holder| (revision, holder)));
        self.advance();
    }

    /// Goes on with what waited for the kernel.
    pub(super) fn advance(&mut self) {
        let endpoints = Arc::clone(&self.outside.seen.endpoints);
        let done = |revision: Revision| endpoints.values().all(|s| s.tried(revision));
        let gone: Vec<IpcachePrefix> =
            self.outside.rows.iter().filter(|(_, row)| row.leaving.is_some_and(done)).map(|(row, _)| *row).collect();
        if !gone.is_empty() {
            let revision = self.ipcache.batch(Vec::new(), &gone);
            let rows = gone.iter().filter_map(|row| self.outside.rows.remove(row));
            let retired: Vec<_> = rows.map(|row| (revision, row.holder)).collect();
            self.outside.retired.extend(retired);
        }
        let Some(realised) = self.addresses_realised() else { return };
        let (ready, waiting) = std::mem::take(&mut self.outside.retired).into_iter().partition(|(revision, _)| *revision <= realised);
        self.outside.retired = waiting;
        let ready: Vec<(Revision, Holder)> = ready;
        ready.into_iter().for_each(|(_, holder)| self.let_go(holder));
    }

    /// Revision of the addresses that the kernel has.
    fn addresses_realised(&self) -> Option<Revision> {
        if self.outside.retired.is_empty() {
            return None;
        }
        let (wanted, there) = (self.ipcache.reader().snapshot(), &self.outside.seen.addresses);
        if there.len() != wanted.rows.len() {
            return None;
        }
        // Both are in order.
        let at = |((row, status), want): ((&IpcachePrefix, &Status), &IpcachePrefix)| match status {
            Status::Done(at) | Status::Failed(at, _) if row == want => Some(*at),
            _ => None,
        };
        there.iter().zip(wanted.rows.keys()).map(at).min().unwrap_or(Some(wanted.revision))
    }

    fn let_go(&mut self, holder: Holder) {
        match holder {
            Holder::Prefix(prefix) => {
                let Some(id) = self.engine.prefixes().lookup(prefix) else { return };
                self.engine.let_go(prefix);
                if self.engine.prefixes().lookup(prefix).is_none() {
                    match id.reserved() {
                        Some(fixed) => drop(self.identity_table.upsert(id, Arc::new(reserved_labels(fixed)))),
                        None => drop(self.identity_table.remove(&id)),
                    }
                }
            }
            Holder::Node(labels) => {
                if let Some(id) = self.outside.nodes.release(&labels).filter(|id| !id.is_reserved()) {
                    self.engine.set_identity(id, None);
                    self.identity_table.remove(&id);
                }
            }
        }
        self.dirty = true;
    }

    /// Takes over what the reconcilers of endpoints and addresses say.
    pub(super) fn see(&mut self, endpoints: &mut Statuses<EndpointId>, addresses: &mut Statuses<IpcachePrefix>) {
        self.outside.seen =
            Seen { endpoints: Arc::clone(&endpoints.borrow_and_update()), addresses: Arc::clone(&addresses.borrow_and_update()) };
        self.learn(&Arc::clone(&self.outside.seen.endpoints));
        self.release_gone();
        self.advance();
        self.settle();
    }
}
