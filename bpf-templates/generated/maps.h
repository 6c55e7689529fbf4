/* SPDX-License-Identifier: GPL-2.0 */
/* Printed by model::abi; edit the Rust declaration, then run `make generated`. */
#pragma once
#include "abi.h"
#include <bpf.h>

/* Rows of local containers, host, world and remote nodes. */
#define TABLE_endpoint \
struct { \
	__uint(type, BPF_MAP_TYPE_ARRAY); \
	__type(key, __u32); \
	__type(value, struct endpoint); \
	__uint(max_entries, 65536); \
	__uint(pinning, LIBBPF_PIN_BY_NAME); \
} endpoint SEC(".maps")

/* IPv4 flows: conntrack and forwarding in one entry. */
#define TABLE_flow4 \
struct { \
	__uint(type, BPF_MAP_TYPE_LRU_HASH); \
	__type(key, struct flow_key4); \
	__type(value, struct flow4); \
	__uint(max_entries, 262144); \
	__uint(pinning, LIBBPF_PIN_BY_NAME); \
} flow4 SEC(".maps")

/* IPv6 flows. */
#define TABLE_flow6 \
struct { \
	__uint(type, BPF_MAP_TYPE_LRU_HASH); \
	__type(key, struct flow_key6); \
	__type(value, struct flow6); \
	__uint(max_entries, 262144); \
	__uint(pinning, LIBBPF_PIN_BY_NAME); \
} flow6 SEC(".maps")

/* Immutable policies, as blocks of rules. */
#define TABLE_policy \
struct { \
	__uint(type, BPF_MAP_TYPE_HASH); \
	__type(key, struct policy_key); \
	__type(value, struct policy_block); \
	__uint(max_entries, 131072); \
	__uint(pinning, LIBBPF_PIN_BY_NAME); \
} policy SEC(".maps")

/* What a rule index stands for. */
#define TABLE_rule_record \
struct { \
	__uint(type, BPF_MAP_TYPE_ARRAY); \
	__type(key, __u32); \
	__type(value, struct rule_record); \
	__uint(max_entries, 65536); \
	__uint(pinning, LIBBPF_PIN_BY_NAME); \
} rule_record SEC(".maps")

/* First packets that a rule decided. */
#define TABLE_rule_count \
struct { \
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY); \
	__type(key, __u32); \
	__type(value, struct counter); \
	__uint(max_entries, 65536); \
	__uint(pinning, LIBBPF_PIN_BY_NAME); \
} rule_count SEC(".maps")

/* Exact addresses: who is behind them. */
#define TABLE_ipcache \
struct { \
	__uint(type, BPF_MAP_TYPE_HASH); \
	__type(key, struct ipcache_key); \
	__type(value, struct ipcache_entry); \
	__uint(max_entries, 131072); \
	__uint(pinning, LIBBPF_PIN_BY_NAME); \
} ipcache SEC(".maps")

/* Prefixes, asked when the exact table does not know. */
#define TABLE_ipcache_lpm \
struct { \
	__uint(type, BPF_MAP_TYPE_LPM_TRIE); \
	__type(key, struct ipcache_lpm_key); \
	__type(value, struct ipcache_entry); \
	__uint(max_entries, 65536); \
	__uint(map_flags, BPF_F_NO_PREALLOC); \
	__uint(pinning, LIBBPF_PIN_BY_NAME); \
} ipcache_lpm SEC(".maps")

/* Ways out of the node that pass its stack by: a device, and a next hop. */
#define TABLE_device \
struct { \
	__uint(type, BPF_MAP_TYPE_HASH); \
	__type(key, struct device_key); \
	__type(value, struct device_entry); \
	__uint(max_entries, 256); \
	__uint(pinning, LIBBPF_PIN_BY_NAME); \
} device SEC(".maps")

/* Next hops of the rows of ways out, by slot. */
#define TABLE_next_hop \
struct { \
	__uint(type, BPF_MAP_TYPE_ARRAY); \
	__type(key, __u32); \
	__type(value, struct next_hop); \
	__uint(max_entries, 256); \
	__uint(pinning, LIBBPF_PIN_BY_NAME); \
} next_hop SEC(".maps")

/* Prefixes that containers meet under their own addresses. */
#define TABLE_direct \
struct { \
	__uint(type, BPF_MAP_TYPE_LPM_TRIE); \
	__type(key, struct ipcache_lpm_key); \
	__type(value, struct direct_entry); \
	__uint(max_entries, 4096); \
	__uint(map_flags, BPF_F_NO_PREALLOC); \
	__uint(pinning, LIBBPF_PIN_BY_NAME); \
} direct SEC(".maps")

/* Prefix of addresses that stand for IPv4 addresses. */
#define TABLE_nat46 \
struct { \
	__uint(type, BPF_MAP_TYPE_ARRAY); \
	__type(key, __u32); \
	__type(value, struct nat46_range); \
	__uint(max_entries, 1); \
	__uint(pinning, LIBBPF_PIN_BY_NAME); \
} nat46 SEC(".maps")

/* First fragments that were let through. */
#define TABLE_frag \
struct { \
	__uint(type, BPF_MAP_TYPE_LRU_HASH); \
	__type(key, struct frag_key); \
	__type(value, struct frag_entry); \
	__uint(max_entries, 8192); \
	__uint(pinning, LIBBPF_PIN_BY_NAME); \
} frag SEC(".maps")

/* Packets and bytes by reason << 1 | direction; reason 0 is forwarded. */
#define TABLE_metrics \
struct { \
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY); \
	__type(key, __u32); \
	__type(value, struct counter); \
	__uint(max_entries, 512); \
	__uint(pinning, LIBBPF_PIN_BY_NAME); \
} metrics SEC(".maps")

/* Idle times. */
#define TABLE_timeouts \
struct { \
	__uint(type, BPF_MAP_TYPE_ARRAY); \
	__type(key, __u32); \
	__type(value, struct flow_timeouts); \
	__uint(max_entries, 1); \
	__uint(pinning, LIBBPF_PIN_BY_NAME); \
} timeouts SEC(".maps")

/* What reports leave out. */
#define TABLE_reporting \
struct { \
	__uint(type, BPF_MAP_TYPE_ARRAY); \
	__type(key, __u32); \
	__type(value, struct reporting); \
	__uint(max_entries, 1); \
	__uint(pinning, LIBBPF_PIN_BY_NAME); \
} reporting SEC(".maps")

/* Refusals that the fast path repeats. */
#define TABLE_denial \
struct { \
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY); \
	__type(key, __u32); \
	__type(value, struct denial); \
	__uint(max_entries, 4096); \
	__uint(pinning, LIBBPF_PIN_BY_NAME); \
} denial SEC(".maps")

/* Flows that were opened, by the place of their refusal. */
#define TABLE_opened \
struct { \
	__uint(type, BPF_MAP_TYPE_ARRAY); \
	__type(key, __u32); \
	__type(value, struct opened); \
	__uint(max_entries, 4096); \
	__uint(pinning, LIBBPF_PIN_BY_NAME); \
} opened SEC(".maps")

/* Events, read by the agent. */
#define TABLE_events \
struct { \
	__uint(type, BPF_MAP_TYPE_RINGBUF); \
	__uint(max_entries, 16777216); \
	__uint(pinning, LIBBPF_PIN_BY_NAME); \
} events SEC(".maps")

/* Receiving programs of endpoints that have their own, by slot. */
#define TABLE_receive \
struct { \
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY); \
	__type(key, __u32); \
	__type(value, __u32); \
	__uint(max_entries, 65536); \
	__uint(pinning, LIBBPF_PIN_BY_NAME); \
} receive SEC(".maps")

/* Rare stages, programs of their own that a generation shares. */
#define TABLE_stages \
struct { \
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY); \
	__type(key, __u32); \
	__type(value, __u32); \
	__uint(max_entries, 4); \
} stages SEC(".maps")

