// SPDX-License-Identifier: Apache-2.0
//! Desired state on disk: every change of a table, in batches, before it is acknowledged.

use crate::control::Readers;
use crate::kvstore::{Batch, Store, StoreError};
use crate::state::{EndpointRecord, EndpointSpec, NodeRecord, RuleSet};
use crate::table::{Revision, side_by_side};
use pilus_model::endpoint::EndpointId;
use pilus_model::policy::{Rule, Service, Services};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::sync::watch;

const ENDPOINTS: &str = "endpoint/";
/// Revision of the rules.
const REVISION: &str = "policy-revision";
/// Each rule has a key of its own, so that an import writes what it brings; their order is that of the keys.
const RULES: &str = "rule/";
/// Where rules were before: one value for all.
const ALL_RULES: &str = "policy";
const SERVICES: &str = "service/";
const NODES: &str = "remote-node/";

/// Table revisions that are safe on disk.
#[derive(Clone, Debug, Default)]
pub struct Persisted {
    pub endpoints: Revision,
    /// Changes that are planned.
    pub planned: Revision,
    pub rules: u64,
    pub services: Revision,
    pub nodes: Revision,
    /// The rules of that revision.
    pub rule_set: RuleSet,
    /// The last write failed: nothing may be acknowledged.
    pub failing: bool,
}

#[derive(Deserialize)]
struct StoredRules {
    revision: u64,
    rules: Vec<Rule>,
}

fn bad(key: &str, e: impl std::fmt::Display) -> StoreError {
    StoreError { path: key.into(), message: format!("cannot be read: {e}; it was written by another version, or the file is damaged") }
}

/// What an earlier agent left.
pub struct Loaded {
    pub records: Vec<EndpointRecord>,
    pub rules: RuleSet,
    pub numbers: RuleNumbers,
    pub services: Services,
    pub nodes: BTreeMap<String, NodeRecord>,
}

/// The rules on disk, in their order, and the numbers that their keys are made of.
#[derive(Clone, Debug, Default)]
pub struct RuleNumbers(Vec<(u64, Arc<Rule>)>);

fn rule_key(number: u64) -> String {
    // All of one length: their order is that of the numbers.
    format!("{RULES}{number:016x}")
}

impl RuleNumbers {
    /// What makes the disk hold these rules in this order. Rules that stay where they are are the same allocation.
    fn follow(&self, rules: &[Arc<Rule>], batch: &mut Batch) -> Self {
        let mut next = self.0.last().map_or(0, |(number, _)| number + 1);
        let mut old = self.0.iter().peekable();
        let mut new = Vec::with_capacity(rules.len());
        for rule in rules {
            let gone = |(_, other): &&(u64, Arc<Rule>)| !Arc::ptr_eq(other, rule);
            while let Some((number, _)) = old.next_if(gone) {
                batch.delete.push(rule_key(*number));
            }
            let number = old.next().map_or_else(
                || {
                    batch.put.push((rule_key(next), encode(&**rule)));
                    next += 1;
                    next - 1
                },
                |(number, _)| *number,
            );
            new.push((number, Arc::clone(rule)));
        }
        batch.delete.extend(old.map(|(number, _)| rule_key(*number)));
        Self(new)
    }
}

/// Rules of an agent that kept all of them in one value get a key each, in one step.
fn split_rules(store: &dyn Store) -> Result<(), StoreError> {
    let Some(value) = store.get(ALL_RULES)? else { return Ok(()) };
    let stored: StoredRules = serde_json::from_slice(&value).map_err(|e| bad(ALL_RULES, e))?;
    let rules: Vec<Arc<Rule>> = stored.rules.into_iter().map(Arc::new).collect();
    // If there are others, that agent wrote after one that knew better.
    let mut batch = Batch { put: Vec::new(), delete: store.list(RULES)?.into_keys().collect() };
    batch.delete.push(ALL_RULES.into());
    RuleNumbers::default().follow(&rules, &mut batch);
    batch.put.push((REVISION.into(), encode(&stored.revision)));
    store.write(batch)
}

fn load_rules(store: &dyn Store) -> Result<(RuleSet, RuleNumbers), StoreError> {
    split_rules(store)?;
    let number = |key: &str| u64::from_str_radix(key, 16).map_err(|e| bad(&format!("{RULES}{key}"), e));
    let rules = all::<Rule>(store, RULES)?.into_iter().map(|(key, rule)| Ok((number(&key)?, Arc::new(rule))));
    let rules: Vec<(u64, Arc<Rule>)> = rules.collect::<Result<_, StoreError>>()?;
    let revision = store.get(REVISION)?.map(|value| serde_json::from_slice(&value).map_err(|e| bad(REVISION, e)));
    let set = RuleSet {
        revision: revision.transpose()?.unwrap_or_default(),
        rules: Arc::new(rules.iter().map(|(_, rule)| Arc::clone(rule)).collect()),
    };
    Ok((set, RuleNumbers(rules)))
}

fn all<T: DeserializeOwned>(store: &dyn Store, prefix: &str) -> Result<Vec<(String, T)>, StoreError> {
    let read = |(key, value): (String, Vec<u8>)| match serde_json::from_slice(&value) {
        Ok(value) => Ok((key.strip_prefix(prefix).unwrap_or(&key).to_owned(), value)),
        Err(e) => Err(bad(&key, e)),
    };
    store.list(prefix)?.into_iter().map(read).collect()
}

/// Reads what an earlier agent left.
pub fn load(store: &dyn Store) -> Result<Loaded, StoreError> {
    let records = all(store, ENDPOINTS)?.into_iter().map(|(_, record)| record).collect();
    let service = |(key, service): (String, Service)| {
        let (namespace, name) = key.split_once('/').unwrap_or(("default", &key));
        ((namespace.to_owned(), name.to_owned()), service)
    };
    let services = all(store, SERVICES)?.into_iter().map(service).collect();
    let nodes = all(store, NODES)?.into_iter().collect();
    let (rules, numbers) = load_rules(store)?;
    Ok(Loaded { records, rules, numbers, services, nodes })
}

fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    serde_json::to_vec(value).unwrap_or_default()
}

type Records = BTreeMap<EndpointId, Arc<EndpointRecord>>;

fn endpoint_changes(old: &Records, new: &Records, batch: &mut Batch) {
    for (id, record) in new {
        if old.get(id).is_none_or(|r| r != record) {
            batch.put.push((format!("{ENDPOINTS}{id}"), encode(&**record)));
        }
    }
    batch.delete.extend(old.keys().filter(|id| !new.contains_key(id)).map(|id| format!("{ENDPOINTS}{id}")));
}

fn changes<K: Ord, V: PartialEq + Serialize>(
    old: &Arc<BTreeMap<K, V>>,
    new: &Arc<BTreeMap<K, V>>,
    key: impl Fn(&K) -> String,
    batch: &mut Batch,
) {
    if Arc::ptr_eq(old, new) {
        return;
    }
    for (k, _, new) in side_by_side(old.iter(), new.iter()).filter(|(_, old, new)| old != new) {
        match new {
            Some(value) => batch.put.push((key(k), encode(value))),
            None => batch.delete.push(key(k)),
        }
    }
}

/// What the disk should have: endpoints as they are about to be.
fn records(endpoints: &BTreeMap<EndpointId, EndpointSpec>, planned: &BTreeMap<EndpointId, Option<Arc<EndpointRecord>>>) -> Records {
    let next = |(id, spec): (&EndpointId, &EndpointSpec)| match planned.get(id) {
        Some(next) => Some((*id, Arc::clone(next.as_ref()?))),
        None => Some((*id, Arc::clone(&spec.record))),
    };
    endpoints.iter().filter_map(next).collect()
}

/// Follows the tables until their writer is gone. `numbers`: as loaded.
pub async fn follow(store: Arc<dyn Store>, readers: Readers, mut numbers: RuleNumbers, done: watch::Sender<Persisted>) {
    let Readers { mut endpoints, mut planned, mut rules, mut services, mut nodes, .. } = readers;
    let mut stored = Records::new();
    let loaded = rules.snapshot().rows.get(&()).cloned().unwrap_or_default();
    let mut stored_revision = loaded.revision;
    let (mut stored_services, mut stored_nodes) = (services.snapshot().rows, nodes.snapshot().rows);
    done.send_modify(|p| p.rule_set = loaded);
    loop {
        // In this order: what is no longer planned is in the endpoints.
        let plan = planned.take();
        let snapshot = endpoints.take();
        let rule_set = rules.take().rows.get(&()).cloned().unwrap_or_default();
        let mut batch = Batch::default();
        let next = records(&snapshot.rows, &plan.rows);
        endpoint_changes(&stored, &next, &mut batch);
        let mut next_numbers = None;
        if stored_revision != rule_set.revision {
            next_numbers = Some(numbers.follow(&rule_set.rules, &mut batch));
            batch.put.push((REVISION.into(), encode(&rule_set.revision)));
        }
        let (known_services, known_nodes) = (services.take(), nodes.take());
        changes(&stored_services, &known_services.rows, |(namespace, name)| format!("{SERVICES}{namespace}/{name}"), &mut batch);
        changes(&stored_nodes, &known_nodes.rows, |name| format!("{NODES}{name}"), &mut batch);
        let written = if batch.is_empty() {
            Ok(())
        } else {
            let store = Arc::clone(&store);
            tokio::task::spawn_blocking(move || store.write(batch)).await.unwrap_or_else(|e| Err(bad("write", e)))
        };
        match written {
            Ok(()) => {
                stored = next;
                stored_revision = rule_set.revision;
                numbers = next_numbers.unwrap_or(numbers);
                (stored_services, stored_nodes) = (known_services.rows, known_nodes.rows);
                done.send_replace(Persisted {
                    endpoints: snapshot.revision,
                    planned: plan.revision,
                    rules: rule_set.revision,
                    services: known_services.revision,
                    nodes: known_nodes.revision,
                    rule_set,
                    failing: false,
                });
            }
            Err(e) => {
                tracing::error!(error = %e, "state is not saved");
                done.send_modify(|p| p.failing = true);
                tokio::time::sleep(std::time::Duration::from_secs(1)).await;
                continue;
            }
        }
        tokio::select! {
            more = endpoints.changed() => if !more { return },
            more = planned.changed() => if !more { return },
            more = rules.changed() => if !more { return },
            more = services.changed() => if !more { return },
            more = nodes.changed() => if !more { return },
        }
    }
}

#[cfg(test)]
mod tests;
