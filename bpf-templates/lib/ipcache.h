/* SPDX-License-Identifier: GPL-2.0 */
/* Who is behind an address: the exact table first, then the longest prefix. */
#pragma once
#include "maps.h"
#include "packet.h"

TABLE_ipcache;
TABLE_ipcache_lpm;

/* Bits of a prefix that is a whole address, with the family before it: 64 for IPv4, 160 for IPv6. */
static __always_inline __u32 lpm_bits(__u32 family)
{
	return 64 + (family - 4) * 48;
}

static __noinline struct ipcache_entry *ipcache_find(const __be32 *addr, __u32 family)
{
	struct ipcache_key key = { .addr = { addr[0], addr[1], addr[2], addr[3] }, .family = (__u8)family };
	struct ipcache_entry *e = bpf_map_lookup_elem(&ipcache, &key);

	if (!e) {
		struct ipcache_lpm_key lpm = {
			.prefixlen = lpm_bits(family),
			.family = (__u8)family,
			.addr = { addr[0], addr[1], addr[2], addr[3] },
		};

		e = bpf_map_lookup_elem(&ipcache_lpm, &lpm);
	}
	return e;
}
