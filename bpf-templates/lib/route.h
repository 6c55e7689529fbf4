/* SPDX-License-Identifier: GPL-2.0 */
/* Where the world is: behind one of the node's devices, or wherever the host's stack finds it. */
#pragma once
#include "endpoint.h"
#include "maps.h"
#include "packet.h"

TABLE_device;

static __always_inline int slot_is_world(__u32 slot)
{
	return slot == SLOT_WORLD || (slot >= SLOT_DEVICES && slot < SLOT_FIRST);
}

/* The same place, by whatever way. A function of its own, so that its branches are not looked at again behind each call. */
__noinline int slot_same(__u32 a, __u32 b)
{
	return a == b || (slot_is_world(a) && slot_is_world(b));
}

/*
 * Slot of the device, and of the next hop there, that the kernel would route by:
 * to the packet's receiver, or `back` to its sender. SLOT_WORLD where only the
 * stack can tell: no such device, no plain route, or one with a smaller MTU than
 * its device.
 */
__noinline __u32 route_slot(struct __sk_buff *ctx, struct packet *p, __u32 back)
{
	struct endpoint *world = endpoint_row(SLOT_WORLD), *host = endpoint_row(SLOT_HOST), *row;
	struct bpf_fib_lookup fib = {};
	struct device_key key = {};
	struct device_entry *e;
	long ret;

	if (!p || !world || !host || !(world->flags & EP_ROUTE))
		return SLOT_WORLD;
	fib.family = (__u8)(AF_INET + (p->family - 4) * ((AF_INET6 - AF_INET) / 2));
	fib.tot_len = 1;
	fib.ifindex = host->ifindex;
	__builtin_memcpy(fib.src, packet_addr(p, back), 16);
	__builtin_memcpy(fib.dst, packet_addr(p, back ^ 1), 16);
	ret = bpf_fib_lookup(ctx, &fib, sizeof(fib), 0);
	if (ret != BPF_FIB_LKUP_RET_SUCCESS && ret != BPF_FIB_LKUP_RET_NO_NEIGH)
		return SLOT_WORLD;
	key.ifindex = fib.ifindex;
	key.next_hop.family = fib.family;
	__builtin_memcpy(key.next_hop.addr, fib.dst, 16);
	e = bpf_map_lookup_elem(&device, &key);
	if (!e) {
		/* A neighbour, or a gateway without a slot of its own. */
		__builtin_memset(&key.next_hop, 0, sizeof(key.next_hop));
		e = bpf_map_lookup_elem(&device, &key);
		if (!e)
			return SLOT_WORLD;
	}
	row = endpoint_row(e->slot);
	if (!row || !(row->flags & EP_VALID) || (ret == BPF_FIB_LKUP_RET_SUCCESS && fib.tot_len < row->mtu))
		return SLOT_WORLD;
	return e->slot;
}
