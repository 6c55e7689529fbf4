/* SPDX-License-Identifier: GPL-2.0 */
/* Events for the agent: what happened to a packet, with the first bytes of it. */
#pragma once
#include "config.h"
#include "endpoint.h"
#include "maps.h"
#include "metrics.h"

TABLE_reporting;
TABLE_events;

enum {
	EVENTS_WAKE =
		1024 * 1024, /* the reader is woken once for so many bytes: that is dear; below it sweeps by time */
	EVENTS_HEADER = 8,   /* of a record in the ring buffer */
};

struct event_record {
	struct event e;
	__u8 payload[EVENT_PAYLOAD];
};

enum {
	EVENT_HALF = EVENT_PAYLOAD / 2,
};

/* So many bytes; both are at a multiple of eight, or may be read as if they were. */
static __always_inline void event_half(void *to, const void *from)
{
	__u64 *d = to;
	const __u64 *s = from;
	int i;

#pragma unroll
	for (i = 0; i < EVENT_HALF / 8; i++)
		d[i] = s[i];
}

/*
 * The packet's beginning, and how much of it. What is in one piece and not small is copied as two halves, which may
 * overlap: that takes a third of the helper's time.
 */
static __always_inline __u32 event_copy(struct __sk_buff *ctx, __u8 *payload)
{
	__u32 cap = ctx->len, more = EVENT_PAYLOAD - cap, second;
	void *data = CTXP(ctx, data), *end = CTXP(ctx, data_end);

	/* What there is more of, its sign says, is left out. */
	cap += more & (0 - (more >> 31));
	OPAQUE(cap);
	second = cap - EVENT_HALF;
	if (second <= EVENT_HALF && data + EVENT_HALF <= end && data + second + EVENT_HALF <= end) {
		event_half(payload, data);
		event_half(payload + second, data + second);
		return cap;
	}
	/* 1 to EVENT_PAYLOAD, in a form from which also the verifier of Linux 6.1 learns both ends. */
	OPAQUE(cap);
	cap = ((cap - 1) & (EVENT_PAYLOAD - 1)) + 1;
	return bpf_skb_load_bytes(ctx, 0, payload, cap) < 0 ? 0 : cap;
}

/* `what`: kind << 8 | reason or trace point. */
static __always_inline void event_write(struct __sk_buff *ctx, const struct packet *p, __u32 what)
{
	struct event_record *r;
	__u64 at;

	r = bpf_ringbuf_reserve(&events, sizeof(*r), 0);
	if (!r) {
		metrics_add(REASON_EVENT_LOST << 1 | (p->dir & 1), (__u64)p->untold + 1, ctx->len);
		return;
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
	r->e.untold = p->untold;
	r->e.pad[0] = 0;
	r->e.pad[1] = 0;
	r->e.cap = event_copy(ctx, r->payload);
	bpf_ringbuf_submit(r, (at & (EVENTS_WAKE - 1)) < sizeof(*r) + EVENTS_HEADER ? BPF_RB_FORCE_WAKEUP :
										      BPF_RB_NO_WAKEUP);
}

/* As event_write. Returns 0 so that a caller can end with it. */
__noinline int event_send(struct __sk_buff *ctx, struct packet *p, __u32 what)
{
	if (p)
		event_write(ctx, p, what);
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
static __always_inline __u32 trace_point_of(const struct endpoint *dst, __u32 slot)
{
	if (dst->flags & EP_STACK)
		return slot == SLOT_HOST ? TRACE_TO_HOST : TRACE_TO_STACK;
	return dst->flags & EP_ROUTE ? TRACE_TO_NETWORK : TRACE_TO_ENDPOINT;
}

__noinline __u32 trace_point(struct endpoint *dst, __u32 slot)
{
	return dst ? trace_point_of(dst, slot) : TRACE_TO_ENDPOINT;
}

/* Flags of both ends: what either wants reported. A drop that concerns nobody known is of interest to all. */
static __always_inline __u32 event_wanted(struct packet *p)
{
	struct endpoint *src = endpoint_row(p->src_slot), *dst = endpoint_row(p->dst_slot);
	__u32 flags = (src ? src->flags : 0) | (dst ? dst->flags : 0);

	return flags | (~flags & EP_VALID) / EP_VALID * EP_DROPS;
}
