// SPDX-License-Identifier: Apache-2.0
//! Desired state on disk: every change of a table, in batches, before it is acknowledged.

use crate::control::Readers;
use crate::kvstore::{Batch, Store, StoreError};
use crate::state::{EndpointRecord, EndpointSpec, RuleSet};
use crate::table::Revision;
use pilus_model::endpoint::EndpointId;
use pilus_model::policy::Rule;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::sync::watch;

const ENDPOINTS: &str = "endpoint/";
const RULES: &str = "policy";

/// Table revisions that are safe on disk.
#[derive(Clone, Debug, Default)]
pub struct Persisted {
    pub endpoints: Revision,
    /// Changes that are planned.
    pub planned: Revision,
    pub rules: u64,
    /// The rules of that revision.
    pub rule_set: RuleSet,
    /// The last write failed: nothing may be acknowledged.
    pub failing: bool,
}

#[derive(Serialize, Deserialize)]
struct StoredRules {
    revision: u64,
    rules: Vec<Rule>,
}

fn bad(key: &str, e: impl std::fmt::Display) -> StoreError {
    StoreError { path: key.into(), message: format!("cannot be read: {e}; it was written by another version, or the file is damaged") }
}

/// What an earlier agent left.
pub fn load(store: &dyn Store) -> Result<(Vec<EndpointRecord>, RuleSet), StoreError> {
    let mut records = Vec::new();
    for (key, value) in store.list(ENDPOINTS)? {
        records.push(serde_json::from_slice(&value).map_err(|e| bad(&key, e))?);
    }
    let rules = match store.get(RULES)? {
        Some(value) => {
            let stored: StoredRules = serde_json::from_slice(&value).map_err(|e| bad(RULES, e))?;
            RuleSet { revision: stored.revision, rules: Arc::new(stored.rules.into_iter().map(Arc::new).collect()) }
        }
        None => RuleSet::default(),
    };
    Ok((records, rules))
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

/// What the disk should have: endpoints as they are about to be.
fn records(endpoints: &BTreeMap<EndpointId, EndpointSpec>, planned: &BTreeMap<EndpointId, Option<Arc<EndpointRecord>>>) -> Records {
    let next = |(id, spec): (&EndpointId, &EndpointSpec)| match planned.get(id) {
        Some(next) => Some((*id, Arc::clone(next.as_ref()?))),
        None => Some((*id, Arc::clone(&spec.record))),
    };
    endpoints.iter().filter_map(next).collect()
}

/// Follows the tables until their writer is gone.
pub async fn follow(store: Arc<dyn Store>, readers: Readers, done: watch::Sender<Persisted>) {
    let Readers { mut endpoints, mut planned, mut rules, .. } = readers;
    let mut stored = Records::new();
    let loaded = rules.snapshot().rows.get(&()).cloned().unwrap_or_default();
    let mut stored_rules = Some(loaded.revision);
    done.send_modify(|p| p.rule_set = loaded);
    loop {
        // In this order: what is no longer planned is in the endpoints.
        let plan = planned.take();
        let snapshot = endpoints.take();
        let rule_set = rules.take().rows.get(&()).cloned().unwrap_or_default();
        let mut batch = Batch::default();
        let next = records(&snapshot.rows, &plan.rows);
        endpoint_changes(&stored, &next, &mut batch);
        if stored_rules != Some(rule_set.revision) {
            let rules = rule_set.rules.iter().map(|r| (**r).clone()).collect();
            batch.put.push((RULES.into(), encode(&StoredRules { revision: rule_set.revision, rules })));
        }
        let written = if batch.is_empty() {
            Ok(())
        } else {
            let store = Arc::clone(&store);
            tokio::task::spawn_blocking(move || store.write(batch)).await.unwrap_or_else(|e| Err(bad("write", e)))
        };
        match written {
            Ok(()) => {
                stored = next;
                stored_rules = Some(rule_set.revision);
                let (endpoints, planned) = (snapshot.revision, plan.revision);
                done.send_replace(Persisted { endpoints, planned, rules: rule_set.revision, rule_set, failing: false });
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
        }
    }
}
