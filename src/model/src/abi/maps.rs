// SPDX-License-Identifier: Apache-2.0
//! The kernel tables.

use super::layout::CStruct;
use super::shapes::*;

/// Kernel map type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapKind {
    Array,
    PercpuArray,
    Hash,
    LruHash,
    LpmTrie,
    ProgArray,
    RingBuf,
}

impl MapKind {
    pub(crate) fn c_name(self) -> &'static str {
        match self {
            Self::Array => "BPF_MAP_TYPE_ARRAY",
            Self::PercpuArray => "BPF_MAP_TYPE_PERCPU_ARRAY",
            Self::Hash => "BPF_MAP_TYPE_HASH",
            Self::LruHash => "BPF_MAP_TYPE_LRU_HASH",
            Self::LpmTrie => "BPF_MAP_TYPE_LPM_TRIE",
            Self::ProgArray => "BPF_MAP_TYPE_PROG_ARRAY",
            Self::RingBuf => "BPF_MAP_TYPE_RINGBUF",
        }
    }
}

/// One table. Key and value are names of C types; sizes in bytes.
#[derive(Clone, Copy, Debug)]
pub struct MapDef {
    pub name: &'static str,
    pub kind: MapKind,
    pub key: &'static str,
    pub key_size: usize,
    pub value: &'static str,
    pub value_size: usize,
    /// Entries; bytes for the ring buffer. The agent may choose another size when it creates the flow tables.
    pub max_entries: u32,
    pub no_prealloc: bool,
    pub doc: &'static str,
}

const fn table<K: CStruct, V: CStruct>(name: &'static str, kind: MapKind, max_entries: u32, doc: &'static str) -> MapDef {
    MapDef {
        name,
        kind,
        key: K::NAME,
        key_size: K::SIZE,
        value: V::NAME,
        value_size: V::SIZE,
        max_entries,
        no_prealloc: matches!(kind, MapKind::LpmTrie),
        doc,
    }
}

const fn array<V: CStruct>(name: &'static str, kind: MapKind, max_entries: u32, doc: &'static str) -> MapDef {
    MapDef { name, kind, key: "", key_size: 4, value: V::NAME, value_size: V::SIZE, max_entries, no_prealloc: false, doc }
}

/// Name of each table, as pinned.
pub mod map {
    pub const ENDPOINT: &str = "endpoint";
    pub const FLOW4: &str = "flow4";
    pub const FLOW6: &str = "flow6";
    pub const POLICY: &str = "policy";
    pub const RULE_RECORD: &str = "rule_record";
    pub const RULE_COUNT: &str = "rule_count";
    pub const IPCACHE: &str = "ipcache";
    pub const IPCACHE_LPM: &str = "ipcache_lpm";
    pub const DEVICE: &str = "device";
    pub const NEXT_HOP: &str = "next_hop";
    pub const DIRECT: &str = "direct";
    pub const NAT46: &str = "nat46";
    pub const FRAG: &str = "frag";
    pub const METRICS: &str = "metrics";
    pub const TIMEOUTS: &str = "timeouts";
    pub const REPORTING: &str = "reporting";
    pub const DENIAL: &str = "denial";
    pub const OPENED: &str = "opened";
    pub const EVENTS: &str = "events";
    pub const RECEIVE: &str = "receive";
    pub const STAGES: &str = "stages";
}

/// Layout version in pin paths (`<bpf-root>/pilus/v1`).
pub const LAYOUT: &str = "v1";

/// Rare stages of the pipeline, by `STAGE_*`. Not one of [`MAPS`]: each generation of programs has its own, filled once and
/// pinned beside its programs.
pub const STAGE_MAP: MapDef = MapDef {
    name: map::STAGES,
    kind: MapKind::ProgArray,
    key: "",
    key_size: 4,
    value: "",
    value_size: 4,
    max_entries: STAGE_SLOTS,
    no_prealloc: false,
    doc: "Rare stages, programs of their own that a generation shares.",
};

/// Every table of the datapath.
pub const MAPS: &[MapDef] = &[
    array::<Endpoint>(map::ENDPOINT, MapKind::Array, ENDPOINT_SLOTS, "Rows of local containers, host, world and remote nodes."),
    table::<FlowKey4, Flow4>(map::FLOW4, MapKind::LruHash, 262144, "IPv4 flows: conntrack and forwarding in one entry."),
    table::<FlowKey6, Flow6>(map::FLOW6, MapKind::LruHash, 262144, "IPv6 flows."),
    table::<PolicyKey, PolicyBlock>(map::POLICY, MapKind::Hash, 131072, "Immutable policies, as blocks of rules."),
    array::<RuleRecord>(map::RULE_RECORD, MapKind::Array, RULE_RECORDS, "What a rule index stands for."),
    array::<Counter>(map::RULE_COUNT, MapKind::PercpuArray, RULE_RECORDS, "First packets that a rule decided."),
    table::<IpcacheKey, IpcacheEntry>(map::IPCACHE, MapKind::Hash, 131072, "Exact addresses: who is behind them."),
    table::<IpcacheLpmKey, IpcacheEntry>(map::IPCACHE_LPM, MapKind::LpmTrie, 65536, "Prefixes, asked when the exact table does not know."),
    table::<DeviceKey, DeviceEntry>(
        map::DEVICE,
        MapKind::Hash,
        256,
        "Ways out of the node that pass its stack by: a device, and a next hop.",
    ),
    array::<NextHop>(map::NEXT_HOP, MapKind::Array, SLOT_FIRST, "Next hops of the rows of ways out, by slot."),
    table::<IpcacheLpmKey, DirectEntry>(map::DIRECT, MapKind::LpmTrie, 4096, "Prefixes that containers meet under their own addresses."),
    array::<Nat46Range>(map::NAT46, MapKind::Array, 1, "Prefix of addresses that stand for IPv4 addresses."),
    table::<FragKey, FragEntry>(map::FRAG, MapKind::LruHash, 8192, "First fragments that were let through."),
    array::<Counter>(map::METRICS, MapKind::PercpuArray, 512, "Packets and bytes by reason << 1 | direction; reason 0 is forwarded."),
    array::<FlowTimeouts>(map::TIMEOUTS, MapKind::Array, 1, "Idle times."),
    array::<Reporting>(map::REPORTING, MapKind::Array, 1, "What reports leave out."),
    array::<Denial>(map::DENIAL, MapKind::PercpuArray, DENIAL_PLACES, "Refusals that the fast path repeats."),
    array::<Opened>(map::OPENED, MapKind::Array, DENIAL_PLACES, "Flows that were opened, by the place of their refusal."),
    MapDef {
        name: map::EVENTS,
        kind: MapKind::RingBuf,
        key: "",
        key_size: 0,
        value: "",
        value_size: 0,
        max_entries: 16 << 20,
        no_prealloc: false,
        doc: "Events, read by the agent.",
    },
    MapDef {
        name: map::RECEIVE,
        kind: MapKind::ProgArray,
        key: "",
        key_size: 4,
        value: "",
        value_size: 4,
        max_entries: ENDPOINT_SLOTS,
        no_prealloc: false,
        doc: "Receiving programs of endpoints that have their own, by slot.",
    },
];
