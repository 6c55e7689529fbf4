/* SPDX-License-Identifier: GPL-2.0 */
/*
 * A packet of an established flow: one flow entry, two endpoint rows, headers
 * rewritten, done. A packet whose refusal is known: dropped. Anything else is
 * ACT_MISS. `src` is the sending container's row, or 0; `from` FROM_*.
 */
#pragma once
#include "ct.h"
#include "deliver.h"
#include "denial.h"
#include "metrics.h"
#include "stages.h"

enum {
	FLOW_BUSY = 200,    /* jiffies, less than any idle time */
	FLOW_ROUTED = 8,    /* after 2^8 jiffies a way out is asked for anew: an agent may not be there */
	NO_PORTS = 1 << 20, /* longer than any packet */
};

/* What the families' parts return, or ACT_MISS. */
enum {
	FAST_FLOW = 1,
	FAST_KNOWN, /* a refusal */
};

/* Where a packet goes, or its refusal. The flow's entry is none of it: what follows is the same for both families. */
struct fast_way {
	struct endpoint *dst;
	__u32 slot;  /* the receiver's */
	__u32 trace; /* bit 0: a report is wanted */
	__u32 mark;  /* for the packet */
	__u32 place; /* of the denial */
	struct denial *denial;
};

/*
 * The entry's verdict holds: same sender, no epoch moved, nothing special (`slow`: EP_* flags of this family). Then it is
 * in `way`. A value that a branch makes known is one that the verifier follows on its own: what can be calculated is.
 */
static __always_inline int flow_usable(struct flow *h, struct endpoint *src, __u32 slot, __u32 side, int origin,
				       __u32 slow, struct fast_way *way)
{
	__u32 now = (__u32)bpf_jiffies64(), from = flow_from(h, side), idle = now - h->last;
	__u32 flags, fresh, stale, outside;
	struct endpoint *dst;

	/* An entry that was idle may have expired: the difference's sign says so. */
	if ((h->flags & FLOW_SLOW) | (FLOW_BUSY - idle) >> 31 ||
	    (h->flags & (FLOW_FIN_A | FLOW_FIN_B)) == (FLOW_FIN_A | FLOW_FIN_B))
		return 0;
	/* The first packet back must mark the entry. */
	if (!((h->flags & FLOW_REPLY) | (~(h->flags ^ side) & FLOW_OPENER_B)))
		return 0;
	if (src) {
		if (from != slot)
			return 0;
	} else {
		/* The host's own address does not come in from outside. */
		outside = (from ^ SLOT_HOST) | ((__u32)origin ^ FROM_NETDEV);
		OPAQUE(outside);
		if (from >= SLOT_FIRST || !outside)
			return 0;
		src = endpoint_row(from);
	}
	dst = endpoint_row(flow_to(h, side));
	if (!src || !dst || !(dst->flags & EP_VALID) || h->epoch != src->epoch + dst->epoch)
		return 0;
	flags = (src->flags | dst->flags) & (EP_TRACE_ALL | EP_TRACE_FLOW | EP_REMOTE | slow);
	fresh = h->last ^ now;
	stale = dst->flags / EP_ROUTE & 1;
	OPAQUE(stale);
	stale *= fresh >> FLOW_ROUTED;
	OPAQUE(stale);
	if ((flags & (EP_REMOTE | slow)) | stale)
		return 0;
	/* What comes in the same moment as the packet before it is no news. */
	fresh = (fresh | (0 - fresh)) >> 31;
	OPAQUE(fresh);
	flags = flags / EP_TRACE_ALL | (flags / EP_TRACE_FLOW & fresh);
	OPAQUE(flags);
	way->dst = dst;
	way->trace = flags;
	return 1;
}

/* Too long for the receiver, all segments of it. `headers`: of IP and transport. The signs of differences, as above. */
static __always_inline int fast_too_big(struct __sk_buff *ctx, const struct endpoint *dst, __u32 headers)
{
	__u32 whole = dst->mtu + ETH_HLEN - ctx->len, segments = ctx->gso_size, one = segments - 1;

	segments = dst->mtu - headers - segments;
	OPAQUE(whole);
	OPAQUE(segments);
	OPAQUE(one);
	return (int)((whole & (segments | one)) >> 31);
}

/* The packet goes on as its entry says: it is counted there, and what a report tells of the entry is written down. */
static __always_inline void fast_take(struct __sk_buff *ctx, struct flow *h, __u32 side, int from, struct fast_way *way)
{
	way->slot = flow_to(h, side);
	if (from == FROM_CONTAINER)
		way->mark = (h->flags & FLOW_MASQUERADE) / FLOW_MASQUERADE * MARK_MASQUERADE;
	if (CONFIG_EVENTS && way->trace & 1) {
		/* FLOW_OPENER_B is bit 0: the packet goes to the opener if its sender is the other side. */
		ctx->cb[CB_FROM] = ((READ_ONCE(h->flags) ^ side) & FLOW_OPENER_B) << TRACE_CB_REPLY |
				   (from == FROM_CONTAINER) << TRACE_CB_EGRESS |
				   (__u32)flow_from(h, side) << TRACE_CB_SLOT;
		ctx->cb[CB_LAST] = READ_ONCE(h->last);
		ctx->cb[CB_NTH] = READ_ONCE(h->packets[side]);
	}
	flow_account(h, side, ctx->len);
}

/* Ports of the packets that need no slow path; returns the header's length or NO_PORTS. `l4` points behind the IP header. */
static __always_inline __u32 fast_ports(void *l4, void *end, __u8 proto, __be16 *sport, __be16 *dport)
{
	/* First, as it shows the verifier less of the packet: what follows holds for TCP too, then. */
	if (proto == IPPROTO_UDP) {
		__be16 *ports = l4;

		if (l4 + 8 > end)
			return NO_PORTS;
		*sport = ports[0];
		*dport = ports[1];
		return 8;
	}
	if (proto == IPPROTO_TCP) {
		struct tcphdr *tcp = l4;

		if ((void *)(tcp + 1) > end || tcp->flags & (TCP_SYN | TCP_FIN | TCP_RST) || tcp->doff < 0x50)
			return NO_PORTS;
		*sport = tcp->source;
		*dport = tcp->dest;
		return tcp->doff >> 2 & 0x3c;
	}
	return NO_PORTS;
}

/* FAST_*, and the way; or ACT_MISS. */
static __always_inline int fast_from4(struct __sk_buff *ctx, struct endpoint *src, __u32 slot, int from,
				      struct fast_way *way)
{
	struct ethhdr *eth = CTXP(ctx, data);
	void *end = CTXP(ctx, data_end);
	struct iphdr *ip = (void *)(eth + 1);
	struct denial_key known = {};
	struct flow_key4 key;
	__be16 sport = 0, dport = 0;
	struct flow4 *f;
	__u32 side, hlen;

	if ((void *)(ip + 1) > end || ip->vihl != 0x45 || ip->frag_off & bpf_htons(IP_FRAGMENT_MASK) || ip->ttl <= 1 ||
	    bpf_ntohs(ip->tot_len) + ETH_HLEN > ctx->len)
		return ACT_MISS;
	if (src && (!mac_equal(eth->src, EP_MAC(src)) || !mac_equal(eth->dst, EP_HOST_MAC(src))))
		return ACT_MISS;
	hlen = fast_ports(ip + 1, end, ip->protocol, &sport, &dport);
	if (sizeof(*ip) + hlen > bpf_ntohs(ip->tot_len))
		return ACT_MISS;
	known.words[0] = ip->saddr;
	known.words[2] = ip->daddr;
	known.words[4] = sport | (__u32)dport << 16 | (__u64)ip->protocol << 32;
	way->denial = denial_find(ctx, &known, src, slot, (__u32)from, &way->place);
	if (way->denial)
		return FAST_KNOWN;
	side = flow_key4_make(&key, (__be32)known.words[0], (__be32)known.words[2], sport, dport,
			      (__u8)(known.words[4] >> 32));
	f = bpf_map_lookup_elem(&flow4, &key);
	if (!f || !flow_usable(&f->h, src, slot, side, from, EP_NAT46, way) ||
	    fast_too_big(ctx, way->dst, sizeof(*ip) + hlen))
		return ACT_MISS;
	fast_take(ctx, &f->h, side, from, way);
	return FAST_FLOW;
}

static __always_inline int fast_from6(struct __sk_buff *ctx, struct endpoint *src, __u32 slot, int from,
				      struct fast_way *way)
{
	struct ethhdr *eth = CTXP(ctx, data);
	void *end = CTXP(ctx, data_end);
	struct ipv6hdr *ip = (void *)(eth + 1);
	struct denial_key known;
	struct flow_key6 key __aligned8;
	__be16 sport = 0, dport = 0;
	struct flow6 *f;
	__u32 side, hlen;
	int i;

	if ((void *)(ip + 1) > end || (ip->vtcfl & bpf_htonl(0xf0000000)) != bpf_htonl(0x60000000) ||
	    ip->hop_limit <= 1 || bpf_ntohs(ip->payload_len) + ETH_HLEN + sizeof(*ip) > ctx->len)
		return ACT_MISS;
	if (src && (!mac_equal(eth->src, EP_MAC(src)) || !mac_equal(eth->dst, EP_HOST_MAC(src))))
		return ACT_MISS;
	hlen = fast_ports(ip + 1, end, ip->nexthdr, &sport, &dport);
	if (hlen > bpf_ntohs(ip->payload_len))
		return ACT_MISS;
	/* Anew: how much of the packet is known to be there differs by protocol, and the verifier would go on twice. */
	ip = CTXP(ctx, data) + ETH_HLEN;
	if ((void *)(ip + 1) > CTXP(ctx, data_end))
		return ACT_MISS;
#pragma unroll
	for (i = 0; i < 4; i++)
		known.words[i] = ((__u64 *)ip->saddr)[i];
	known.words[4] = sport | (__u32)dport << 16 | (__u64)ip->nexthdr << 32;
	way->denial = denial_find(ctx, &known, src, slot, (__u32)from, &way->place);
	if (way->denial)
		return FAST_KNOWN;
	side = flow_key6_make(&key, (__be32 *)known.words, (__be32 *)(known.words + 2), sport, dport,
			      (__u8)(known.words[4] >> 32));
	f = bpf_map_lookup_elem(&flow6, &key);
	if (!f || !flow_usable(&f->h, src, slot, side, from, 0, way) || fast_too_big(ctx, way->dst, sizeof(*ip) + hlen))
		return ACT_MISS;
	fast_take(ctx, &f->h, side, from, way);
	return FAST_FLOW;
}

/* What became of the packet: a TC action, ACT_RECEIVE, ACT_MISS, or -DROP_* of a delivery that failed. */
static __always_inline int fast_path(struct __sk_buff *ctx, struct endpoint *src, __u32 slot, int from)
{
	struct fast_way way = {};
	int ret;

	if (ctx->vlan_present)
		return ACT_MISS;
	if (CONFIG_IPV4 && ctx->protocol == bpf_htons(ETH_P_IP))
		ret = fast_from4(ctx, src, slot, from, &way);
	else if (ctx->protocol == bpf_htons(ETH_P_IPV6))
		ret = fast_from6(ctx, src, slot, from, &way);
	else
		return ACT_MISS;
	if (ret == FAST_KNOWN)
		return denial_holds(ctx, way.denial, src, way.place, (__u32)from) ? TC_ACT_SHOT : ACT_MISS;
	if (ret != FAST_FLOW)
		return ACT_MISS;
	if (from == FROM_CONTAINER)
		ctx->mark |= way.mark;
	/* 1 but for FROM_HOST. */
	ret = deliver(ctx, way.dst, way.slot, (((__u32)from ^ FROM_HOST) + 1) >> 1);
	if (ret < 0)
		return ret;
	metrics_count(0, from == FROM_CONTAINER ? DIR_EGRESS : DIR_INGRESS, ctx->len);
	if (!CONFIG_EVENTS || !(way.trace & 1))
		return ret;
	ctx->cb[CB_SLOT] = way.slot;
	ctx->cb[CB_FROM] |= ((__u32)ret >> 8) << TRACE_CB_RECEIVE;
	bpf_tail_call(ctx, &stages, STAGE_TRACE);
	metrics_count(REASON_EVENT_LOST, from == FROM_CONTAINER ? DIR_EGRESS : DIR_INGRESS, ctx->len);
	return ret;
}
