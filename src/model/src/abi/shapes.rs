// SPDX-License-Identifier: Apache-2.0
//! The shared shapes themselves.

use super::layout::{Be16, Be32, c_consts, c_enum, c_struct};

c_consts! {
    /// Stages of the pipeline that are programs of their own, and who calls them.
    STAGES: u32 {
        /// Slots of a generation's `stages`.
        STAGE_SLOTS = 4;
        /// Whatever the fast path leaves.
        STAGE_SLOW = 0;
        /// Masquerading, and its answers.
        STAGE_NAT = 1;
        /// The report of what the fast path has sent on its way.
        STAGE_TRACE = 2;
    }
}

/// The stages' programs, all of the slow path's object.
pub const STAGES_OF_SLOW: &[(u32, &str)] = &[(STAGE_SLOW, "slow_path"), (STAGE_NAT, "nat_path"), (STAGE_TRACE, "trace_path")];

/// Those of them that are about as much work for the verifier as all others together: loaded beside them.
pub const STAGES_APART: &[&str] = &["nat_path"];

c_consts! {
    /// Sizes and slots.
    LIMITS: u32 {
        /// Rows of the endpoint table.
        ENDPOINT_SLOTS = 65536;
        /// Row of the local host (router addresses, interface of `pilus_host`).
        SLOT_HOST = 1;
        /// Row of everything that is neither a container nor the host.
        SLOT_WORLD = 2;
        /// First row of the ways out by the node's own devices: what is reached through one of them is the world too.
        SLOT_DEVICES = 16;
        /// First row of ways out by a device and a next hop.
        SLOT_NEXT_HOPS = 128;
        /// First row of a local container.
        SLOT_FIRST = 256;
        /// First row of remote nodes (one past the last container).
        SLOT_NODES = 32768;
        /// Interface index of a container's host side = this + its slot: far above what the kernel counts up to by itself.
        IFINDEX_BASE = 655_360_000;
        /// Interface index of `pilus_net`, by which programs know it: that of the host's slot.
        IFINDEX_NET = 655_360_001;
        /// `policy_in`/`policy_out` of a row that was never given a policy: everything is denied.
        POLICY_NONE = 0;
        /// A policy that allows everything, in that direction, without a look-up.
        POLICY_OPEN = 1;
        /// First policy id that names rule blocks.
        POLICY_FIRST = 2;
        /// Rules in a block.
        POLICY_BLOCK_RULES = 8;
        /// Blocks that one {policy, direction, identity} may chain.
        POLICY_CHAIN = 16;
        /// Rule records; index 0 is "no rule".
        RULE_RECORDS = 65536;
        /// Bytes of a packet that an event carries.
        EVENT_PAYLOAD = 128;
        /// Counter of events that found no room.
        REASON_EVENT_LOST = 1;
        /// Counter of TCP packets that open nothing and belong to no entry of the flow table, whatever became of them.
        REASON_NO_FLOW = 2;
        /// Places of the `denial` table.
        DENIAL_PLACES = 4096;
        /// Jiffies that a known denial lives at most: what is older is no denial, however long ago it was written.
        DENIAL_LONGEST = 1 << 22;
        /// First port of masqueraded flows, above what Linux takes for the host's own; all up to 65535 are taken.
        NAT_FIRST = 61000;
    }
}

c_consts! {
    /// `flags` of an endpoint row.
    ENDPOINT_FLAGS: u32 {
        /// The row is in use; without it every packet from or to it is dropped.
        EP_VALID = 1;
        /// Delivered to the host's stack through `pilus_host` (rows of host and world).
        EP_STACK = 2;
        /// Has a receiving program of its own in `receive[slot]`.
        EP_RECEIVE = 4;
        /// Reached through another node (room for clusters).
        EP_REMOTE = 8;
        /// Ingress verdicts are reported, not enforced.
        EP_AUDIT_IN = 16;
        /// Egress verdicts are reported, not enforced.
        EP_AUDIT_OUT = 32;
        /// Report the first packet of each flow, its changes, and one packet of each interval.
        EP_TRACE_FLOW = 64;
        /// Report every packet, or a sample of them.
        EP_TRACE_ALL = 128;
        /// Report every policy verdict.
        EP_VERDICT = 256;
        /// Report drops.
        EP_DROPS = 512;
        /// Row of a device: packets leave by it, past the host's stack. On the world's row: routes are asked for.
        EP_ROUTE = 1024;
        /// Row of a device: what containers open with the world leaves under its addresses. On the world's row: some device has it.
        EP_MASQUERADE = 2048;
        /// A container without IPv4: `ip4` stands for it among those who have, and packets are translated.
        EP_NAT46 = 4096;
    }
}

c_consts! {
    /// `flags` of a flow entry. Side A is the smaller (address, port); "opener" is who sent the first packet.
    FLOW_FLAGS: u16 {
        /// Side B opened the flow.
        FLOW_OPENER_B = 1;
        /// A packet came back from the side that did not open it.
        FLOW_REPLY = 2;
        /// Side A sent FIN.
        FLOW_FIN_A = 4;
        /// Side B sent FIN.
        FLOW_FIN_B = 8;
        /// RST was seen.
        FLOW_RST = 16;
        /// Policy denies the flow; both directions drop.
        FLOW_DENY = 32;
        /// Taken up in the middle (no SYN was seen).
        FLOW_MIDSTREAM = 64;
        /// Deny verdict is not enforced (audit).
        FLOW_AUDIT = 128;
        /// Room for an L7 redirect: `aux` names its record.
        FLOW_PROXY = 256;
        /// A masqueraded flow as the world sees it; the opener is the node. Both slots are the container's, `aux` is its own port.
        FLOW_NAT = 512;
        /// `aux` names a record.
        FLOW_AUX = 1024;
        /// The opener's packets leave under the node's address. `aux` is the port there, 0 not chosen yet.
        FLOW_MASQUERADE = 2048;
        /// Any of these sends a packet to the slow path.
        FLOW_SLOW = 16 | 32 | 128 | 256 | 512 | 1024;
    }
}

c_consts! {
    /// `flags` of a policy rule.
    RULE_FLAGS: u8 {
        /// The rule denies.
        RULE_DENY = 1;
        /// Traffic goes through the L7 proxy of the rule record.
        RULE_L7 = 2;
        /// Mutual authentication is demanded.
        RULE_AUTH = 4;
        /// The verdict is reported.
        RULE_LOG = 8;
        /// Only in the last rule of a block: the block at `chain + 1` goes on.
        RULE_MORE = 64;
        /// The slot is used. A slot without it ends the block.
        RULE_USED = 128;
    }
}

c_consts! {
    /// `what` of a known denial, besides what its packets have in common.
    DENIAL_WHAT: u16 {
        /// Such a packet has passed since: the fast path looks for its flow again. Drops that nobody was told of are kept.
        DENIAL_ASIDE = 1;
    }
}

c_consts! {
    /// `counter` of a known denial, besides the index.
    DENIAL_COUNTER: u16 {
        /// Its packets are counted for having no flow too.
        DENIAL_NO_FLOW = 0x8000;
    }
}

c_consts! {
    /// Packet mark. Bits outside the mask belong to others and are never changed.
    MARKS: u32 {
        MARK_MASK = 0x0f00;
        /// A container's packet that is to leave under the node's address.
        MARK_MASQUERADE = 0x0100;
    }
}

c_consts! {
    /// `flags` of an ipcache entry.
    IPCACHE_FLAGS: u16 {
        /// Traffic to it leaves encapsulated (room for clusters).
        IPCACHE_TUNNEL = 1;
    }
}

c_consts! {
    /// `dir` of counters and events, as seen from the container.
    DIRECTIONS: u8 {
        DIR_EGRESS = 0;
        DIR_INGRESS = 1;
    }
}

c_consts! {
    /// `flags` of an event.
    EVENT_FLAGS: u8 {
        EVENT_IPV6 = 1;
        /// The verdict was reported but not enforced.
        EVENT_AUDIT = 2;
        /// The verdict allows.
        EVENT_ALLOW = 4;
        /// The packet starts at the Ethernet header.
        EVENT_L2 = 8;
    }
}

c_enum! {
    /// Identities with a fixed number; allocated ones start at 256.
    Reserved: u32 as "ID" {
        Unknown = 0, "UNKNOWN", "unknown";
        Host = 1, "HOST", "host";
        World = 2, "WORLD", "world";
        Unmanaged = 3, "UNMANAGED", "unmanaged";
        Health = 4, "HEALTH", "health";
        Init = 5, "INIT", "init";
        RemoteNode = 6, "REMOTE_NODE", "remote-node";
        KubeApiserver = 7, "KUBE_APISERVER", "kube-apiserver";
        Ingress = 8, "INGRESS", "ingress";
        WorldIpv4 = 9, "WORLD_IPV4", "world-ipv4";
        WorldIpv6 = 10, "WORLD_IPV6", "world-ipv6";
    }
}

c_enum! {
    /// What an event reports.
    EventKind: u8 as "EVENT" {
        Drop = 1, "DROP", "drop";
        Debug = 2, "DEBUG", "debug";
        Capture = 3, "CAPTURE", "capture";
        Trace = 4, "TRACE", "trace";
        Verdict = 5, "VERDICT", "policy-verdict";
    }
}

c_enum! {
    /// Where a traced packet was seen.
    TracePoint: u8 as "TRACE" {
        ToEndpoint = 0, "TO_ENDPOINT", "to-endpoint";
        ToProxy = 1, "TO_PROXY", "to-proxy";
        ToHost = 2, "TO_HOST", "to-host";
        ToStack = 3, "TO_STACK", "to-stack";
        ToOverlay = 4, "TO_OVERLAY", "to-overlay";
        FromEndpoint = 5, "FROM_ENDPOINT", "from-endpoint";
        FromHost = 7, "FROM_HOST", "from-host";
        ToNetwork = 9, "TO_NETWORK", "to-network";
        Reply = 10, "REPLY", "answered";
    }
}

c_enum! {
    /// How a packet stands to its flow.
    FlowState: u8 as "FLOW_STATE" {
        New = 0, "NEW", "new";
        Established = 1, "ESTABLISHED", "established";
        Reply = 2, "REPLY", "reply";
        Related = 3, "RELATED", "related";
        Reopened = 4, "REOPENED", "reopened";
        Revoked = 5, "REVOKED", "revoked";
        None = 6, "NONE", "none";
    }
}

c_enum! {
    /// Why a packet was dropped. Numbers that other tools print for the same reason are kept.
    DropReason: u8 as "DROP" {
        InvalidSourceMac = 130, "INVALID_SOURCE_MAC", "Invalid source mac";
        InvalidDestinationMac = 131, "INVALID_DESTINATION_MAC", "Invalid destination mac";
        InvalidSourceIp = 132, "INVALID_SOURCE_IP", "Invalid source ip";
        PolicyDenied = 133, "POLICY_DENIED", "Policy denied";
        InvalidPacket = 134, "INVALID_PACKET", "Invalid packet";
        TruncatedL4 = 135, "TRUNCATED_L4", "Truncated or invalid L4 header";
        UnsupportedL3 = 139, "UNSUPPORTED_L3", "Unsupported L3 protocol";
        MissedTailCall = 140, "MISSED_TAIL_CALL", "Missed tail call";
        WriteError = 141, "WRITE_ERROR", "Error writing to packet";
        UnknownTarget = 150, "UNKNOWN_TARGET", "Unknown L3 target address";
        NoEndpoint = 152, "NO_ENDPOINT", "No matching local endpoint found";
        FlowInsertFailed = 155, "FLOW_INSERT_FAILED", "Flow table insertion failed";
        InvalidExtensionHeader = 156, "INVALID_EXTENSION_HEADER", "Invalid IPv6 extension header";
        Fragment = 157, "FRAGMENT", "Fragments not supported";
        NatNoMapping = 161, "NAT_NO_MAPPING", "No mapping for NAT masquerade";
        NatUnsupported = 162, "NAT_UNSUPPORTED", "Unsupported protocol for NAT masquerade";
        PolicyDeny = 181, "POLICY_DENY", "Policy denied by denylist";
        FragmentUnknown = 188, "FRAGMENT_UNKNOWN", "First fragment not found";
        TtlExceeded = 196, "TTL_EXCEEDED", "TTL exceeded";
        Revoked = 210, "REVOKED", "Flow no longer allowed by policy";
        NoFlow = 211, "NO_FLOW", "No flow for this ICMP error";
        Multicast = 212, "MULTICAST", "Multicast or broadcast not forwarded";
        Neighbour = 213, "NEIGHBOUR", "Neighbour discovery not for the gateway";
        SlotMismatch = 214, "SLOT_MISMATCH", "Flow belongs to other endpoints";
        PolicyL7 = 215, "POLICY_L7", "No proxy for L7 rule";
        RedirectFailed = 216, "REDIRECT_FAILED", "Redirect failed";
        Custom = 217, "CUSTOM", "Dropped by custom program";
        InvalidDestination = 218, "INVALID_DESTINATION", "Destination address not routable";
        TooBig = 219, "TOO_BIG", "Packet too big";
        Nat46Fragment = 220, "NAT46_FRAGMENT", "Fragment cannot be translated between IPv6 and IPv4";
        Nat46Unsupported = 221, "NAT46_UNSUPPORTED", "Packet cannot be translated between IPv6 and IPv4";
    }
}

c_struct! {
    /// One row of the endpoint table, 64 bytes, index = slot. What changes while an endpoint lives is here, changed by
    /// one write; `epoch` only ever grows, also when the slot is used again.
    Endpoint as "endpoint" {
        epoch: u32,
        /// Host side interface (containers), `pilus_host` (host and world).
        ifindex: u32,
        /// MAC inside the container.
        mac: [u8; 6],
        /// MAC of the host side, the container's gateway.
        host_mac: [u8; 6],
        identity: u32,
        /// Policy ids: POLICY_NONE, POLICY_OPEN or the id of rule blocks.
        policy_in: u32,
        policy_out: u32,
        /// EP_* flags.
        flags: u32,
        ip4: Be32,
        ip6: [Be32; 4],
        /// IPv4 address of the node behind it (room for clusters).
        tunnel: Be32,
        /// The number people know it by.
        id: u16,
        /// MTU announced to the container, bytes.
        mtu: u16,
    }
}

c_struct! {
    /// Key of an IPv4 flow, sorted by (address, port) as they stand in memory: one entry for both directions.
    FlowKey4 as "flow_key4" {
        a: Be32,
        b: Be32,
        /// Ports; ICMP echo: identifier in both; other protocols 0.
        ap: Be16,
        bp: Be16,
        proto: u8,
        /// Address space (room for overlapping networks).
        zone: u8,
        pad: u16,
    }
}

c_struct! {
    /// Key of an IPv6 flow, as [`FlowKey4`]; an address counts as two words of 64 bits.
    FlowKey6 as "flow_key6" {
        a: [Be32; 4],
        b: [Be32; 4],
        ap: Be16,
        bp: Be16,
        proto: u8,
        zone: u8,
        pad: u16,
    }
}

c_struct! {
    /// What a packet of an established flow touches, 40 bytes. Direction 0 is from A to B.
    Flow as "flow" {
        bytes: [u64; 2],
        packets: [u32; 2],
        /// Low 32 bits of the kernel's jiffies when a packet was last seen.
        last: u32,
        /// Endpoint slot to deliver direction 0 and 1 to.
        ep: [u16; 2],
        /// Sum of both endpoints' epochs when the verdict was taken.
        epoch: u32,
        /// FLOW_* flags.
        flags: u16,
        /// A masqueraded flow's other port, as it stands in packets; else index of a record, 0 none (room for services, L7,
        /// affinity, DSR).
        aux: Be16,
    }
}

c_struct! {
    /// IPv4 flow entry: with its 16 byte key and the kernel's header exactly two cache lines.
    Flow4 as "flow4" {
        h: Flow,
        /// Rule records that decided, egress and ingress.
        rule: [u32; 2],
        src_id: u32,
        dst_id: u32,
        /// Jiffies at creation.
        created: u32,
        pad: u32,
    }
}

c_struct! {
    /// IPv6 flow entry: with its 40 byte key and the kernel's header exactly two cache lines.
    Flow6 as "flow6" {
        h: Flow,
    }
}

c_struct! {
    /// A refusal that the fast path repeats, 64 bytes: of packets that have no flow and may not open one. Each processor has its
    /// own, found by a hash of the key and compared in full.
    Denial as "denial" {
        /// Source and destination (IPv4: one word of 64 bits each), then ports and protocol, as they stand in the packet.
        key: [u64; 5],
        /// Sum of both endpoints' epochs, and of the flows opened at the place, when the verdict was taken. All only grow.
        epoch: u32,
        /// Low 32 bits of the kernel's jiffies from which on a packet is judged, and reported, anew.
        until: u32,
        /// Drops since the last report.
        untold: u32,
        /// Of sender and receiver.
        slot: [u16; 2],
        /// Rule records that are asked, egress and ingress.
        rule: [u16; 2],
        /// What its packets have in common besides the key: ether type ^ FROM_* << 1; and DENIAL_ASIDE. 0: unused.
        what: u16,
        /// Index of the counter: reason << 1 | direction; and DENIAL_NO_FLOW.
        counter: u16,
    }
}

c_struct! {
    /// Flows that were opened, by the place that a refusal of their tuple has.
    Opened as "opened" {
        flows: u32,
    }
}

c_struct! {
    /// Names one block of rules: policy id, direction and chain position, and the peer's identity (0 = any).
    PolicyKey as "policy_key" {
        /// `policy_id << 5 | direction << 4 | chain`
        policy: u32,
        identity: u32,
    }
}

c_struct! {
    /// One rule. First match in a block wins.
    PolicyRule as "policy_rule" {
        /// Destination ports, host order, both ends included; ICMP: types.
        lo: u16,
        hi: u16,
        /// IP protocol, 0 any.
        proto: u8,
        /// RULE_* flags.
        flags: u8,
        /// Index of the rule record.
        idx: u16,
    }
}

c_struct! {
    /// Eight rules: a 64 byte line.
    PolicyBlock as "policy_block" {
        rules: [PolicyRule; 8],
    }
}

c_struct! {
    /// What a rule index stands for.
    RuleRecord as "rule_record" {
        /// Listener of the L7 proxy (room).
        proxy_port: Be16,
        pad: u16,
        /// Chosen by user space, names the origin of the rule.
        cookie: u32,
    }
}

c_struct! {
    /// Packets and bytes.
    Counter as "counter" {
        packets: u64,
        bytes: u64,
    }
}

c_struct! {
    /// Key of the exact ipcache. IPv4 addresses stand in `addr[0]`.
    IpcacheKey as "ipcache_key" {
        addr: [Be32; 4],
        /// 4 or 6.
        family: u8,
        zone: u8,
        pad: u16,
    }
}

c_struct! {
    /// Key of the prefix ipcache; `prefixlen` counts from `family`, so it is 32 + the length of the prefix.
    IpcacheLpmKey as "ipcache_lpm_key" {
        prefixlen: u32,
        family: u8,
        zone: u8,
        pad: u16,
        addr: [Be32; 4],
    }
}

c_struct! {
    /// Who is behind an address.
    IpcacheEntry as "ipcache_entry" {
        identity: u32,
        /// IPv4 address of the node behind it, 0 local.
        tunnel: Be32,
        /// Endpoint slot to deliver to.
        slot: u16,
        /// IPCACHE_* flags.
        flags: u16,
    }
}

c_struct! {
    /// A neighbour that packets are sent to whatever their own address, as `bpf_redirect_neigh` takes it (uapi struct
    /// bpf_redir_neigh).
    NextHop as "next_hop" {
        /// The kernel's number: 2 for IPv4, 10 for IPv6; 0: none is known.
        family: u32,
        /// IPv4 in the first word.
        addr: [Be32; 4],
    }
}

c_struct! {
    /// A way out of the node: one of its devices, by interface index, and the next hop there.
    DeviceKey as "device_key" {
        ifindex: u32,
        /// As in [`NextHop`]; all 0: whichever the kernel's routes say for each packet.
        next_hop: NextHop,
    }
}

c_struct! {
    /// Its row among the endpoints.
    DeviceEntry as "device_entry" {
        slot: u32,
    }
}

c_struct! {
    /// The prefix behind which IPv4 addresses stand. One row.
    Nat46Range as "nat46_range" {
        /// Its 96 bits.
        prefix: [Be32; 3],
        pad: u32,
    }
}

c_struct! {
    /// A prefix that knows containers by their own addresses.
    DirectEntry as "direct_entry" {
        unused: u32,
    }
}

c_struct! {
    /// Names the datagram that a fragment is of (RFC 791, RFC 8200).
    FragKey as "frag_key" {
        saddr: [Be32; 4],
        daddr: [Be32; 4],
        /// As it stands in the header.
        id: u32,
        /// IPv4's protocol; 0 in IPv6, whose later fragments may not tell.
        proto: u8,
        /// 4 or 6.
        family: u8,
        pad: u16,
    }
}

c_struct! {
    /// What only the first fragment tells; written when it was let through.
    FragEntry as "frag_entry" {
        /// `CLOCK_MONOTONIC`, ns.
        time: u64,
        sport: Be16,
        dport: Be16,
        /// What policy compares, host order.
        port: u16,
        proto: u8,
        pad: u8,
    }
}

c_struct! {
    /// Idle times of flows, in jiffies. One row.
    FlowTimeouts as "flow_timeouts" {
        tcp: u32,
        /// Before a reply was seen.
        tcp_open: u32,
        /// After FIN in both directions, or RST.
        tcp_closing: u32,
        udp: u32,
        udp_reply: u32,
        icmp: u32,
        other: u32,
        /// A denied flow.
        deny: u32,
    }
}

c_struct! {
    /// What reports leave out. One row.
    Reporting as "reporting" {
        /// Of each interval of so many jiffies a flow's first packet is reported. Never 0: programs divide by both.
        interval: u32,
        /// Where all packets are wanted, one of so many of each side.
        sample: u32,
        /// Jiffies for which a refusal is repeated without being reported, DENIAL_LONGEST at most.
        drops: u32,
    }
}

c_struct! {
    /// An event: this header, then `EVENT_PAYLOAD` bytes of which `cap` are valid.
    Event as "event" {
        /// `CLOCK_MONOTONIC`, ns.
        time: u64,
        /// EVENT_* kind.
        kind: u8,
        /// Drop reason, trace point, or 0.
        reason: u8,
        /// DIR_*.
        dir: u8,
        /// EVENT_* flags.
        flags: u8,
        /// FLOW_STATE_*.
        state: u8,
        /// IP protocol.
        proto: u8,
        src_slot: u16,
        dst_slot: u16,
        /// Destination port, host order; ICMP type.
        dport: u16,
        src_id: u32,
        dst_id: u32,
        /// Index of the deciding rule record, 0 none.
        rule: u32,
        ifindex: u32,
        /// Bytes of the packet, and of them in `payload`.
        len: u32,
        cap: u32,
        /// Drops like this one that were not reported by themselves, since the last that was.
        untold: u32,
        pad: [u32; 2],
    }
}
