/* SPDX-License-Identifier: GPL-2.0 */
/* The flow table as every packet needs it: keys, sides, accounts. One entry serves both directions. */
#pragma once
#include "maps.h"
#include "packet.h"

TABLE_flow4;
TABLE_flow6;

/*
 * All of this is free of branches, so that the verifier looks at what follows
 * once, and not again for each side: a value that is known because of a branch is
 * followed on its own.
 */

/* Sorts by (address, port) as they stand in memory. Returns the sender's side: 0 if it is A. */
static __always_inline __u32 flow_key4_make(struct flow_key4 *k, __be32 saddr, __be32 daddr, __be16 sport, __be16 dport,
					    __u8 proto)
{
	__u64 src = (__u64)saddr << 16 | sport, dst = (__u64)daddr << 16 | dport;
	__u64 side = dst - src, swap;

	OPAQUE(side);
	side >>= 63;
	swap = (src ^ dst) & (0 - side);
	src ^= swap;
	dst ^= swap;
	k->a = (__be32)(src >> 16);
	k->b = (__be32)(dst >> 16);
	k->ap = (__be16)src;
	k->bp = (__be16)dst;
	k->proto = proto;
	k->zone = 0;
	k->pad = 0;
	return (__u32)side;
}

/* What `a - b - less` borrows from the digit above. */
static __always_inline __u64 flow_borrow(__u64 a, __u64 b, __u64 less)
{
	__u64 ret;

	/* What is known of ports would make it a branch. */
	OPAQUE(a);
	ret = ((~a & b) | (~(a ^ b) & (a - b - less))) >> 63;
	OPAQUE(ret);
	return ret;
}

/* By (address, port) as well, the address as two words of 64 bits. `k` is at a multiple of 8. */
static __always_inline __u32 flow_key6_make(struct flow_key6 *k, const __be32 *saddr, const __be32 *daddr, __be16 sport,
					    __be16 dport, __u8 proto)
{
	__u64 *a = (__u64 *)k->a, *b = (__u64 *)k->b, side, mask, swap;
	__u32 ports;
	int i;

	__builtin_memcpy(a, saddr, 16);
	__builtin_memcpy(b, daddr, 16);
	/* In the key and not in registers: what there are too few of would be saved beside it, and stack is short. */
	asm volatile("" : : "r"(k) : "memory");
	side = flow_borrow(b[1], a[1], flow_borrow(dport, sport, 0));
	side = flow_borrow(b[0], a[0], side);
	mask = 0 - side;
#pragma unroll
	for (i = 0; i < 2; i++) {
		swap = (a[i] ^ b[i]) & mask;
		a[i] ^= swap;
		b[i] ^= swap;
	}
	ports = (sport ^ dport) & (__u32)mask;
	k->ap = (__be16)(sport ^ ports);
	k->bp = (__be16)(dport ^ ports);
	k->proto = proto;
	k->zone = 0;
	k->pad = 0;
	/* Read by the kernel, as words of another size. */
	asm volatile("" : : "r"(k) : "memory");
	return (__u32)side;
}

/* `side` 0 or 1: who sent the packet. */
static __always_inline void flow_account(struct flow *h, __u32 side, __u32 bytes)
{
	__u32 now = (__u32)bpf_jiffies64();

	if (h->last != now)
		h->last = now;
	__sync_fetch_and_add(&h->bytes[side & 1], bytes);
	__sync_fetch_and_add(&h->packets[side & 1], 1);
}

/* Both of the entry's slots, that of direction 0 in the lower half. */
static __always_inline __u32 flow_slots(const struct flow *h)
{
	return *(const volatile __u32 *)h->ep;
}

/* Slot that packets of the sender on `side` go to, and the slot they come from. */
static __always_inline __u16 flow_to(const struct flow *h, __u32 side)
{
	return (__u16)(flow_slots(h) >> (side << 4));
}

static __always_inline __u16 flow_from(const struct flow *h, __u32 side)
{
	return (__u16)(flow_slots(h) >> ((side ^ 1) << 4));
}
