/* SPDX-License-Identifier: GPL-2.0 */
/* The life of flow entries: found, made, idle for too long. */
#pragma once
#include "ct.h"
#include "denial.h"
#include "events.h"
#include "maps.h"

TABLE_timeouts;

/* Of one packet: that of its family. */
union flow_keys {
	struct flow_key6 v6;
	struct flow_key4 v4;
} __aligned8;

/* The key of the packet's entry, and p->side. A function of its own, so that the verifier looks at it once. */
__noinline int flow_key_make(struct packet *p, union flow_keys *k)
{
	if (!p || !k)
		return 0;
	if (p->family == 4)
		p->side = flow_key4_make(&k->v4, p->saddr[0], p->daddr[0], p->sport, p->dport, p->proto);
	else
		p->side = flow_key6_make(&k->v6, p->saddr, p->daddr, p->sport, p->dport, p->proto);
	return 0;
}

/* A packet as denials know it; returns its place. */
__noinline __u32 denial_key_make(struct packet *p, struct denial_key *k)
{
	int i;

	if (!p || !k)
		return 0;
#pragma unroll
	for (i = 0; i < 2; i++) {
		k->words[i] = p->saddr[2 * i] | (__u64)p->saddr[2 * i + 1] << 32;
		k->words[2 + i] = p->daddr[2 * i] | (__u64)p->daddr[2 * i + 1] << 32;
	}
	k->words[4] = p->sport | (__u32)p->dport << 16 | (__u64)p->proto << 32;
	return denial_place(k);
}

/* The flows that were opened at the packet's place, for `more` of them. */
__noinline __u32 opened_count(struct packet *p, __u32 more)
{
	struct denial_key k = {};
	struct opened *o;
	__u32 place;

	if (!p)
		return 0;
	place = denial_key_make(p, &k);
	o = bpf_map_lookup_elem(&opened, &place);
	return o ? __sync_fetch_and_add(&o->flows, more) : 0;
}

/* Finds the packet's entry and sets p->side. */
static __noinline struct flow *flow_find(struct packet *p)
{
	union flow_keys k = {};
	struct flow4 *f4;
	struct flow6 *f6;

	flow_key_make(p, &k);
	if (p->family == 4) {
		f4 = bpf_map_lookup_elem(&flow4, &k.v4);
		return f4 ? &f4->h : 0;
	}
	f6 = bpf_map_lookup_elem(&flow6, &k.v6);
	return f6 ? &f6->h : 0;
}

/* What a packet's FIN or RST does to the flags of its flow. Only a TCP packet has any. */
static __always_inline __u32 flow_tcp_flags(const struct packet *p)
{
	_Static_assert(FLOW_FIN_B == FLOW_FIN_A << 1 && TCP_FIN == 1, "by calculation");
	return (p->tcp_flags & TCP_FIN) * (FLOW_FIN_A << (p->side & 1)) | (p->tcp_flags & TCP_RST) / TCP_RST * FLOW_RST;
}

/* Writes a new entry opened by this packet, in place of any old one. */
__noinline int flow_create(struct packet *p, __u32 epoch, __u32 flags, __u32 bytes)
{
	struct flow h = {
		.last = (__u32)bpf_jiffies64(),
		.epoch = epoch,
	};
	union flow_keys k = {};
	__u32 side, mask;
	int ret;

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
	flow_key_make(p, &k);
	if (p->family == 4) {
		struct flow4 f = {
			.h = h,
			.rule = { p->rule, 0 },
			.src_id = p->src_id,
			.dst_id = p->dst_id,
			.created = h.last,
		};

		ret = (int)bpf_map_update_elem(&flow4, &k.v4, &f, BPF_ANY);
	} else {
		struct flow6 f = { .h = h };

		ret = (int)bpf_map_update_elem(&flow6, &k.v6, &f, BPF_ANY);
	}
	/* What was refused for having none is asked about anew, now that there is one. */
	opened_count(p, 1);
	return ret < 0 ? -DROP_FLOW_INSERT_FAILED : 0;
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
	__u32 flags, answer;

	if (!h || !p)
		return 0;
	/* Of the other side; its SYN is none. Above 0 by its sign, without a branch. */
	answer = 0 - ((p->tcp_flags & (TCP_SYN | TCP_ACK | TCP_RST)) ^ TCP_SYN);
	OPAQUE(answer);
	answer = answer >> 31 & (h->flags ^ p->side) & FLOW_OPENER_B;
	flags = flow_tcp_flags(p) | answer * FLOW_REPLY;
	if (flags & ~h->flags)
		h->flags |= flags;
	else
		p->quiet = (__u8)event_quiet(h->last, h->packets[p->side & 1]);
	flow_account(h, p->side, bytes);
	return 0;
}
