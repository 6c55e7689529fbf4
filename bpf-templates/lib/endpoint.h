/* SPDX-License-Identifier: GPL-2.0 */
/* The endpoint table and what of it an own build holds as constants. */
#pragma once
#include "config.h"
#include "maps.h"
#include "packet.h"

TABLE_endpoint;

#if CONFIG_OWN
#define EP_MAC(row) EP_MAC_CONST
#define EP_HOST_MAC(row) EP_HOST_MAC_CONST
#define EP_IP4(row) EP_IPV4_CONST
#define EP_IP6(row) ((const __be32 *)EP_IPV6_CONST)
#define EP_MTU(row) EP_MTU_CONST
#define EP_IFINDEX(row) EP_IFINDEX_CONST
#define EP_OWNS_SLOT(slot) ((slot) == EP_SLOT_CONST)
#else
#define EP_MAC(row) ((row)->mac)
#define EP_HOST_MAC(row) ((row)->host_mac)
#define EP_IP4(row) ((row)->ip4)
#define EP_IP6(row) ((row)->ip6)
#define EP_MTU(row) ((row)->mtu)
#define EP_IFINDEX(row) ((row)->ifindex)
#define EP_OWNS_SLOT(slot) 1
#endif

/*
 * The slow path calls it: the kernel writes out each look into an array in place,
 * and moves all that follows in the program every time.
 */
#ifdef ENDPOINT_ROW_CALLED
static __noinline
#else
static __always_inline
#endif
	struct endpoint *
	endpoint_row(__u32 slot)
{
	return bpf_map_lookup_elem(&endpoint, &slot);
}

static __always_inline int slot_is_container(__u32 slot)
{
	return slot >= SLOT_FIRST && slot < SLOT_NODES;
}
