/* SPDX-License-Identifier: GPL-2.0 */
/* The flow table as every packet needs it: keys, sides, accounts. One entry serves both directions. */
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
