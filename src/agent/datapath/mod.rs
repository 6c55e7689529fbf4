// SPDX-License-Identifier: Apache-2.0
//! The kernel as a cache of the tables: only what is below here touches it.

pub mod counts;
pub mod devices;
pub mod endpoints;
pub mod gc;
pub mod hooks;
pub mod host;
pub mod ipcache;
pub mod nat;
pub mod policies;
pub mod programs;
pub mod reporting;
pub mod rows;
pub mod sysctl;

use pilus_loader::{Error, bpffs::BpfFs, maps, maps::PercpuMap, maps::PinnedMap, maps::ProgArray};
use pilus_model::abi::{self, map};

/// The open tables. Every one can be opened again from its pin.
#[derive(Debug)]
pub struct Tables {
    pub endpoint: PinnedMap<u32, abi::Endpoint>,
    pub flow4: PinnedMap<abi::FlowKey4, abi::Flow4>,
    pub flow6: PinnedMap<abi::FlowKey6, abi::Flow6>,
    pub policy: PinnedMap<abi::PolicyKey, abi::PolicyBlock>,
    pub rule_record: PinnedMap<u32, abi::RuleRecord>,
    pub rule_count: PercpuMap<abi::Counter>,
    pub ipcache: PinnedMap<abi::IpcacheKey, abi::IpcacheEntry>,
    pub ipcache_lpm: PinnedMap<abi::IpcacheLpmKey, abi::IpcacheEntry>,
    pub device: PinnedMap<abi::DeviceKey, abi::DeviceEntry>,
    pub next_hop: PinnedMap<u32, abi::NextHop>,
    pub direct: PinnedMap<abi::IpcacheLpmKey, abi::DirectEntry>,
    pub nat46: PinnedMap<u32, abi::Nat46Range>,
    pub metrics: PercpuMap<abi::Counter>,
    pub timeouts: PinnedMap<u32, abi::FlowTimeouts>,
    pub reporting: PinnedMap<u32, abi::Reporting>,
    pub receive: ProgArray,
}

impl Tables {
    /// Makes what is not pinned yet, opens all. `flow_entries`: size of a flow table that is made now.
    pub fn open(fs: &BpfFs, flow_entries: u32) -> Result<Self, Error> {
        maps::create_all(fs, &[(map::FLOW4, flow_entries), (map::FLOW6, flow_entries)])?;
        Ok(Self {
            endpoint: PinnedMap::open(fs, map::ENDPOINT)?,
            flow4: PinnedMap::open(fs, map::FLOW4)?,
            flow6: PinnedMap::open(fs, map::FLOW6)?,
            policy: PinnedMap::open(fs, map::POLICY)?,
            rule_record: PinnedMap::open(fs, map::RULE_RECORD)?,
            rule_count: PercpuMap::open(fs, map::RULE_COUNT)?,
            ipcache: PinnedMap::open(fs, map::IPCACHE)?,
            ipcache_lpm: PinnedMap::open(fs, map::IPCACHE_LPM)?,
            device: PinnedMap::open(fs, map::DEVICE)?,
            next_hop: PinnedMap::open(fs, map::NEXT_HOP)?,
            direct: PinnedMap::open(fs, map::DIRECT)?,
            nat46: PinnedMap::open(fs, map::NAT46)?,
            metrics: PercpuMap::open(fs, map::METRICS)?,
            timeouts: PinnedMap::open(fs, map::TIMEOUTS)?,
            reporting: PinnedMap::open(fs, map::REPORTING)?,
            receive: ProgArray::open(fs, map::RECEIVE)?,
        })
    }
}
