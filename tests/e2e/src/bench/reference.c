/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Programs that the datapath is measured against, and one that does nothing but
 * report. Compiled in the place of slow.c in a copy of the template tree.
 */
#define PILUS_CONFIG "slow_config.h"
#include "lib/config.h"
#include "lib/events.h"

TABLE_ipcache;
TABLE_policy;

enum {
	REFERENCE_SLOT = 65535, /* the receiver's row, which no agent uses */
};

SEC("tc")
int drop(struct __sk_buff *ctx)
{
	return TC_ACT_SHOT;
}

/* Into the receiver's namespace; without another look if `lookups` is 0, else after two in hashes: who is it, and may it? */
static __always_inline int reference(struct __sk_buff *ctx, int lookups)
{
	struct ethhdr *eth = CTXP(ctx, data);
	void *end = CTXP(ctx, data_end);
	__u32 slot = REFERENCE_SLOT;
	struct ipcache_key who = {};
	struct policy_key may = {};
	struct ipcache_entry *peer;
	struct policy_block *block;
	struct endpoint *to;

	if (ctx->protocol == bpf_htons(ETH_P_IP)) {
		struct iphdr *ip = (void *)(eth + 1);

		if ((void *)(ip + 1) > end)
			return TC_ACT_SHOT;
		who.addr[0] = ip->saddr;
		who.family = 4;
	} else {
		struct ipv6hdr *ip = (void *)(eth + 1);

		if ((void *)(ip + 1) > end)
			return TC_ACT_SHOT;
		__builtin_memcpy(who.addr, ip->saddr, 16);
		who.family = 6;
	}
	to = bpf_map_lookup_elem(&endpoint, &slot);
	if (!to)
		return TC_ACT_SHOT;
	if (lookups) {
		peer = bpf_map_lookup_elem(&ipcache, &who);
		if (!peer)
			return TC_ACT_SHOT;
		may.policy = to->policy_in << 5 | DIR_INGRESS << 4;
		may.identity = peer->identity;
		block = bpf_map_lookup_elem(&policy, &may);
		if (!block || !(block->rules[0].flags & RULE_USED))
			return TC_ACT_SHOT;
	}
	metrics_count(0, DIR_INGRESS, ctx->len);
	__builtin_memcpy(eth->dst, to->mac, 6);
	__builtin_memcpy(eth->src, to->host_mac, 6);
	return (int)bpf_redirect_peer(to->ifindex, 0);
}

SEC("tc")
int two_hashes(struct __sk_buff *ctx)
{
	return reference(ctx, 1);
}

SEC("tc")
int no_hash(struct __sk_buff *ctx)
{
	return reference(ctx, 0);
}

SEC("tc")
int report(struct __sk_buff *ctx)
{
	struct packet p = { .family = 4, .src_slot = SLOT_WORLD, .dst_slot = SLOT_FIRST };

	event_send(ctx, &p, EVENT_TRACE << 8 | TRACE_TO_ENDPOINT);
	return TC_ACT_SHOT;
}

char LICENSE[] SEC("license") = "GPL";
