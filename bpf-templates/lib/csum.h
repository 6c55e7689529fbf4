/* SPDX-License-Identifier: GPL-2.0 */
/* Internet checksum (RFC 1071) of headers that we build ourselves. */
#pragma once
#include <bpf.h>

static __always_inline __sum16 csum_fold(__wsum sum)
{
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return (__sum16)~sum;
}

/* Sum over the IPv6 pseudo header (RFC 8200, 8.1) of an ICMPv6 message of `len` bytes; addrs is source, destination. */
static __always_inline __wsum csum_pseudo6(const __be32 *addrs, __u32 len, __u8 proto, __wsum seed)
{
	__be32 tail[2] = { bpf_htonl(len), bpf_htonl((__u32)proto) };

	seed = (__wsum)bpf_csum_diff(0, 0, addrs, 32, seed);
	return (__wsum)bpf_csum_diff(0, 0, tail, sizeof(tail), seed);
}
