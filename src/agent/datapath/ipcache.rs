// SPDX-License-Identifier: Apache-2.0
//! Who is behind an address, in the kernel.

use super::rows::RowWriter;
use super::{Tables, devices};
use crate::reconcile::{Reconcile, Status, Statuses};
use crate::state::{IpcachePrefix, IpcacheSpec};
use crate::table::Revision;
use pilus_loader::Error;
use pilus_model::abi::{IpcacheEntry, SLOT_WORLD};
use pilus_model::endpoint::EndpointId;
use pilus_model::ipcache::{exact_address, exact_key, lpm_key, lpm_prefix};
use std::collections::BTreeMap;
use std::sync::Arc;

pub struct IpcacheReconciler {
    tables: Arc<Tables>,
    rows: Arc<RowWriter>,
    endpoints: Statuses<EndpointId>,
}

#[derive(Debug, thiserror::Error)]
pub enum IpcacheError {
    #[error(transparent)]
    Kernel(#[from] Error),
    #[error("{0}")]
    Prefix(String),
}

impl IpcacheReconciler {
    pub fn new(tables: Arc<Tables>, rows: Arc<RowWriter>, endpoints: Statuses<EndpointId>) -> Self {
        Self { tables, rows, endpoints }
    }

    /// Who is behind an address of the world decides about flows that are open too: they are judged anew.
    fn judge_anew(&self, slot: u16) -> Result<(), Error> {
        if u32::from(slot) == SLOT_WORLD { devices::renew(&self.tables, &self.rows) } else { Ok(()) }
    }

    /// Waits until every endpoint that there is has its row as of a revision, or cannot have it.
    async fn rows_written(&self, after: Revision) {
        let written = |s: &Arc<BTreeMap<EndpointId, Status>>| s.values().all(|s| s.tried(after));
        // It ends with the agent.
        let _ = self.endpoints.clone().wait_for(written).await;
    }
}

fn is_address(p: &IpcachePrefix) -> bool {
    p.len == if p.ip.is_ipv4() { 32 } else { 128 }
}

impl Reconcile for IpcacheReconciler {
    type Key = IpcachePrefix;
    type Value = IpcacheSpec;
    type Error = IpcacheError;
    const NAME: &'static str = "ipcache";

    async fn update(&self, key: &IpcachePrefix, value: &IpcacheSpec) -> Result<(), IpcacheError> {
        if value.after > Revision::default() {
            self.rows_written(value.after).await;
        }
        let entry = IpcacheEntry { identity: value.identity.get(), slot: value.slot, ..IpcacheEntry::default() };
        if is_address(key) {
            self.tables.ipcache.put(&exact_key(key.ip), &entry)?;
        } else {
            let key = lpm_key(key.ip, key.len).map_err(|e| IpcacheError::Prefix(e.to_string()))?;
            self.tables.ipcache_lpm.put(&key, &entry)?;
        }
        self.judge_anew(value.slot)?;
        Ok(())
    }

    async fn delete(&self, key: &IpcachePrefix) -> Result<(), IpcacheError> {
        let old = if is_address(key) {
            let key = exact_key(key.ip);
            let old = self.tables.ipcache.get(&key)?;
            self.tables.ipcache.delete(&key)?;
            old
        } else {
            let lpm = lpm_key(key.ip, key.len).map_err(|e| IpcacheError::Prefix(e.to_string()))?;
            self.tables.ipcache_lpm.delete(&lpm)?;
            // Only prefixes of the world come and go.
            Some(IpcacheEntry { slot: SLOT_WORLD as u16, ..IpcacheEntry::default() })
        };
        self.judge_anew(old.map_or(0, |entry| entry.slot))?;
        Ok(())
    }

    async fn realised(&self) -> Result<Vec<IpcachePrefix>, IpcacheError> {
        let exact = self.tables.ipcache.entries()?.into_iter().filter_map(|(k, _)| exact_address(&k)).map(IpcachePrefix::address);
        let prefixes = self.tables.ipcache_lpm.entries()?.into_iter().filter_map(|(k, _)| lpm_prefix(&k));
        Ok(exact.chain(prefixes.map(|(ip, len)| IpcachePrefix { ip, len })).collect())
    }
}
