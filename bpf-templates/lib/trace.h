/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The report of a packet that the fast path has sent on its way: as the slow path's of a packet of an established flow. A
 * program of its own, without a call that most packets need not: each is a tenth of what a report takes.
 */
#pragma once
#include "events.h"
#include "ipcache.h"

/* 1 for IPv6, 0 for IPv4; by calculation, as all that depends on it: the verifier follows each family to the end. */
static __always_inline __u32 trace_six(struct __sk_buff *ctx)
{
	__u32 six = ctx->protocol ^ bpf_htons(ETH_P_IP);

	six = (six | (0 - six)) >> 31;
	OPAQUE(six);
	return six & 1;
}

/* Who it is that has no row of its own, the receiver (`dst` 1) or the sender (0). */
__noinline __u32 trace_identity(struct __sk_buff *ctx, __u32 dst)
{
	__u32 six = trace_six(ctx), len = 4 + six * 12;
	struct ipcache_entry *e;
	__be32 addr[4] = {};

	_Static_assert(__builtin_offsetof(struct iphdr, saddr) == __builtin_offsetof(struct ipv6hdr, saddr) + 4,
		       "addresses");
	if (bpf_skb_load_bytes(ctx, ETH_HLEN + __builtin_offsetof(struct iphdr, saddr) - six * 4 + (dst & 1) * len,
			       addr, len) < 0)
		return ID_WORLD;
	e = ipcache_find(addr, 4 + six * 2);
	return e ? e->identity : ID_WORLD;
}

/* What the fast path has seen of the packet's headers. It takes neither IP options nor extension headers. */
static __always_inline int trace_parse(struct __sk_buff *ctx, struct packet *p)
{
	__u32 six = trace_six(ctx);
	/* From here on, ports are at the same place in both families. */
	__u8 *from = CTXP(ctx, data) + six * (sizeof(struct ipv6hdr) - sizeof(struct iphdr));
	__u8 *ports = from + ETH_HLEN + sizeof(struct iphdr);

	_Static_assert(ETH_HLEN + __builtin_offsetof(struct ipv6hdr, nexthdr) ==
			       sizeof(struct ipv6hdr) - sizeof(struct iphdr),
		       "IPv6's protocol is the first byte");
	if ((void *)(ports + 4) > CTXP(ctx, data_end))
		return 0;
	p->family = (__u8)(4 + six * 2);
	p->proto = (__u8)((from[0] & (0 - six)) |
			  (from[ETH_HLEN + __builtin_offsetof(struct iphdr, protocol)] & (six - 1)));
	p->match = bpf_ntohs(*(__be16 *)(ports + 2));
	return 1;
}

static __always_inline void trace_report(struct __sk_buff *ctx)
{
	__u32 cb = ctx->cb[CB_FROM], from = cb >> TRACE_CB_SLOT, to = ctx->cb[CB_SLOT];
	struct endpoint *src = bpf_map_lookup_elem(&endpoint, &from), *dst = bpf_map_lookup_elem(&endpoint, &to);
	struct packet p = {
		.src_slot = (__u16)from,
		.dst_slot = (__u16)to,
		.dir = (__u8)(DIR_INGRESS + (cb >> TRACE_CB_EGRESS & 1) * (DIR_EGRESS - DIR_INGRESS)),
		.state = (__u8)(FLOW_STATE_ESTABLISHED +
				(cb >> TRACE_CB_REPLY & 1) * (FLOW_STATE_REPLY - FLOW_STATE_ESTABLISHED)),
	};

	if (!src || !dst ||
	    !((src->flags | dst->flags) & (EP_TRACE_ALL | EP_TRACE_FLOW) &
	      ~event_quiet(ctx->cb[CB_LAST], ctx->cb[CB_NTH])) ||
	    !trace_parse(ctx, &p))
		return;
	p.src_id = slot_is_container(from) ? src->identity : trace_identity(ctx, 0);
	p.dst_id = slot_is_container(to) ? dst->identity : trace_identity(ctx, 1);
	event_write(ctx, &p, EVENT_TRACE << 8 | trace_point_of(dst, to));
}
