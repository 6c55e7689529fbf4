// SPDX-License-Identifier: Apache-2.0
//! Changes of endpoints that are there. A change is planned first: it goes to disk, and every policy learns the identity that
//! it brings, while what runs is as it was. Then it is made, or taken back whole.

use super::{Accepted, Answer, ControlError, Event, Reply, World};
use crate::ipam::IpamError;
use crate::state::EndpointRecord;
use crate::table::Revision;
use pilus_model::endpoint::{EndpointId, EndpointRef};
use pilus_model::identity::NumericIdentity;
use pilus_model::label::{Label, Labels};
use std::collections::VecDeque;
use std::sync::Arc;

/// What is to become of an endpoint.
pub enum Change {
    Labels {
        add: Labels,
        delete: Vec<String>,
    },
    /// Touches nothing that the others know of it.
    Options(Box<dyn FnOnce(&mut EndpointRecord) + Send>),
    Delete,
}

/// A change that nothing that runs knows yet.
#[derive(Clone, Copy, Debug)]
pub struct Planned {
    pub id: EndpointId,
    /// The disk has it as of this revision of the planned table.
    pub planned: Revision,
    /// It brings an identity, which every endpoint's policy knows as of this revision.
    pub endpoints: Option<Revision>,
}

/// A change between its plan and its end.
#[derive(Default)]
pub struct Pending {
    /// Both identities of an endpoint stay known for as long as a packet may be judged by either: until the change is made
    /// this is the new one, and from then on the old one.
    held: Option<NumericIdentity>,
    /// Other changes of the same endpoint.
    waiting: VecDeque<Event>,
}

impl World {
    /// One change of an endpoint at a time: another waits for the end of the first.
    pub(super) fn plan(&mut self, endpoint: EndpointRef, change: Change, reply: Reply<Planned>) -> Option<Answer> {
        let Some(record) = self.find(&endpoint) else {
            drop(reply.send(Err(ControlError::NotFound(endpoint))));
            return None;
        };
        let id = record.id;
        if let Some(first) = self.pending.get_mut(&id) {
            first.waiting.push_back(Event::Plan { endpoint, change, reply });
            return None;
        }
        let (next, held) = match self.next(&record, change) {
            Ok(planned) => planned,
            Err(e) => {
                drop(reply.send(Err(e)));
                return None;
            }
        };
        let brings = held.is_some();
        self.pending.insert(id, Pending { held, waiting: VecDeque::new() });
        let planned = self.planned.upsert(id, next);
        Some(Box::new(move |w| {
            let endpoints = brings.then(|| w.endpoints.reader().snapshot().revision);
            drop(reply.send(Ok(Planned { id, planned, endpoints })));
        }))
    }

    /// The record after the change (`None`: no more), and the identity that is held for it.
    fn next(
        &mut self,
        record: &Arc<EndpointRecord>,
        change: Change,
    ) -> Result<(Option<Arc<EndpointRecord>>, Option<NumericIdentity>), ControlError> {
        let mut new = (**record).clone();
        match change {
            Change::Delete => Ok((None, None)),
            Change::Options(set) => {
                set(&mut new);
                Ok((Some(Arc::new(new)), None))
            }
            Change::Labels { add, delete } => {
                let is = |l: &Label, d: &String| *d == l.key() || *d == format!("{}:{}", l.source(), l.key());
                if let Some(d) = delete.iter().find(|d| !record.labels.iter().any(|l| is(l, d))) {
                    return Err(ControlError::Labels(format!("endpoint {} has no label {d}", record.id)));
                }
                new.labels = record.labels.iter().filter(|l| !delete.iter().any(|d| is(l, d))).cloned().collect();
                add.iter().for_each(|l| new.labels.insert(l.clone()));
                (new.identity, _) = self.identities.allocate(&new.labels).map_err(|e| ControlError::Identity(e.to_string()))?;
                self.learn_identity(new.identity, &new.labels);
                let held = new.identity;
                Ok((Some(Arc::new(new)), Some(held)))
            }
        }
    }

    /// Makes the planned change.
    pub(super) fn make(&mut self, id: EndpointId, reply: Reply<Accepted>) -> Option<Answer> {
        let (old, next) = match (self.find(&EndpointRef::Id(id)), self.planned.rows().get(&id)) {
            (Some(old), Some(next)) => (old, next.clone()),
            // Removed meanwhile by who removes everything.
            _ => {
                drop(reply.send(Err(ControlError::NotFound(EndpointRef::Id(id)))));
                return None;
            }
        };
        let Some(next) = next else {
            self.delete(id);
            return Some(Box::new(move |w| drop(reply.send(Ok(w.accepted(old, true))))));
        };
        if let Some(Pending { held: Some(held), .. }) = self.pending.get_mut(&id) {
            *held = old.identity;
        }
        self.put(next, 0);
        self.dirty = true;
        // The disk follows both tables, this one first: at no moment do they show it the old record again.
        self.planned.remove(&id);
        Some(Box::new(move |w| w.accept(id, true, reply)))
    }

    /// Ends a change. One that was not made is taken back; one that was is whole.
    pub(super) fn close(&mut self, id: EndpointId) -> Vec<Answer> {
        let Some(Pending { held, waiting }) = self.pending.remove(&id) else { return Vec::new() };
        self.planned.remove(&id);
        if let Some(held) = held {
            self.forget_identity(held);
        }
        waiting.into_iter().flat_map(|event| self.apply(event)).collect()
    }

    /// What endpoints had that are gone from the kernel others may have.
    pub(super) fn release_gone(&mut self) {
        let there = Arc::clone(&self.outside.seen.endpoints);
        let gone: Vec<_> =
            self.leaving.rows().iter().filter(|(id, _)| !there.contains_key(id)).map(|(id, r)| (*id, Arc::clone(r))).collect();
        for (id, r) in &gone {
            self.ipam.release(Some(id.0), Some(r.ipv6), r.any_ipv4());
            self.leaving.remove(id);
        }
    }

    /// Tells apart what is taken from what will be free without anybody's doing.
    pub(super) fn in_the_way(&self, e: ControlError) -> ControlError {
        let leaving = self.leaving.rows();
        let soon = match &e {
            ControlError::InterfaceTaken { by, .. } => leaving.contains_key(by),
            ControlError::Ipam(IpamError::Taken(ip)) => leaving.values().any(|r| r.addresses().any(|of| of.to_string() == *ip)),
            ControlError::Ipam(IpamError::Exhausted(_)) => !leaving.is_empty(),
            _ => false,
        };
        if soon { ControlError::Leaving(Box::new(e)) } else { e }
    }
}
