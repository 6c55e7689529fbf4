/* SPDX-License-Identifier: GPL-2.0 */
/* The life of flow entries: found, made, idle for too long. */
#pragma once
#include "ct.h"
#include "events.h"

/* Finds the packet's entry and sets p->side. */
static __noinline struct flow *flow_find(struct packet *p)
{
	if (p->family == 4) {
		struct flow_key4 key;
		struct flow4 *f;

		p->side = flow_key4_make(&key, p->saddr[0], p->daddr[0], p->sport, p->dport, p->proto);
		f = bpf_map_lookup_elem(&flow4, &key);
		return f ? &f->h : 0;
	} else {
		struct flow_key6 key;
		struct flow6 *f;

		p->side = flow_key6_make(&key, p->saddr, p->daddr, p->sport, p->dport, p->proto);
		f = bpf_map_lookup_elem(&flow6, &key);
		return f ? &f->h : 0;
	}
}

/* What a packet's FIN or RST does to the flags of its flow. */
static __always_inline __u32 flow_tcp_flags(const struct packet *p)
{
	__u32 flags = 0;

	if (p->proto != IPPROTO_TCP)
		return 0;
	if (p->tcp_flags & TCP_RST)
		flags = FLOW_RST;
	if (p->tcp_flags & TCP_FIN)
		flags |= p->side ? FLOW_FIN_B : FLOW_FIN_A;
	return flags;
}

/* Writes a new entry opened by this packet, in place of any old one. */
__noinline int flow_create(struct packet *p, __u32 epoch, __u32 flags, __u32 bytes)
{
	struct flow h = {
		.last = (__u32)bpf_jiffies64(),
		.epoch = epoch,
	};
	__u32 side, mask;

	if (!p)
		return -DROP_FLOW_INSERT_FAILED;
	/* Without branches: each would have the verifier look twice at all that follows. */
	side = p->side & 1;
	mask = 0 - side;
	if (p->masked)
		flags |= FLOW_MASQUERADE;
	h.flags = (__u16)(flags | flow_tcp_flags(p) | side * FLOW_OPENER_B);
	h.bytes[0] = bytes & ~mask;
	h.bytes[1] = bytes & mask;
	h.packets[0] = 1 - side;
	h.packets[1] = side;
	h.ep[0] = (__u16)((p->src_slot & mask) | (p->dst_slot & ~mask));
	h.ep[1] = (__u16)((p->dst_slot & mask) | (p->src_slot & ~mask));
	if (p->family == 4) {
		struct flow_key4 key;
		struct flow4 f = {
			.h = h,
			.rule = { p->rule, 0 },
			.src_id = p->src_id,
			.dst_id = p->dst_id,
			.created = h.last,
		};

		flow_key4_make(&key, p->saddr[0], p->daddr[0], p->sport, p->dport, p->proto);
		return bpf_map_update_elem(&flow4, &key, &f, BPF_ANY) < 0 ? -DROP_FLOW_INSERT_FAILED : 0;
	} else {
		struct flow_key6 key;
		struct flow6 f = { .h = h };

		flow_key6_make(&key, p->saddr, p->daddr, p->sport, p->dport, p->proto);
		return bpf_map_update_elem(&flow6, &key, &f, BPF_ANY) < 0 ? -DROP_FLOW_INSERT_FAILED : 0;
	}
}

static __always_inline int flow_is_closing(__u32 flags)
{
	return flags & FLOW_RST || (flags & (FLOW_FIN_A | FLOW_FIN_B)) == (FLOW_FIN_A | FLOW_FIN_B);
}

/* Idle limit of a flow with these flags. A function of its own, so that the verifier looks at its branches once. */
__noinline __u32 flow_idle_limit(__u32 flags, __u32 proto)
{
	__u32 zero = 0;
	struct flow_timeouts *t = bpf_map_lookup_elem(&timeouts, &zero);

	if (!t)
		return 0;
	if (flags & FLOW_DENY)
		return t->deny;
	if (proto == IPPROTO_TCP)
		return flow_is_closing(flags) ? t->tcp_closing : flags & FLOW_REPLY ? t->tcp : t->tcp_open;
	if (proto == IPPROTO_UDP)
		return flags & FLOW_REPLY ? t->udp_reply : t->udp;
	return proto == IPPROTO_ICMP || proto == IPPROTO_ICMPV6 ? t->icmp : t->other;
}

static __always_inline int flow_is_expired(const struct flow *h, __u8 proto)
{
	return (__u32)bpf_jiffies64() - h->last > flow_idle_limit(h->flags, proto);
}

/* The world is behind another device than when the entry was written. */
static __always_inline int flow_moved(const struct flow *h, const struct packet *p)
{
	return flow_from(h, p->side) != p->src_slot || flow_to(h, p->side) != p->dst_slot;
}

/* Makes an entry vouch for a verdict: of `epoch`, with FLOW_DENY in `flags` or without. */
__noinline int flow_judged(struct flow *h, struct packet *p, __u32 epoch, __u32 flags)
{
	if (!h || !p)
		return 0;
	WRITE_ONCE(h->ep[0], p->side ? p->src_slot : p->dst_slot);
	WRITE_ONCE(h->ep[1], p->side ? p->dst_slot : p->src_slot);
	h->flags = (h->flags & ~FLOW_DENY) | (flags & FLOW_DENY);
	WRITE_ONCE(h->epoch, epoch);
	return 0;
}

/* As flow_account, with what the packet's FIN or RST does to the flags. */
__noinline int flow_seen(struct flow *h, struct packet *p, __u32 bytes)
{
	__u32 flags;

	if (!h || !p)
		return 0;
	flags = flow_tcp_flags(p);
	/* A SYN of the other side is no answer. */
	if (!!(h->flags & FLOW_OPENER_B) != p->side && (p->tcp_flags & (TCP_SYN | TCP_ACK | TCP_RST)) != TCP_SYN)
		flags |= FLOW_REPLY;
	if (flags & ~h->flags)
		h->flags |= flags;
	else
		p->quiet = (__u8)event_quiet(h->last, h->packets[p->side & 1]);
	flow_account(h, p->side, bytes);
	return 0;
}
