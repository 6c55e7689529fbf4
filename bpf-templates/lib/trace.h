/* SPDX-License-Identifier: GPL-2.0 */
/* The report of a packet that the fast path has sent on its way: as the slow path's of a packet of an established flow. */
#pragma once
#include "slow.h"

/* What the fast path has seen of the packet's headers. It takes neither IP options nor extension headers. */
static __always_inline int trace_parse(struct __sk_buff *ctx, struct packet *p)
{
	struct ethhdr *eth = CTXP(ctx, data);
	void *end = CTXP(ctx, data_end);
	__be16 *ports;

	if (CONFIG_IPV4 && ctx->protocol == bpf_htons(ETH_P_IP)) {
		struct iphdr *ip = (void *)(eth + 1);

		ports = (void *)(ip + 1);
		if ((void *)(ports + 2) > end)
			return -DROP_INVALID_PACKET;
		p->family = 4;
		p->proto = ip->protocol;
		p->saddr[0] = ip->saddr;
		p->daddr[0] = ip->daddr;
	} else {
		struct ipv6hdr *ip = (void *)(eth + 1);

		ports = (void *)(ip + 1);
		if ((void *)(ports + 2) > end)
			return -DROP_INVALID_PACKET;
		p->family = 6;
		p->proto = ip->nexthdr;
		__builtin_memcpy(p->saddr, ip->saddr, 16);
		__builtin_memcpy(p->daddr, ip->daddr, 16);
	}
	p->match = bpf_ntohs(ports[1]);
	return 0;
}

/* Completes `p` and reports it. Returns what the entry point is to return, or ACT_RECEIVE. */
__noinline int trace_report(struct __sk_buff *ctx, struct packet *p)
{
	__u32 cb = ctx->cb[CB_FROM];
	struct endpoint *src, *dst;

	if (!p)
		return TC_ACT_SHOT;
	p->src_slot = (__u16)(cb >> TRACE_CB_SLOT);
	p->dir = (__u8)(DIR_INGRESS + (cb >> TRACE_CB_EGRESS & 1) * (DIR_EGRESS - DIR_INGRESS));
	p->state = (__u8)(FLOW_STATE_ESTABLISHED +
			  (cb >> TRACE_CB_REPLY & 1) * (FLOW_STATE_REPLY - FLOW_STATE_ESTABLISHED));
	src = endpoint_row(p->src_slot);
	dst = endpoint_row(p->dst_slot);
	if (src && dst &&
	    (src->flags | dst->flags) & (EP_TRACE_ALL | EP_TRACE_FLOW) &
		    ~event_quiet(ctx->cb[CB_LAST], ctx->cb[CB_NTH]) &&
	    trace_parse(ctx, p) >= 0) {
		p->src_id = identity_of(p, src, 0);
		p->dst_id = identity_of(p, dst, 1);
		event_send(ctx, p, EVENT_TRACE << 8 | trace_point(dst, p->dst_slot));
	}
	return cb >> TRACE_CB_RECEIVE & 1 ? ACT_RECEIVE : TC_ACT_REDIRECT;
}
