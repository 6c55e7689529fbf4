/* SPDX-License-Identifier: GPL-2.0 */
/*
 * A packet of an established flow: one flow entry, two endpoint rows, headers
 * rewritten, done. Anything else is ACT_MISS. `src` is the sending container's
 * row, or 0; `from` FROM_*.
 */
#pragma once
#include "ct.h"
#include "deliver.h"
#include "events.h"
#include "metrics.h"

enum {
	FLOW_BUSY = 200,    /* jiffies, less than any idle time */
	NO_PORTS = 1 << 20, /* longer than any packet */
};

/* The entry's verdict holds: same sender, no epoch moved, nothing special (`slow`: EP_* flags of this family). Returns the receiver's row. */
static __always_inline struct endpoint *flow_usable(const struct flow *h, struct endpoint *src, __u32 slot, __u32 side,
						    int origin, __u32 slow, __u32 *trace)
{
	__u32 from = flow_from(h, side), idle = (__u32)bpf_jiffies64() - h->last, flags, fresh;
	struct endpoint *dst;

	/* An entry that was idle may have expired: the difference's sign says so, without a branch. */
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
		if (from >= SLOT_FIRST || (origin == FROM_NETDEV && from == SLOT_HOST))
			return 0;
		src = endpoint_row(from);
	}
	dst = endpoint_row(flow_to(h, side));
	if (!src || !dst || !(dst->flags & EP_VALID) || h->epoch != src->epoch + dst->epoch)
		return 0;
	flags = (src->flags | dst->flags) & (EP_TRACE_ALL | EP_TRACE_FLOW | EP_REMOTE | slow);
	if (flags & (EP_REMOTE | slow))
		return 0;
	/* What comes in the same moment as the packet before it is no news. Without branches, at which the verifier would look twice. */
	fresh = h->last ^ (__u32)bpf_jiffies64();
	*trace = flags & (EP_TRACE_ALL | (fresh | (0 - fresh)) >> 31 << 6);
	return dst;
}

/* Too long for the receiver, all segments of it. `headers`: of IP and transport. */
static __always_inline int fast_too_big(struct __sk_buff *ctx, struct endpoint *dst, __u32 headers)
{
	return ctx->len - ETH_HLEN > dst->mtu && (!ctx->gso_size || headers + ctx->gso_size > dst->mtu);
}

/* Ends the program of a packet that is on its way, with `ret`, by way of its report. `last`, `nth`: of the packet before it. */
static __always_inline int fast_trace(struct __sk_buff *ctx, const struct flow *h, __u32 side, int from, int ret,
				      __u32 last, __u32 nth)
{
	__u32 flags = READ_ONCE(h->flags);

	/* FLOW_OPENER_B is bit 0: the packet goes to the opener if its sender is the other side. */
	ctx->cb[CB_FROM] = (__u32)from | ((flags ^ side) & FLOW_OPENER_B) << TRACE_CB_REPLY |
			   ((__u32)ret >> 8) << TRACE_CB_RECEIVE | (__u32)flow_from(h, side) << TRACE_CB_SLOT;
	ctx->cb[CB_SLOT] = flow_to(h, side);
	ctx->cb[CB_LAST] = last;
	ctx->cb[CB_NTH] = nth;
	bpf_tail_call(ctx, &stages, STAGE_TRACE);
	metrics_count(REASON_EVENT_LOST, from == FROM_CONTAINER ? DIR_EGRESS : DIR_INGRESS, ctx->len);
	return ret;
}

static __always_inline int fast_deliver(struct __sk_buff *ctx, struct flow *h, struct endpoint *dst, __u32 side,
					int from, __u32 trace)
{
	__u32 len = ctx->len, last = READ_ONCE(h->last), nth = READ_ONCE(h->packets[side & 1]);
	int ret;

	if (from == FROM_CONTAINER)
		ctx->mark |= (h->flags & FLOW_MASQUERADE) / FLOW_MASQUERADE * MARK_MASQUERADE;
	ret = deliver(ctx, dst, flow_to(h, side), from != FROM_HOST);
	if (ret < 0)
		return ACT_MISS;
	flow_account(h, side, len);
	metrics_count(0, from == FROM_CONTAINER ? DIR_EGRESS : DIR_INGRESS, len);
	return CONFIG_EVENTS && trace ? fast_trace(ctx, h, side, from, ret, last, nth) : ret;
}

/* Ports of the packets that need no slow path; returns the header's length or NO_PORTS. `l4` points behind the IP header. */
static __always_inline __u32 fast_ports(void *l4, void *end, __u8 proto, __be16 *sport, __be16 *dport)
{
	if (proto == IPPROTO_TCP) {
		struct tcphdr *tcp = l4;

		if ((void *)(tcp + 1) > end || tcp->flags & (TCP_SYN | TCP_FIN | TCP_RST) || tcp->doff < 0x50)
			return NO_PORTS;
		*sport = tcp->source;
		*dport = tcp->dest;
		return tcp->doff >> 2 & 0x3c;
	}
	if (proto == IPPROTO_UDP) {
		__be16 *ports = l4;

		if (l4 + 8 > end)
			return NO_PORTS;
		*sport = ports[0];
		*dport = ports[1];
		return 8;
	}
	return NO_PORTS;
}

static __always_inline int fast_from4(struct __sk_buff *ctx, struct endpoint *src, __u32 slot, int from)
{
	struct ethhdr *eth = CTXP(ctx, data);
	void *end = CTXP(ctx, data_end);
	struct iphdr *ip = (void *)(eth + 1);
	struct flow_key4 key;
	__be16 sport = 0, dport = 0;
	struct endpoint *dst;
	struct flow4 *f;
	__u32 side, hlen, trace = 0;

	if ((void *)(ip + 1) > end || ip->vihl != 0x45 || ip->frag_off & bpf_htons(IP_FRAGMENT_MASK) || ip->ttl <= 1 ||
	    bpf_ntohs(ip->tot_len) + ETH_HLEN > ctx->len)
		return ACT_MISS;
	if (src && (!mac_equal(eth->src, EP_MAC(src)) || !mac_equal(eth->dst, EP_HOST_MAC(src))))
		return ACT_MISS;
	hlen = fast_ports(ip + 1, end, ip->protocol, &sport, &dport);
	if (sizeof(*ip) + hlen > bpf_ntohs(ip->tot_len))
		return ACT_MISS;
	side = flow_key4_make(&key, ip->saddr, ip->daddr, sport, dport, ip->protocol);
	f = bpf_map_lookup_elem(&flow4, &key);
	if (!f)
		return ACT_MISS;
	dst = flow_usable(&f->h, src, slot, side, from, EP_NAT46, &trace);
	if (!dst || fast_too_big(ctx, dst, sizeof(*ip) + hlen))
		return ACT_MISS;
	return fast_deliver(ctx, &f->h, dst, side, from, trace);
}

static __always_inline int fast_from6(struct __sk_buff *ctx, struct endpoint *src, __u32 slot, int from)
{
	struct ethhdr *eth = CTXP(ctx, data);
	void *end = CTXP(ctx, data_end);
	struct ipv6hdr *ip = (void *)(eth + 1);
	struct flow_key6 key;
	__be16 sport = 0, dport = 0;
	struct endpoint *dst;
	struct flow6 *f;
	__u32 side, hlen, trace = 0;

	if ((void *)(ip + 1) > end || (ip->vtcfl & bpf_htonl(0xf0000000)) != bpf_htonl(0x60000000) ||
	    ip->hop_limit <= 1 || bpf_ntohs(ip->payload_len) + ETH_HLEN + sizeof(*ip) > ctx->len)
		return ACT_MISS;
	if (src && (!mac_equal(eth->src, EP_MAC(src)) || !mac_equal(eth->dst, EP_HOST_MAC(src))))
		return ACT_MISS;
	hlen = fast_ports(ip + 1, end, ip->nexthdr, &sport, &dport);
	if (hlen > bpf_ntohs(ip->payload_len))
		return ACT_MISS;
	side = flow_key6_make(&key, ip->saddr, ip->daddr, sport, dport, ip->nexthdr);
	f = bpf_map_lookup_elem(&flow6, &key);
	if (!f)
		return ACT_MISS;
	dst = flow_usable(&f->h, src, slot, side, from, 0, &trace);
	if (!dst || fast_too_big(ctx, dst, sizeof(*ip) + hlen))
		return ACT_MISS;
	return fast_deliver(ctx, &f->h, dst, side, from, trace);
}

static __always_inline int fast_path(struct __sk_buff *ctx, struct endpoint *src, __u32 slot, int from)
{
	if (ctx->vlan_present)
		return ACT_MISS;
	if (CONFIG_IPV4 && ctx->protocol == bpf_htons(ETH_P_IP))
		return fast_from4(ctx, src, slot, from);
	if (ctx->protocol == bpf_htons(ETH_P_IPV6))
		return fast_from6(ctx, src, slot, from);
	return ACT_MISS;
}
