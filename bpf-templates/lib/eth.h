/* SPDX-License-Identifier: GPL-2.0 */
/* Ethernet: compare and rewrite addresses. */
#pragma once
#include "packet.h"

static __always_inline int mac_equal(const __u8 *a, const __u8 *b)
{
	__u32 differ = (*(const __u16 *)a ^ *(const __u16 *)b) | (*(const __u16 *)(a + 2) ^ *(const __u16 *)(b + 2)) |
		       (*(const __u16 *)(a + 4) ^ *(const __u16 *)(b + 4));

	OPAQUE(differ);
	return !differ;
}

static __always_inline void mac_copy(__u8 *to, const __u8 *from)
{
	*(__u16 *)to = *(const __u16 *)from;
	*(__u16 *)(to + 2) = *(const __u16 *)(from + 2);
	*(__u16 *)(to + 4) = *(const __u16 *)(from + 4);
}

/* The bounds of data were checked by the caller. */
static __always_inline void eth_rewrite(struct ethhdr *eth, const __u8 *dst, const __u8 *src)
{
	mac_copy(eth->dst, dst);
	mac_copy(eth->src, src);
}
