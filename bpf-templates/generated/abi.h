/* SPDX-License-Identifier: GPL-2.0 */
/* Printed by model::abi; edit the Rust declaration, then run `make generated`. */
#pragma once
#include <linux/types.h>

enum {
	ENDPOINT_SLOTS = 0x10000,
	SLOT_HOST = 0x1,
	SLOT_WORLD = 0x2,
	SLOT_DEVICES = 0x10,
	SLOT_NEXT_HOPS = 0x80,
	SLOT_FIRST = 0x100,
	SLOT_NODES = 0x8000,
	IFINDEX_BASE = 0x27100000,
	IFINDEX_NET = 0x27100001,
	POLICY_NONE = 0x0,
	POLICY_OPEN = 0x1,
	POLICY_FIRST = 0x2,
	POLICY_BLOCK_RULES = 0x8,
	POLICY_CHAIN = 0x10,
	RULE_RECORDS = 0x10000,
	EVENT_PAYLOAD = 0x80,
	REASON_EVENT_LOST = 0x1,
	REASON_NO_FLOW = 0x2,
	DENIAL_PLACES = 0x1000,
	DENIAL_LONGEST = 0x400000,
	NAT_FIRST = 0xee48,
};

enum {
	STAGE_SLOTS = 0x4,
	STAGE_SLOW = 0x0,
	STAGE_NAT = 0x1,
	STAGE_TRACE = 0x2,
};

enum {
	EP_VALID = 0x1,
	EP_STACK = 0x2,
	EP_RECEIVE = 0x4,
	EP_REMOTE = 0x8,
	EP_AUDIT_IN = 0x10,
	EP_AUDIT_OUT = 0x20,
	EP_TRACE_FLOW = 0x40,
	EP_TRACE_ALL = 0x80,
	EP_VERDICT = 0x100,
	EP_DROPS = 0x200,
	EP_ROUTE = 0x400,
	EP_MASQUERADE = 0x800,
	EP_NAT46 = 0x1000,
};

enum {
	FLOW_OPENER_B = 0x1,
	FLOW_REPLY = 0x2,
	FLOW_FIN_A = 0x4,
	FLOW_FIN_B = 0x8,
	FLOW_RST = 0x10,
	FLOW_DENY = 0x20,
	FLOW_MIDSTREAM = 0x40,
	FLOW_AUDIT = 0x80,
	FLOW_PROXY = 0x100,
	FLOW_NAT = 0x200,
	FLOW_AUX = 0x400,
	FLOW_MASQUERADE = 0x800,
	FLOW_SLOW = 0x7b0,
};

enum {
	RULE_DENY = 0x1,
	RULE_L7 = 0x2,
	RULE_AUTH = 0x4,
	RULE_LOG = 0x8,
	RULE_MORE = 0x40,
	RULE_USED = 0x80,
};

enum {
	DENIAL_ASIDE = 0x1,
};

enum {
	DENIAL_NO_FLOW = 0x8000,
};

enum {
	MARK_MASK = 0xf00,
	MARK_MASQUERADE = 0x100,
};

enum {
	IPCACHE_TUNNEL = 0x1,
};

enum {
	DIR_EGRESS = 0x0,
	DIR_INGRESS = 0x1,
};

enum {
	EVENT_IPV6 = 0x1,
	EVENT_AUDIT = 0x2,
	EVENT_ALLOW = 0x4,
	EVENT_L2 = 0x8,
};

enum {
	ID_UNKNOWN = 0,
	ID_HOST = 1,
	ID_WORLD = 2,
	ID_UNMANAGED = 3,
	ID_HEALTH = 4,
	ID_INIT = 5,
	ID_REMOTE_NODE = 6,
	ID_KUBE_APISERVER = 7,
	ID_INGRESS = 8,
	ID_WORLD_IPV4 = 9,
	ID_WORLD_IPV6 = 10,
};

enum {
	EVENT_DROP = 1,
	EVENT_DEBUG = 2,
	EVENT_CAPTURE = 3,
	EVENT_TRACE = 4,
	EVENT_VERDICT = 5,
};

enum {
	TRACE_TO_ENDPOINT = 0,
	TRACE_TO_PROXY = 1,
	TRACE_TO_HOST = 2,
	TRACE_TO_STACK = 3,
	TRACE_TO_OVERLAY = 4,
	TRACE_FROM_ENDPOINT = 5,
	TRACE_FROM_HOST = 7,
	TRACE_TO_NETWORK = 9,
	TRACE_REPLY = 10,
};

enum {
	FLOW_STATE_NEW = 0,
	FLOW_STATE_ESTABLISHED = 1,
	FLOW_STATE_REPLY = 2,
	FLOW_STATE_RELATED = 3,
	FLOW_STATE_REOPENED = 4,
	FLOW_STATE_REVOKED = 5,
	FLOW_STATE_NONE = 6,
};

enum {
	DROP_INVALID_SOURCE_MAC = 130,
	DROP_INVALID_DESTINATION_MAC = 131,
	DROP_INVALID_SOURCE_IP = 132,
	DROP_POLICY_DENIED = 133,
	DROP_INVALID_PACKET = 134,
	DROP_TRUNCATED_L4 = 135,
	DROP_UNSUPPORTED_L3 = 139,
	DROP_MISSED_TAIL_CALL = 140,
	DROP_WRITE_ERROR = 141,
	DROP_UNKNOWN_TARGET = 150,
	DROP_NO_ENDPOINT = 152,
	DROP_FLOW_INSERT_FAILED = 155,
	DROP_INVALID_EXTENSION_HEADER = 156,
	DROP_FRAGMENT = 157,
	DROP_NAT_NO_MAPPING = 161,
	DROP_NAT_UNSUPPORTED = 162,
	DROP_POLICY_DENY = 181,
	DROP_FRAGMENT_UNKNOWN = 188,
	DROP_TTL_EXCEEDED = 196,
	DROP_REVOKED = 210,
	DROP_NO_FLOW = 211,
	DROP_MULTICAST = 212,
	DROP_NEIGHBOUR = 213,
	DROP_SLOT_MISMATCH = 214,
	DROP_POLICY_L7 = 215,
	DROP_REDIRECT_FAILED = 216,
	DROP_CUSTOM = 217,
	DROP_INVALID_DESTINATION = 218,
	DROP_TOO_BIG = 219,
	DROP_NAT46_FRAGMENT = 220,
	DROP_NAT46_UNSUPPORTED = 221,
};

/* One row of the endpoint table, 64 bytes, index = slot. What changes while an endpoint lives is here, changed by one write; `epoch` only ever grows, also when the slot is used again. */
struct endpoint {
	__u32 epoch;
	__u32 ifindex; /* Host side interface (containers), `pilus_host` (host and world). */
	__u8 mac[6]; /* MAC inside the container. */
	__u8 host_mac[6]; /* MAC of the host side, the container's gateway. */
	__u32 identity;
	__u32 policy_in; /* Policy ids: POLICY_NONE, POLICY_OPEN or the id of rule blocks. */
	__u32 policy_out;
	__u32 flags; /* EP_* flags. */
	__be32 ip4;
	__be32 ip6[4];
	__be32 tunnel; /* IPv4 address of the node behind it (room for clusters). */
	__u16 id; /* The number people know it by. */
	__u16 mtu; /* MTU announced to the container, bytes. */
};
_Static_assert(sizeof(struct endpoint) == 64, "endpoint");
_Static_assert(__builtin_offsetof(struct endpoint, epoch) == 0, "endpoint.epoch");
_Static_assert(sizeof(((struct endpoint *)0)->epoch) == 4, "endpoint.epoch size");
_Static_assert(__builtin_offsetof(struct endpoint, ifindex) == 4, "endpoint.ifindex");
_Static_assert(sizeof(((struct endpoint *)0)->ifindex) == 4, "endpoint.ifindex size");
_Static_assert(__builtin_offsetof(struct endpoint, mac) == 8, "endpoint.mac");
_Static_assert(sizeof(((struct endpoint *)0)->mac) == 6, "endpoint.mac size");
_Static_assert(__builtin_offsetof(struct endpoint, host_mac) == 14, "endpoint.host_mac");
_Static_assert(sizeof(((struct endpoint *)0)->host_mac) == 6, "endpoint.host_mac size");
_Static_assert(__builtin_offsetof(struct endpoint, identity) == 20, "endpoint.identity");
_Static_assert(sizeof(((struct endpoint *)0)->identity) == 4, "endpoint.identity size");
_Static_assert(__builtin_offsetof(struct endpoint, policy_in) == 24, "endpoint.policy_in");
_Static_assert(sizeof(((struct endpoint *)0)->policy_in) == 4, "endpoint.policy_in size");
_Static_assert(__builtin_offsetof(struct endpoint, policy_out) == 28, "endpoint.policy_out");
_Static_assert(sizeof(((struct endpoint *)0)->policy_out) == 4, "endpoint.policy_out size");
_Static_assert(__builtin_offsetof(struct endpoint, flags) == 32, "endpoint.flags");
_Static_assert(sizeof(((struct endpoint *)0)->flags) == 4, "endpoint.flags size");
_Static_assert(__builtin_offsetof(struct endpoint, ip4) == 36, "endpoint.ip4");
_Static_assert(sizeof(((struct endpoint *)0)->ip4) == 4, "endpoint.ip4 size");
_Static_assert(__builtin_offsetof(struct endpoint, ip6) == 40, "endpoint.ip6");
_Static_assert(sizeof(((struct endpoint *)0)->ip6) == 16, "endpoint.ip6 size");
_Static_assert(__builtin_offsetof(struct endpoint, tunnel) == 56, "endpoint.tunnel");
_Static_assert(sizeof(((struct endpoint *)0)->tunnel) == 4, "endpoint.tunnel size");
_Static_assert(__builtin_offsetof(struct endpoint, id) == 60, "endpoint.id");
_Static_assert(sizeof(((struct endpoint *)0)->id) == 2, "endpoint.id size");
_Static_assert(__builtin_offsetof(struct endpoint, mtu) == 62, "endpoint.mtu");
_Static_assert(sizeof(((struct endpoint *)0)->mtu) == 2, "endpoint.mtu size");

/* Key of an IPv4 flow, sorted by (address, port) as they stand in memory: one entry for both directions. */
struct flow_key4 {
	__be32 a;
	__be32 b;
	__be16 ap; /* Ports; ICMP echo: identifier in both; other protocols 0. */
	__be16 bp;
	__u8 proto;
	__u8 zone; /* Address space (room for overlapping networks). */
	__u16 pad;
};
_Static_assert(sizeof(struct flow_key4) == 16, "flow_key4");
_Static_assert(__builtin_offsetof(struct flow_key4, a) == 0, "flow_key4.a");
_Static_assert(sizeof(((struct flow_key4 *)0)->a) == 4, "flow_key4.a size");
_Static_assert(__builtin_offsetof(struct flow_key4, b) == 4, "flow_key4.b");
_Static_assert(sizeof(((struct flow_key4 *)0)->b) == 4, "flow_key4.b size");
_Static_assert(__builtin_offsetof(struct flow_key4, ap) == 8, "flow_key4.ap");
_Static_assert(sizeof(((struct flow_key4 *)0)->ap) == 2, "flow_key4.ap size");
_Static_assert(__builtin_offsetof(struct flow_key4, bp) == 10, "flow_key4.bp");
_Static_assert(sizeof(((struct flow_key4 *)0)->bp) == 2, "flow_key4.bp size");
_Static_assert(__builtin_offsetof(struct flow_key4, proto) == 12, "flow_key4.proto");
_Static_assert(sizeof(((struct flow_key4 *)0)->proto) == 1, "flow_key4.proto size");
_Static_assert(__builtin_offsetof(struct flow_key4, zone) == 13, "flow_key4.zone");
_Static_assert(sizeof(((struct flow_key4 *)0)->zone) == 1, "flow_key4.zone size");
_Static_assert(__builtin_offsetof(struct flow_key4, pad) == 14, "flow_key4.pad");
_Static_assert(sizeof(((struct flow_key4 *)0)->pad) == 2, "flow_key4.pad size");

/* Key of an IPv6 flow, as [`FlowKey4`]; an address counts as two words of 64 bits. */
struct flow_key6 {
	__be32 a[4];
	__be32 b[4];
	__be16 ap;
	__be16 bp;
	__u8 proto;
	__u8 zone;
	__u16 pad;
};
_Static_assert(sizeof(struct flow_key6) == 40, "flow_key6");
_Static_assert(__builtin_offsetof(struct flow_key6, a) == 0, "flow_key6.a");
_Static_assert(sizeof(((struct flow_key6 *)0)->a) == 16, "flow_key6.a size");
_Static_assert(__builtin_offsetof(struct flow_key6, b) == 16, "flow_key6.b");
_Static_assert(sizeof(((struct flow_key6 *)0)->b) == 16, "flow_key6.b size");
_Static_assert(__builtin_offsetof(struct flow_key6, ap) == 32, "flow_key6.ap");
_Static_assert(sizeof(((struct flow_key6 *)0)->ap) == 2, "flow_key6.ap size");
_Static_assert(__builtin_offsetof(struct flow_key6, bp) == 34, "flow_key6.bp");
_Static_assert(sizeof(((struct flow_key6 *)0)->bp) == 2, "flow_key6.bp size");
_Static_assert(__builtin_offsetof(struct flow_key6, proto) == 36, "flow_key6.proto");
_Static_assert(sizeof(((struct flow_key6 *)0)->proto) == 1, "flow_key6.proto size");
_Static_assert(__builtin_offsetof(struct flow_key6, zone) == 37, "flow_key6.zone");
_Static_assert(sizeof(((struct flow_key6 *)0)->zone) == 1, "flow_key6.zone size");
_Static_assert(__builtin_offsetof(struct flow_key6, pad) == 38, "flow_key6.pad");
_Static_assert(sizeof(((struct flow_key6 *)0)->pad) == 2, "flow_key6.pad size");

/* What a packet of an established flow touches, 40 bytes. Direction 0 is from A to B. */
struct flow {
	__u64 bytes[2];
	__u32 packets[2];
	__u32 last; /* Low 32 bits of the kernel's jiffies when a packet was last seen. */
	__u16 ep[2]; /* Endpoint slot to deliver direction 0 and 1 to. */
	__u32 epoch; /* Sum of both endpoints' epochs when the verdict was taken. */
	__u16 flags; /* FLOW_* flags. */
	__be16 aux; /* A masqueraded flow's other port, as it stands in packets; else index of a record, 0 none (room for services, L7, affinity, DSR). */
};
_Static_assert(sizeof(struct flow) == 40, "flow");
_Static_assert(__builtin_offsetof(struct flow, bytes) == 0, "flow.bytes");
_Static_assert(sizeof(((struct flow *)0)->bytes) == 16, "flow.bytes size");
_Static_assert(__builtin_offsetof(struct flow, packets) == 16, "flow.packets");
_Static_assert(sizeof(((struct flow *)0)->packets) == 8, "flow.packets size");
_Static_assert(__builtin_offsetof(struct flow, last) == 24, "flow.last");
_Static_assert(sizeof(((struct flow *)0)->last) == 4, "flow.last size");
_Static_assert(__builtin_offsetof(struct flow, ep) == 28, "flow.ep");
_Static_assert(sizeof(((struct flow *)0)->ep) == 4, "flow.ep size");
_Static_assert(__builtin_offsetof(struct flow, epoch) == 32, "flow.epoch");
_Static_assert(sizeof(((struct flow *)0)->epoch) == 4, "flow.epoch size");
_Static_assert(__builtin_offsetof(struct flow, flags) == 36, "flow.flags");
_Static_assert(sizeof(((struct flow *)0)->flags) == 2, "flow.flags size");
_Static_assert(__builtin_offsetof(struct flow, aux) == 38, "flow.aux");
_Static_assert(sizeof(((struct flow *)0)->aux) == 2, "flow.aux size");

/* IPv4 flow entry: with its 16 byte key and the kernel's header exactly two cache lines. */
struct flow4 {
	struct flow h;
	__u32 rule[2]; /* Rule records that decided, egress and ingress. */
	__u32 src_id;
	__u32 dst_id;
	__u32 created; /* Jiffies at creation. */
	__u32 pad;
};
_Static_assert(sizeof(struct flow4) == 64, "flow4");
_Static_assert(__builtin_offsetof(struct flow4, h) == 0, "flow4.h");
_Static_assert(sizeof(((struct flow4 *)0)->h) == 40, "flow4.h size");
_Static_assert(__builtin_offsetof(struct flow4, rule) == 40, "flow4.rule");
_Static_assert(sizeof(((struct flow4 *)0)->rule) == 8, "flow4.rule size");
_Static_assert(__builtin_offsetof(struct flow4, src_id) == 48, "flow4.src_id");
_Static_assert(sizeof(((struct flow4 *)0)->src_id) == 4, "flow4.src_id size");
_Static_assert(__builtin_offsetof(struct flow4, dst_id) == 52, "flow4.dst_id");
_Static_assert(sizeof(((struct flow4 *)0)->dst_id) == 4, "flow4.dst_id size");
_Static_assert(__builtin_offsetof(struct flow4, created) == 56, "flow4.created");
_Static_assert(sizeof(((struct flow4 *)0)->created) == 4, "flow4.created size");
_Static_assert(__builtin_offsetof(struct flow4, pad) == 60, "flow4.pad");
_Static_assert(sizeof(((struct flow4 *)0)->pad) == 4, "flow4.pad size");

/* IPv6 flow entry: with its 40 byte key and the kernel's header exactly two cache lines. */
struct flow6 {
	struct flow h;
};
_Static_assert(sizeof(struct flow6) == 40, "flow6");
_Static_assert(__builtin_offsetof(struct flow6, h) == 0, "flow6.h");
_Static_assert(sizeof(((struct flow6 *)0)->h) == 40, "flow6.h size");

/* A refusal that the fast path repeats, 64 bytes: of packets that have no flow and may not open one. Each processor has its own, found by a hash of the key and compared in full. */
struct denial {
	__u64 key[5]; /* Source and destination (IPv4: one word of 64 bits each), then ports and protocol, as they stand in the packet. */
	__u32 epoch; /* Sum of both endpoints' epochs, and of the flows opened at the place, when the verdict was taken. All only grow. */
	__u32 until; /* Low 32 bits of the kernel's jiffies from which on a packet is judged, and reported, anew. */
	__u32 untold; /* Drops since the last report. */
	__u16 slot[2]; /* Of sender and receiver. */
	__u16 rule[2]; /* Rule records that are asked, egress and ingress. */
	__u16 what; /* What its packets have in common besides the key: ether type ^ FROM_* << 1; and DENIAL_ASIDE. 0: unused. */
	__u16 counter; /* Index of the counter: reason << 1 | direction; and DENIAL_NO_FLOW. */
};
_Static_assert(sizeof(struct denial) == 64, "denial");
_Static_assert(__builtin_offsetof(struct denial, key) == 0, "denial.key");
_Static_assert(sizeof(((struct denial *)0)->key) == 40, "denial.key size");
_Static_assert(__builtin_offsetof(struct denial, epoch) == 40, "denial.epoch");
_Static_assert(sizeof(((struct denial *)0)->epoch) == 4, "denial.epoch size");
_Static_assert(__builtin_offsetof(struct denial, until) == 44, "denial.until");
_Static_assert(sizeof(((struct denial *)0)->until) == 4, "denial.until size");
_Static_assert(__builtin_offsetof(struct denial, untold) == 48, "denial.untold");
_Static_assert(sizeof(((struct denial *)0)->untold) == 4, "denial.untold size");
_Static_assert(__builtin_offsetof(struct denial, slot) == 52, "denial.slot");
_Static_assert(sizeof(((struct denial *)0)->slot) == 4, "denial.slot size");
_Static_assert(__builtin_offsetof(struct denial, rule) == 56, "denial.rule");
_Static_assert(sizeof(((struct denial *)0)->rule) == 4, "denial.rule size");
_Static_assert(__builtin_offsetof(struct denial, what) == 60, "denial.what");
_Static_assert(sizeof(((struct denial *)0)->what) == 2, "denial.what size");
_Static_assert(__builtin_offsetof(struct denial, counter) == 62, "denial.counter");
_Static_assert(sizeof(((struct denial *)0)->counter) == 2, "denial.counter size");

/* Flows that were opened, by the place that a refusal of their tuple has. */
struct opened {
	__u32 flows;
};
_Static_assert(sizeof(struct opened) == 4, "opened");
_Static_assert(__builtin_offsetof(struct opened, flows) == 0, "opened.flows");
_Static_assert(sizeof(((struct opened *)0)->flows) == 4, "opened.flows size");

/* Names one block of rules: policy id, direction and chain position, and the peer's identity (0 = any). */
struct policy_key {
	__u32 policy; /* `policy_id << 5 | direction << 4 | chain` */
	__u32 identity;
};
_Static_assert(sizeof(struct policy_key) == 8, "policy_key");
_Static_assert(__builtin_offsetof(struct policy_key, policy) == 0, "policy_key.policy");
_Static_assert(sizeof(((struct policy_key *)0)->policy) == 4, "policy_key.policy size");
_Static_assert(__builtin_offsetof(struct policy_key, identity) == 4, "policy_key.identity");
_Static_assert(sizeof(((struct policy_key *)0)->identity) == 4, "policy_key.identity size");

/* One rule. First match in a block wins. */
struct policy_rule {
	__u16 lo; /* Destination ports, host order, both ends included; ICMP: types. */
	__u16 hi;
	__u8 proto; /* IP protocol, 0 any. */
	__u8 flags; /* RULE_* flags. */
	__u16 idx; /* Index of the rule record. */
};
_Static_assert(sizeof(struct policy_rule) == 8, "policy_rule");
_Static_assert(__builtin_offsetof(struct policy_rule, lo) == 0, "policy_rule.lo");
_Static_assert(sizeof(((struct policy_rule *)0)->lo) == 2, "policy_rule.lo size");
_Static_assert(__builtin_offsetof(struct policy_rule, hi) == 2, "policy_rule.hi");
_Static_assert(sizeof(((struct policy_rule *)0)->hi) == 2, "policy_rule.hi size");
_Static_assert(__builtin_offsetof(struct policy_rule, proto) == 4, "policy_rule.proto");
_Static_assert(sizeof(((struct policy_rule *)0)->proto) == 1, "policy_rule.proto size");
_Static_assert(__builtin_offsetof(struct policy_rule, flags) == 5, "policy_rule.flags");
_Static_assert(sizeof(((struct policy_rule *)0)->flags) == 1, "policy_rule.flags size");
_Static_assert(__builtin_offsetof(struct policy_rule, idx) == 6, "policy_rule.idx");
_Static_assert(sizeof(((struct policy_rule *)0)->idx) == 2, "policy_rule.idx size");

/* Eight rules: a 64 byte line. */
struct policy_block {
	struct policy_rule rules[8];
};
_Static_assert(sizeof(struct policy_block) == 64, "policy_block");
_Static_assert(__builtin_offsetof(struct policy_block, rules) == 0, "policy_block.rules");
_Static_assert(sizeof(((struct policy_block *)0)->rules) == 64, "policy_block.rules size");

/* What a rule index stands for. */
struct rule_record {
	__be16 proxy_port; /* Listener of the L7 proxy (room). */
	__u16 pad;
	__u32 cookie; /* Chosen by user space, names the origin of the rule. */
};
_Static_assert(sizeof(struct rule_record) == 8, "rule_record");
_Static_assert(__builtin_offsetof(struct rule_record, proxy_port) == 0, "rule_record.proxy_port");
_Static_assert(sizeof(((struct rule_record *)0)->proxy_port) == 2, "rule_record.proxy_port size");
_Static_assert(__builtin_offsetof(struct rule_record, pad) == 2, "rule_record.pad");
_Static_assert(sizeof(((struct rule_record *)0)->pad) == 2, "rule_record.pad size");
_Static_assert(__builtin_offsetof(struct rule_record, cookie) == 4, "rule_record.cookie");
_Static_assert(sizeof(((struct rule_record *)0)->cookie) == 4, "rule_record.cookie size");

/* Packets and bytes. */
struct counter {
	__u64 packets;
	__u64 bytes;
};
_Static_assert(sizeof(struct counter) == 16, "counter");
_Static_assert(__builtin_offsetof(struct counter, packets) == 0, "counter.packets");
_Static_assert(sizeof(((struct counter *)0)->packets) == 8, "counter.packets size");
_Static_assert(__builtin_offsetof(struct counter, bytes) == 8, "counter.bytes");
_Static_assert(sizeof(((struct counter *)0)->bytes) == 8, "counter.bytes size");

/* Key of the exact ipcache. IPv4 addresses stand in `addr[0]`. */
struct ipcache_key {
	__be32 addr[4];
	__u8 family; /* 4 or 6. */
	__u8 zone;
	__u16 pad;
};
_Static_assert(sizeof(struct ipcache_key) == 20, "ipcache_key");
_Static_assert(__builtin_offsetof(struct ipcache_key, addr) == 0, "ipcache_key.addr");
_Static_assert(sizeof(((struct ipcache_key *)0)->addr) == 16, "ipcache_key.addr size");
_Static_assert(__builtin_offsetof(struct ipcache_key, family) == 16, "ipcache_key.family");
_Static_assert(sizeof(((struct ipcache_key *)0)->family) == 1, "ipcache_key.family size");
_Static_assert(__builtin_offsetof(struct ipcache_key, zone) == 17, "ipcache_key.zone");
_Static_assert(sizeof(((struct ipcache_key *)0)->zone) == 1, "ipcache_key.zone size");
_Static_assert(__builtin_offsetof(struct ipcache_key, pad) == 18, "ipcache_key.pad");
_Static_assert(sizeof(((struct ipcache_key *)0)->pad) == 2, "ipcache_key.pad size");

/* Key of the prefix ipcache; `prefixlen` counts from `family`, so it is 32 + the length of the prefix. */
struct ipcache_lpm_key {
	__u32 prefixlen;
	__u8 family;
	__u8 zone;
	__u16 pad;
	__be32 addr[4];
};
_Static_assert(sizeof(struct ipcache_lpm_key) == 24, "ipcache_lpm_key");
_Static_assert(__builtin_offsetof(struct ipcache_lpm_key, prefixlen) == 0, "ipcache_lpm_key.prefixlen");
_Static_assert(sizeof(((struct ipcache_lpm_key *)0)->prefixlen) == 4, "ipcache_lpm_key.prefixlen size");
_Static_assert(__builtin_offsetof(struct ipcache_lpm_key, family) == 4, "ipcache_lpm_key.family");
_Static_assert(sizeof(((struct ipcache_lpm_key *)0)->family) == 1, "ipcache_lpm_key.family size");
_Static_assert(__builtin_offsetof(struct ipcache_lpm_key, zone) == 5, "ipcache_lpm_key.zone");
_Static_assert(sizeof(((struct ipcache_lpm_key *)0)->zone) == 1, "ipcache_lpm_key.zone size");
_Static_assert(__builtin_offsetof(struct ipcache_lpm_key, pad) == 6, "ipcache_lpm_key.pad");
_Static_assert(sizeof(((struct ipcache_lpm_key *)0)->pad) == 2, "ipcache_lpm_key.pad size");
_Static_assert(__builtin_offsetof(struct ipcache_lpm_key, addr) == 8, "ipcache_lpm_key.addr");
_Static_assert(sizeof(((struct ipcache_lpm_key *)0)->addr) == 16, "ipcache_lpm_key.addr size");

/* Who is behind an address. */
struct ipcache_entry {
	__u32 identity;
	__be32 tunnel; /* IPv4 address of the node behind it, 0 local. */
	__u16 slot; /* Endpoint slot to deliver to. */
	__u16 flags; /* IPCACHE_* flags. */
};
_Static_assert(sizeof(struct ipcache_entry) == 12, "ipcache_entry");
_Static_assert(__builtin_offsetof(struct ipcache_entry, identity) == 0, "ipcache_entry.identity");
_Static_assert(sizeof(((struct ipcache_entry *)0)->identity) == 4, "ipcache_entry.identity size");
_Static_assert(__builtin_offsetof(struct ipcache_entry, tunnel) == 4, "ipcache_entry.tunnel");
_Static_assert(sizeof(((struct ipcache_entry *)0)->tunnel) == 4, "ipcache_entry.tunnel size");
_Static_assert(__builtin_offsetof(struct ipcache_entry, slot) == 8, "ipcache_entry.slot");
_Static_assert(sizeof(((struct ipcache_entry *)0)->slot) == 2, "ipcache_entry.slot size");
_Static_assert(__builtin_offsetof(struct ipcache_entry, flags) == 10, "ipcache_entry.flags");
_Static_assert(sizeof(((struct ipcache_entry *)0)->flags) == 2, "ipcache_entry.flags size");

/* A neighbour that packets are sent to whatever their own address, as `bpf_redirect_neigh` takes it (uapi struct bpf_redir_neigh). */
struct next_hop {
	__u32 family; /* The kernel's number: 2 for IPv4, 10 for IPv6; 0: none is known. */
	__be32 addr[4]; /* IPv4 in the first word. */
};
_Static_assert(sizeof(struct next_hop) == 20, "next_hop");
_Static_assert(__builtin_offsetof(struct next_hop, family) == 0, "next_hop.family");
_Static_assert(sizeof(((struct next_hop *)0)->family) == 4, "next_hop.family size");
_Static_assert(__builtin_offsetof(struct next_hop, addr) == 4, "next_hop.addr");
_Static_assert(sizeof(((struct next_hop *)0)->addr) == 16, "next_hop.addr size");

/* A way out of the node: one of its devices, by interface index, and the next hop there. */
struct device_key {
	__u32 ifindex;
	struct next_hop next_hop; /* As in [`NextHop`]; all 0: whichever the kernel's routes say for each packet. */
};
_Static_assert(sizeof(struct device_key) == 24, "device_key");
_Static_assert(__builtin_offsetof(struct device_key, ifindex) == 0, "device_key.ifindex");
_Static_assert(sizeof(((struct device_key *)0)->ifindex) == 4, "device_key.ifindex size");
_Static_assert(__builtin_offsetof(struct device_key, next_hop) == 4, "device_key.next_hop");
_Static_assert(sizeof(((struct device_key *)0)->next_hop) == 20, "device_key.next_hop size");

/* Its row among the endpoints. */
struct device_entry {
	__u32 slot;
};
_Static_assert(sizeof(struct device_entry) == 4, "device_entry");
_Static_assert(__builtin_offsetof(struct device_entry, slot) == 0, "device_entry.slot");
_Static_assert(sizeof(((struct device_entry *)0)->slot) == 4, "device_entry.slot size");

/* A prefix that knows containers by their own addresses. */
struct direct_entry {
	__u32 unused;
};
_Static_assert(sizeof(struct direct_entry) == 4, "direct_entry");
_Static_assert(__builtin_offsetof(struct direct_entry, unused) == 0, "direct_entry.unused");
_Static_assert(sizeof(((struct direct_entry *)0)->unused) == 4, "direct_entry.unused size");

/* The prefix behind which IPv4 addresses stand. One row. */
struct nat46_range {
	__be32 prefix[3]; /* Its 96 bits. */
	__u32 pad;
};
_Static_assert(sizeof(struct nat46_range) == 16, "nat46_range");
_Static_assert(__builtin_offsetof(struct nat46_range, prefix) == 0, "nat46_range.prefix");
_Static_assert(sizeof(((struct nat46_range *)0)->prefix) == 12, "nat46_range.prefix size");
_Static_assert(__builtin_offsetof(struct nat46_range, pad) == 12, "nat46_range.pad");
_Static_assert(sizeof(((struct nat46_range *)0)->pad) == 4, "nat46_range.pad size");

/* Names the datagram that a fragment is of (RFC 791, RFC 8200). */
struct frag_key {
	__be32 saddr[4];
	__be32 daddr[4];
	__u32 id; /* As it stands in the header. */
	__u8 proto; /* IPv4's protocol; 0 in IPv6, whose later fragments may not tell. */
	__u8 family; /* 4 or 6. */
	__u16 pad;
};
_Static_assert(sizeof(struct frag_key) == 40, "frag_key");
_Static_assert(__builtin_offsetof(struct frag_key, saddr) == 0, "frag_key.saddr");
_Static_assert(sizeof(((struct frag_key *)0)->saddr) == 16, "frag_key.saddr size");
_Static_assert(__builtin_offsetof(struct frag_key, daddr) == 16, "frag_key.daddr");
_Static_assert(sizeof(((struct frag_key *)0)->daddr) == 16, "frag_key.daddr size");
_Static_assert(__builtin_offsetof(struct frag_key, id) == 32, "frag_key.id");
_Static_assert(sizeof(((struct frag_key *)0)->id) == 4, "frag_key.id size");
_Static_assert(__builtin_offsetof(struct frag_key, proto) == 36, "frag_key.proto");
_Static_assert(sizeof(((struct frag_key *)0)->proto) == 1, "frag_key.proto size");
_Static_assert(__builtin_offsetof(struct frag_key, family) == 37, "frag_key.family");
_Static_assert(sizeof(((struct frag_key *)0)->family) == 1, "frag_key.family size");
_Static_assert(__builtin_offsetof(struct frag_key, pad) == 38, "frag_key.pad");
_Static_assert(sizeof(((struct frag_key *)0)->pad) == 2, "frag_key.pad size");

/* What only the first fragment tells; written when it was let through. */
struct frag_entry {
	__u64 time; /* `CLOCK_MONOTONIC`, ns. */
	__be16 sport;
	__be16 dport;
	__u16 port; /* What policy compares, host order. */
	__u8 proto;
	__u8 pad;
};
_Static_assert(sizeof(struct frag_entry) == 16, "frag_entry");
_Static_assert(__builtin_offsetof(struct frag_entry, time) == 0, "frag_entry.time");
_Static_assert(sizeof(((struct frag_entry *)0)->time) == 8, "frag_entry.time size");
_Static_assert(__builtin_offsetof(struct frag_entry, sport) == 8, "frag_entry.sport");
_Static_assert(sizeof(((struct frag_entry *)0)->sport) == 2, "frag_entry.sport size");
_Static_assert(__builtin_offsetof(struct frag_entry, dport) == 10, "frag_entry.dport");
_Static_assert(sizeof(((struct frag_entry *)0)->dport) == 2, "frag_entry.dport size");
_Static_assert(__builtin_offsetof(struct frag_entry, port) == 12, "frag_entry.port");
_Static_assert(sizeof(((struct frag_entry *)0)->port) == 2, "frag_entry.port size");
_Static_assert(__builtin_offsetof(struct frag_entry, proto) == 14, "frag_entry.proto");
_Static_assert(sizeof(((struct frag_entry *)0)->proto) == 1, "frag_entry.proto size");
_Static_assert(__builtin_offsetof(struct frag_entry, pad) == 15, "frag_entry.pad");
_Static_assert(sizeof(((struct frag_entry *)0)->pad) == 1, "frag_entry.pad size");

/* Idle times of flows, in jiffies. One row. */
struct flow_timeouts {
	__u32 tcp;
	__u32 tcp_open; /* Before a reply was seen. */
	__u32 tcp_closing; /* After FIN in both directions, or RST. */
	__u32 udp;
	__u32 udp_reply;
	__u32 icmp;
	__u32 other;
	__u32 deny; /* A denied flow. */
};
_Static_assert(sizeof(struct flow_timeouts) == 32, "flow_timeouts");
_Static_assert(__builtin_offsetof(struct flow_timeouts, tcp) == 0, "flow_timeouts.tcp");
_Static_assert(sizeof(((struct flow_timeouts *)0)->tcp) == 4, "flow_timeouts.tcp size");
_Static_assert(__builtin_offsetof(struct flow_timeouts, tcp_open) == 4, "flow_timeouts.tcp_open");
_Static_assert(sizeof(((struct flow_timeouts *)0)->tcp_open) == 4, "flow_timeouts.tcp_open size");
_Static_assert(__builtin_offsetof(struct flow_timeouts, tcp_closing) == 8, "flow_timeouts.tcp_closing");
_Static_assert(sizeof(((struct flow_timeouts *)0)->tcp_closing) == 4, "flow_timeouts.tcp_closing size");
_Static_assert(__builtin_offsetof(struct flow_timeouts, udp) == 12, "flow_timeouts.udp");
_Static_assert(sizeof(((struct flow_timeouts *)0)->udp) == 4, "flow_timeouts.udp size");
_Static_assert(__builtin_offsetof(struct flow_timeouts, udp_reply) == 16, "flow_timeouts.udp_reply");
_Static_assert(sizeof(((struct flow_timeouts *)0)->udp_reply) == 4, "flow_timeouts.udp_reply size");
_Static_assert(__builtin_offsetof(struct flow_timeouts, icmp) == 20, "flow_timeouts.icmp");
_Static_assert(sizeof(((struct flow_timeouts *)0)->icmp) == 4, "flow_timeouts.icmp size");
_Static_assert(__builtin_offsetof(struct flow_timeouts, other) == 24, "flow_timeouts.other");
_Static_assert(sizeof(((struct flow_timeouts *)0)->other) == 4, "flow_timeouts.other size");
_Static_assert(__builtin_offsetof(struct flow_timeouts, deny) == 28, "flow_timeouts.deny");
_Static_assert(sizeof(((struct flow_timeouts *)0)->deny) == 4, "flow_timeouts.deny size");

/* What reports leave out. One row. */
struct reporting {
	__u32 interval; /* Of each interval of so many jiffies a flow's first packet is reported. Never 0: programs divide by both. */
	__u32 sample; /* Where all packets are wanted, one of so many of each side. */
	__u32 drops; /* Jiffies for which a refusal is repeated without being reported, DENIAL_LONGEST at most. */
};
_Static_assert(sizeof(struct reporting) == 12, "reporting");
_Static_assert(__builtin_offsetof(struct reporting, interval) == 0, "reporting.interval");
_Static_assert(sizeof(((struct reporting *)0)->interval) == 4, "reporting.interval size");
_Static_assert(__builtin_offsetof(struct reporting, sample) == 4, "reporting.sample");
_Static_assert(sizeof(((struct reporting *)0)->sample) == 4, "reporting.sample size");
_Static_assert(__builtin_offsetof(struct reporting, drops) == 8, "reporting.drops");
_Static_assert(sizeof(((struct reporting *)0)->drops) == 4, "reporting.drops size");

/* An event: this header, then `EVENT_PAYLOAD` bytes of which `cap` are valid. */
struct event {
	__u64 time; /* `CLOCK_MONOTONIC`, ns. */
	__u8 kind; /* EVENT_* kind. */
	__u8 reason; /* Drop reason, trace point, or 0. */
	__u8 dir; /* DIR_*. */
	__u8 flags; /* EVENT_* flags. */
	__u8 state; /* FLOW_STATE_*. */
	__u8 proto; /* IP protocol. */
	__u16 src_slot;
	__u16 dst_slot;
	__u16 dport; /* Destination port, host order; ICMP type. */
	__u32 src_id;
	__u32 dst_id;
	__u32 rule; /* Index of the deciding rule record, 0 none. */
	__u32 ifindex;
	__u32 len; /* Bytes of the packet, and of them in `payload`. */
	__u32 cap;
	__u32 untold; /* Drops like this one that were not reported by themselves, since the last that was. */
	__u32 pad[2];
};
_Static_assert(sizeof(struct event) == 56, "event");
_Static_assert(__builtin_offsetof(struct event, time) == 0, "event.time");
_Static_assert(sizeof(((struct event *)0)->time) == 8, "event.time size");
_Static_assert(__builtin_offsetof(struct event, kind) == 8, "event.kind");
_Static_assert(sizeof(((struct event *)0)->kind) == 1, "event.kind size");
_Static_assert(__builtin_offsetof(struct event, reason) == 9, "event.reason");
_Static_assert(sizeof(((struct event *)0)->reason) == 1, "event.reason size");
_Static_assert(__builtin_offsetof(struct event, dir) == 10, "event.dir");
_Static_assert(sizeof(((struct event *)0)->dir) == 1, "event.dir size");
_Static_assert(__builtin_offsetof(struct event, flags) == 11, "event.flags");
_Static_assert(sizeof(((struct event *)0)->flags) == 1, "event.flags size");
_Static_assert(__builtin_offsetof(struct event, state) == 12, "event.state");
_Static_assert(sizeof(((struct event *)0)->state) == 1, "event.state size");
_Static_assert(__builtin_offsetof(struct event, proto) == 13, "event.proto");
_Static_assert(sizeof(((struct event *)0)->proto) == 1, "event.proto size");
_Static_assert(__builtin_offsetof(struct event, src_slot) == 14, "event.src_slot");
_Static_assert(sizeof(((struct event *)0)->src_slot) == 2, "event.src_slot size");
_Static_assert(__builtin_offsetof(struct event, dst_slot) == 16, "event.dst_slot");
_Static_assert(sizeof(((struct event *)0)->dst_slot) == 2, "event.dst_slot size");
_Static_assert(__builtin_offsetof(struct event, dport) == 18, "event.dport");
_Static_assert(sizeof(((struct event *)0)->dport) == 2, "event.dport size");
_Static_assert(__builtin_offsetof(struct event, src_id) == 20, "event.src_id");
_Static_assert(sizeof(((struct event *)0)->src_id) == 4, "event.src_id size");
_Static_assert(__builtin_offsetof(struct event, dst_id) == 24, "event.dst_id");
_Static_assert(sizeof(((struct event *)0)->dst_id) == 4, "event.dst_id size");
_Static_assert(__builtin_offsetof(struct event, rule) == 28, "event.rule");
_Static_assert(sizeof(((struct event *)0)->rule) == 4, "event.rule size");
_Static_assert(__builtin_offsetof(struct event, ifindex) == 32, "event.ifindex");
_Static_assert(sizeof(((struct event *)0)->ifindex) == 4, "event.ifindex size");
_Static_assert(__builtin_offsetof(struct event, len) == 36, "event.len");
_Static_assert(sizeof(((struct event *)0)->len) == 4, "event.len size");
_Static_assert(__builtin_offsetof(struct event, cap) == 40, "event.cap");
_Static_assert(sizeof(((struct event *)0)->cap) == 4, "event.cap size");
_Static_assert(__builtin_offsetof(struct event, untold) == 44, "event.untold");
_Static_assert(sizeof(((struct event *)0)->untold) == 4, "event.untold size");
_Static_assert(__builtin_offsetof(struct event, pad) == 48, "event.pad");
_Static_assert(sizeof(((struct event *)0)->pad) == 8, "event.pad size");

