/* SPDX-License-Identifier: GPL-2.0 */
/* Events for the agent: what happened to a packet, with the first bytes of it. */
#pragma once
#include "config.h"
#include "endpoint.h"
#include "metrics.h"

enum {
	EVENTS_WAKE = 64 * 1024, /* the reader is woken once for so many bytes; below it sweeps by time */
	EVENTS_HEADER = 8,	 /* of a record in the ring buffer */
};

struct event_record {
	struct event e;
	__u8 payload[EVENT_PAYLOAD];
};

/* `what`: kind << 8 | reason or trace point. Returns 0 so that a caller can end with it. */
__noinline int event_send(struct __sk_buff *ctx, struct packet *p, __u32 what)
{
	struct event_record *r;
	__u64 at;
	__u32 cap;

	if (!p)
		return 0;
	r = bpf_ringbuf_reserve(&events, sizeof(*r), 0);
	if (!r) {
		metrics_count(REASON_EVENT_LOST, p->dir, ctx->len);
		return 0;
	}
	/* Where the record is: the ring's pages follow each other. Read back from memory, as a pointer is not calculated with. */
	WRITE_ONCE(r->e.time, (__u64)r);
	at = READ_ONCE(r->e.time);
	r->e.time = bpf_ktime_get_ns();
	r->e.kind = (__u8)(what >> 8);
	r->e.reason = (__u8)what;
	r->e.dir = p->dir;
	r->e.flags = p->flags | (p->family == 6 ? EVENT_IPV6 : 0) | EVENT_L2;
	r->e.state = p->state;
	r->e.proto = p->proto;
	r->e.src_slot = p->src_slot;
	r->e.dst_slot = p->dst_slot;
	r->e.dport = p->match;
	r->e.src_id = p->src_id;
	r->e.dst_id = p->dst_id;
	r->e.rule = p->rule;
	r->e.ifindex = ctx->ifindex;
	r->e.len = ctx->len;
	r->e.pad[0] = 0;
	r->e.pad[1] = 0;
	r->e.pad[2] = 0;
	cap = ctx->len < EVENT_PAYLOAD ? ctx->len : EVENT_PAYLOAD;
	/* 1 to EVENT_PAYLOAD, in a form from which also the verifier of Linux 6.1 learns both ends. */
	OPAQUE(cap);
	cap = ((cap - 1) & (EVENT_PAYLOAD - 1)) + 1;
	if (bpf_skb_load_bytes(ctx, 0, r->payload, cap) < 0)
		cap = 0;
	r->e.cap = cap;
	bpf_ringbuf_submit(r, (at & (EVENTS_WAKE - 1)) < sizeof(*r) + EVENTS_HEADER ? BPF_RB_FORCE_WAKEUP :
										      BPF_RB_NO_WAKEUP);
	return 0;
}

/*
 * The EP_TRACE_* for which a packet of an established flow that brings nothing new
 * is not worth a report. `last`, `nth`: jiffies and number of the one before it.
 */
static __always_inline __u32 event_quiet(__u32 last, __u32 nth)
{
	__u32 zero = 0, now = (__u32)bpf_jiffies64();
	struct reporting *r = bpf_map_lookup_elem(&reporting, &zero);

	if (!r || (now != last && now / r->interval != last / r->interval))
		return 0;
	return nth % r->sample ? EP_TRACE_FLOW | EP_TRACE_ALL : EP_TRACE_FLOW;
}

/* Where a packet goes that is delivered to `dst`, the row of `slot`. */
__noinline __u32 trace_point(struct endpoint *dst, __u32 slot)
{
	if (!dst)
		return TRACE_TO_ENDPOINT;
	if (dst->flags & EP_STACK)
		return slot == SLOT_HOST ? TRACE_TO_HOST : TRACE_TO_STACK;
	return dst->flags & EP_ROUTE ? TRACE_TO_NETWORK : TRACE_TO_ENDPOINT;
}

/* Flags of both ends: what either wants reported. */
static __always_inline __u32 event_wanted(struct packet *p)
{
	struct endpoint *src = endpoint_row(p->src_slot), *dst = endpoint_row(p->dst_slot);

	return (src ? src->flags : 0) | (dst ? dst->flags : 0);
}
