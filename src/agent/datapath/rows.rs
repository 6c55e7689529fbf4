// SPDX-License-Identifier: Apache-2.0
//! Endpoint rows: what a row holds, and the order of writes that keeps flows honest.

use crate::state::{EndpointSpec, Trace};
use pilus_codegen::{Rendered, Value};
use pilus_loader::{Error, maps::PinnedMap};
use pilus_model::abi::*;
use std::collections::BTreeMap;
use tokio::sync::watch;

/// Why a rendered header cannot become a row.
#[derive(Debug, thiserror::Error)]
pub enum RowError {
    #[error("template VALUE {0} has no field in the endpoint's row: use endpoint-build own for this container, or remove the line")]
    NoField(String),
    #[error("template has no VALUE {0}")]
    Missing(&'static str),
    #[error("template VALUE {name} takes {expected} bytes, not {found}")]
    Size { name: String, expected: usize, found: usize },
}

fn bytes<const N: usize>(value: &Value) -> Result<[u8; N], RowError> {
    value.bytes.as_slice().try_into().map_err(|_| RowError::Size { name: value.name.clone(), expected: N, found: value.bytes.len() })
}

fn flags(spec: &EndpointSpec) -> u32 {
    let o = &spec.record.options;
    let mut f = EP_VALID;
    f |= match o.trace {
        Trace::Off => 0,
        Trace::Flow => EP_TRACE_FLOW,
        Trace::All => EP_TRACE_ALL,
    };
    f |= if o.drops { EP_DROPS } else { 0 };
    f |= if o.verdicts { EP_VERDICT } else { 0 };
    f |= if spec.audits() { EP_AUDIT_IN | EP_AUDIT_OUT } else { 0 };
    f |= if spec.record.nat46.is_some() { EP_NAT46 } else { 0 };
    f | if spec.record.own { EP_RECEIVE } else { 0 }
}

/// The row of an endpoint. What cannot change in its life comes from the rendered header, as in an own build.
pub fn endpoint_row(spec: &EndpointSpec, rendered: &Rendered) -> Result<Endpoint, RowError> {
    let mut row = Endpoint {
        identity: spec.record.identity.get(),
        policy_in: spec.policy_in,
        policy_out: spec.policy_out,
        flags: flags(spec),
        ..Endpoint::default()
    };
    for name in ["EP_SLOT", "EP_IFINDEX", "EP_MAC", "EP_HOST_MAC", "EP_IPV4", "EP_IPV6", "EP_ID", "EP_MTU"] {
        rendered.value(name).ok_or(RowError::Missing(name))?;
    }
    for value in &rendered.values {
        match value.name.as_str() {
            "EP_SLOT" => {}
            "EP_IFINDEX" => row.ifindex = u32::from_ne_bytes(bytes(value)?),
            "EP_MAC" => row.mac = bytes(value)?,
            "EP_HOST_MAC" => row.host_mac = bytes(value)?,
            "EP_IPV4" => row.ip4 = Be32::from_wire(bytes(value)?),
            "EP_IPV6" => {
                let ip: [u8; 16] = bytes(value)?;
                row.ip6 = std::array::from_fn(|i| Be32::from_wire([ip[4 * i], ip[4 * i + 1], ip[4 * i + 2], ip[4 * i + 3]]));
            }
            "EP_ID" => row.id = u16::from_ne_bytes(bytes(value)?),
            "EP_MTU" => row.mtu = u16::from_ne_bytes(bytes(value)?),
            _ if spec.record.own => {}
            other => return Err(RowError::NoField(other.to_owned())),
        }
    }
    Ok(row)
}

/// Changes that no flow's verdict depends on.
const REPORTING: u32 = EP_TRACE_FLOW | EP_TRACE_ALL | EP_VERDICT | EP_DROPS;

/// Policies that rows name.
#[derive(Debug, Default)]
struct Named {
    by_slot: BTreeMap<u32, [u32; 2]>,
    rows: BTreeMap<u32, usize>,
}

impl Named {
    /// Keeps what a row names. `true`: that is something else than before.
    fn set(&mut self, slot: u32, row: &Endpoint) -> bool {
        let new = [row.policy_in, row.policy_out];
        let old = self.by_slot.insert(slot, new).unwrap_or_default();
        // 0 is no policy.
        for id in new.into_iter().filter(|id| *id != 0) {
            *self.rows.entry(id).or_default() += 1;
        }
        for id in old.into_iter().filter(|id| *id != 0) {
            if let Some(rows) = self.rows.get_mut(&id) {
                *rows = rows.saturating_sub(1);
                if *rows == 0 {
                    self.rows.remove(&id);
                }
            }
        }
        new != old
    }

    fn has(&self, policy: u32) -> bool {
        self.rows.contains_key(&policy)
    }
}

/// Writes rows, all of them and one at a time: a row is read, compared and written.
#[derive(Debug)]
pub struct RowWriter(watch::Sender<Named>);

impl RowWriter {
    /// Nobody else writes rows of this table from now on.
    pub fn new(table: &PinnedMap<u32, Endpoint>) -> Result<Self, Error> {
        let mut named = Named::default();
        table.each(|slot, row| {
            if row.policy_in != 0 || row.policy_out != 0 {
                named.set(slot, &row);
            }
        })?;
        Ok(Self(watch::Sender::new(named)))
    }

    /// Whether a row names this policy.
    pub fn names(&self, policy: u32) -> bool {
        self.0.borrow().has(policy)
    }

    /// Waits until no row names this policy.
    pub async fn unnamed(&self, policy: u32) {
        // It cannot fail: the sender is ours.
        let _ = self.0.subscribe().wait_for(|named| !named.has(policy)).await;
    }

    /// Makes `slot` hold `row`; its `epoch` is ours. Readers see the old verdict's epoch until the new row stands, so that
    /// no flow keeps an old verdict under a new epoch. `true`: something changed.
    pub fn write(&self, table: &PinnedMap<u32, Endpoint>, slot: u32, row: Endpoint) -> Result<bool, Error> {
        self.change(table, slot, |old| {
            let mut new = Endpoint { epoch: old.epoch, ..row };
            if new == old {
                return Ok(None);
            }
            let quiet = |r: Endpoint| Endpoint { flags: r.flags & !REPORTING, mtu: 0, ..r };
            let verdicts_hold = quiet(new) == quiet(old);
            if old.flags & EP_VALID != 0 {
                table.put(&slot, &new)?;
            }
            if !verdicts_hold {
                new.epoch = old.epoch.wrapping_add(1);
                table.put(&slot, &new)?;
            }
            Ok(Some(new))
        })
    }

    /// Has every flow of the slot judged, and routed, anew. `false`: there is no row.
    pub fn renew(&self, table: &PinnedMap<u32, Endpoint>, slot: u32) -> Result<bool, Error> {
        self.change(table, slot, |old| {
            if old.flags & EP_VALID == 0 {
                return Ok(None);
            }
            let new = Endpoint { epoch: old.epoch.wrapping_add(1), ..old };
            table.put(&slot, &new)?;
            Ok(Some(new))
        })
    }

    /// Every packet from and to the slot is dropped from now on. The epoch stays, and grows. `false`: it was clear.
    pub fn clear(&self, table: &PinnedMap<u32, Endpoint>, slot: u32) -> Result<bool, Error> {
        self.change(table, slot, |old| {
            if old.flags == 0 {
                return Ok(None);
            }
            let new = Endpoint { epoch: old.epoch.wrapping_add(1), ..Endpoint::default() };
            table.put(&slot, &new)?;
            Ok(Some(new))
        })
    }

    /// The lock of the channel is that of the rows. What a write that failed left is read back.
    fn change(
        &self,
        table: &PinnedMap<u32, Endpoint>,
        slot: u32,
        work: impl FnOnce(Endpoint) -> Result<Option<Endpoint>, Error>,
    ) -> Result<bool, Error> {
        let mut result = Ok(false);
        self.0.send_if_modified(|named| {
            let old = match table.get(&slot) {
                Ok(old) => old.unwrap_or_default(),
                Err(e) => {
                    result = Err(e);
                    return false;
                }
            };
            let written = work(old);
            let now = match &written {
                Ok(now) => now.unwrap_or(old),
                Err(_) => table.get(&slot).ok().flatten().unwrap_or(old),
            };
            result = written.map(|now| now.is_some());
            named.set(slot, &now)
        });
        result
    }
}
