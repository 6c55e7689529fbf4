/* SPDX-License-Identifier: GPL-2.0 */
/* The flow table: keys, entries, idle times. One entry serves both directions. */
#pragma once
#include "maps.h"
#include "packet.h"

/* Sorts by (address, port) as they stand in memory. Returns the sender's side: 0 if it is A. */
static __always_inline __u32 flow_key4_make(struct flow_key4 *k, __be32 saddr, __be32 daddr, __be16 sport, __be16 dport,
					    __u8 proto)
{
	__u64 src = (__u64)saddr << 16 | sport, dst = (__u64)daddr << 16 | dport;
	__u64 mask = src > dst ? ~0ULL : 0, swap = (src ^ dst) & mask;

	src ^= swap;
	dst ^= swap;
	k->a = (__be32)(src >> 16);
	k->b = (__be32)(dst >> 16);
	k->ap = (__be16)src;
	k->bp = (__be16)dst;
	k->proto = proto;
	k->zone = 0;
	k->pad = 0;
	return mask & 1;
}

static __always_inline int flow_side6(const __be32 *s, const __be32 *d, __be16 sport, __be16 dport)
{
	int i;

#pragma unroll
	for (i = 0; i < 4; i++)
		if (s[i] != d[i])
			return s[i] > d[i];
	return sport > dport;
}

static __always_inline __u32 flow_key6_make(struct flow_key6 *k, const __be32 *saddr, const __be32 *daddr, __be16 sport,
					    __be16 dport, __u8 proto)
{
	__u32 side = flow_side6(saddr, daddr, sport, dport);

	if (side) {
		__builtin_memcpy(k->a, daddr, 16);
		__builtin_memcpy(k->b, saddr, 16);
		k->ap = dport;
		k->bp = sport;
	} else {
		__builtin_memcpy(k->a, saddr, 16);
		__builtin_memcpy(k->b, daddr, 16);
		k->ap = sport;
		k->bp = dport;
	}
	k->proto = proto;
	k->zone = 0;
	k->pad = 0;
	return side;
}

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

/* Writes a new entry opened by this packet, in place of any old one. */
__noinline int flow_create(struct packet *p, __u32 epoch, __u32 flags, __u32 bytes)
{
	struct flow h = {
		.last = (__u32)bpf_jiffies64(),
		.epoch = epoch,
	};

	if (!p)
		return -DROP_FLOW_INSERT_FAILED;
	h.flags = (__u16)(flags | (p->side ? FLOW_OPENER_B : 0));
	h.bytes[0] = p->side ? 0 : bytes;
	h.bytes[1] = p->side ? bytes : 0;
	h.packets[0] = p->side ? 0 : 1;
	h.packets[1] = p->side ? 1 : 0;
	h.ep[0] = p->side ? p->src_slot : p->dst_slot;
	h.ep[1] = p->side ? p->dst_slot : p->src_slot;
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

/* `side` 0 or 1: who sent the packet. */
static __always_inline void flow_account(struct flow *h, __u32 side, __u32 bytes)
{
	__u32 now = (__u32)bpf_jiffies64();

	if (h->last != now)
		h->last = now;
	if (side) {
		__sync_fetch_and_add(&h->bytes[1], bytes);
		__sync_fetch_and_add(&h->packets[1], 1);
	} else {
		__sync_fetch_and_add(&h->bytes[0], bytes);
		__sync_fetch_and_add(&h->packets[0], 1);
	}
}

/* Slot that packets of the sender on `side` go to, and the slot they come from. */
static __always_inline __u16 flow_to(const struct flow *h, __u32 side)
{
	return side ? h->ep[1] : h->ep[0];
}

static __always_inline __u16 flow_from(const struct flow *h, __u32 side)
{
	return side ? h->ep[0] : h->ep[1];
}
