// SPDX-License-Identifier: Apache-2.0
//! Desired state on disk: every change of a table, in batches, before it is acknowledged.

use crate::kvstore::{Batch, Store, StoreError};
use crate::state::{EndpointRecord, EndpointSpec, RuleSet};
use crate::table::{Reader, Revision};
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

fn endpoint_changes(
    old: &BTreeMap<EndpointId, Arc<EndpointRecord>>,
    new: &BTreeMap<EndpointId, EndpointSpec>,
    batch: &mut Batch,
) -> BTreeMap<EndpointId, Arc<EndpointRecord>> {
    for (id, spec) in new {
        if old.get(id).is_none_or(|r| **r != *spec.record) {
            batch.put.push((format!("{ENDPOINTS}{id}"), encode(&*spec.record)));
        }
    }
    batch.delete.extend(old.keys().filter(|id| !new.contains_key(id)).map(|id| format!("{ENDPOINTS}{id}")));
    new.iter().map(|(id, spec)| (*id, Arc::clone(&spec.record))).collect()
}

/// Follows both tables until their writer is gone.
pub async fn follow(
    store: Arc<dyn Store>,
    mut endpoints: Reader<EndpointId, EndpointSpec>,
    mut rules: Reader<(), RuleSet>,
    done: watch::Sender<Persisted>,
) {
    let first = endpoints.take();
    let mut stored: BTreeMap<_, _> = BTreeMap::new();
    let loaded = rules.snapshot().rows.get(&()).cloned().unwrap_or_default();
    let mut stored_rules = Some(loaded.revision);
    done.send_modify(|p| p.rule_set = loaded);
    let mut endpoint_snapshot = first;
    loop {
        let rule_set = rules.take().rows.get(&()).cloned().unwrap_or_default();
        let mut batch = Batch::default();
        let next = endpoint_changes(&stored, &endpoint_snapshot.rows, &mut batch);
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
                done.send_replace(Persisted { endpoints: endpoint_snapshot.revision, rules: rule_set.revision, rule_set, failing: false });
            }
            Err(e) => {
                tracing::error!(error = %e, "state is not saved");
                done.send_modify(|p| p.failing = true);
                tokio::time::sleep(std::time::Duration::from_secs(1)).await;
                endpoint_snapshot = endpoints.take();
                continue;
            }
        }
        tokio::select! {
            more = endpoints.changed() => if !more { return },
            more = rules.changed() => if !more { return },
        }
        endpoint_snapshot = endpoints.take();
    }
}
