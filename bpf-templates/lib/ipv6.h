/* SPDX-License-Identifier: GPL-2.0 */
/* IPv6 header and extension headers (RFC 8200): load, bounds. */
#pragma once
#include "l4.h"

enum {
	IPV6_EXTENSIONS = 6, /* extension headers that are walked over */
};

static __always_inline int ipv6_is_multicast(const __be32 *addr)
{
	return (addr[0] & bpf_htonl(0xff000000)) == bpf_htonl(0xff000000);
}

static __always_inline int ipv6_is_unspecified(const __be32 *addr)
{
	__u32 any = addr[0] | addr[1] | addr[2] | addr[3];

	OPAQUE(any);
	return !any;
}

static __always_inline int ipv6_is_unroutable(const __be32 *addr)
{
	return !(addr[0] | addr[1] | addr[2]) && bpf_ntohl(addr[3]) <= 1;
}

/* fe80:: with the modified EUI-64 of a MAC (RFC 4291, appendix A). */
static __always_inline int ipv6_is_link_local_of(const __be32 *addr, const __u8 *mac)
{
	__be32 own[4] = {
		bpf_htonl(0xfe800000),
		0,
		bpf_htonl(((__u32)(mac[0] ^ 2) << 24) | ((__u32)mac[1] << 16) | ((__u32)mac[2] << 8) | 0xff),
		bpf_htonl(0xfe000000 | ((__u32)mac[3] << 16) | ((__u32)mac[4] << 8) | mac[5]),
	};

	return addr_equal(addr, own);
}

/* fe80::1, the gateway of every container. */
static __always_inline int ipv6_is_gateway(const __be32 *addr)
{
	__u32 differ = (addr[0] ^ bpf_htonl(0xfe800000)) | addr[1] | addr[2] | (addr[3] ^ bpf_htonl(1));

	OPAQUE(differ);
	return !differ;
}

static __always_inline int ipv6_is_extension(__u8 next)
{
	const __u64 all = 1ULL << IPPROTO_HOPOPTS | 1ULL << IPPROTO_ROUTING | 1ULL << IPPROTO_DSTOPTS |
			  1ULL << IPPROTO_AH | 1ULL << IPPROTO_FRAGMENT;

	return next < 64 && all >> next & 1;
}

/* The first 8 bytes of an extension header: of a fragment header all of it. */
struct ipv6_fragment {
	__u8 nexthdr;
	__u8 len;      /* units of 8 bytes, less one; nothing in a fragment header */
	__be16 offset; /* bytes, a multiple of 8; 1: more follow */
	__be32 id;
};

/* Goes over one extension header, from p->proto at p->l4_off to what follows. Returns 1, 0 if it is none, or -DROP_*. */
__noinline int ipv6_step(struct __sk_buff *ctx, struct packet *p, __u32 end)
{
	__u8 ext[2];

	if (!p)
		return -DROP_INVALID_PACKET;
	if (!ipv6_is_extension(p->proto) || p->proto == IPPROTO_FRAGMENT)
		return 0;
	if (p->l4_off + 8 > end || bpf_skb_load_bytes(ctx, p->l4_off, ext, sizeof(ext)) < 0)
		return -DROP_INVALID_EXTENSION_HEADER;
	p->l4_off += p->proto == IPPROTO_AH ? (ext[1] + 2) * 4 : (ext[1] + 1) * 8;
	p->proto = ext[0];
	/* Hop-by-hop options stand first or nowhere. */
	return p->proto == IPPROTO_HOPOPTS ? -DROP_INVALID_EXTENSION_HEADER : 1;
}

static __always_inline int parse_ipv6(struct __sk_buff *ctx, struct packet *p)
{
	__u32 off = ETH_HLEN + sizeof(struct ipv6hdr), end, cut = 0;
	struct ipv6_fragment part;
	struct ipv6hdr ip;
	int i, ret, fragmented = 0;

	if (bpf_skb_load_bytes(ctx, ETH_HLEN, &ip, sizeof(ip)) < 0)
		return -DROP_INVALID_PACKET;
	end = packet_end(ctx, off, bpf_ntohs(ip.payload_len));
	p->family = 6;
	p->whole = 1;
	__builtin_memcpy(p->saddr, ip.saddr, sizeof(p->saddr));
	__builtin_memcpy(p->daddr, ip.daddr, sizeof(p->daddr));
	p->hops = ip.hop_limit;
	if ((ip.vtcfl & bpf_htonl(0xf0000000)) != bpf_htonl(0x60000000) || end > ctx->len)
		return -DROP_INVALID_PACKET;
	p->proto = ip.nexthdr;
	p->l4_off = (__u16)off;
#pragma unroll
	for (i = 0; i < IPV6_EXTENSIONS; i++) {
		ret = ipv6_step(ctx, p, end);
		if (ret <= 0)
			break;
	}
	if (ret < 0)
		return ret;
	off = p->l4_off;
	if (p->proto == IPPROTO_FRAGMENT) {
		if (off + sizeof(part) > end || bpf_skb_load_bytes(ctx, off, &part, sizeof(part)) < 0)
			return -DROP_INVALID_EXTENSION_HEADER;
		off += sizeof(part);
		cut = bpf_ntohs(part.offset);
		p->frag_id = part.id;
		fragmented = 1;
		/* What the first fragment alone can show is not looked for any further. */
		if (ipv6_is_extension(part.nexthdr) && !(cut & ~7U))
			return -DROP_INVALID_EXTENSION_HEADER;
		p->proto = part.nexthdr;
		p->l4_off = (__u16)off;
	} else if (ret > 0 && ipv6_is_extension(p->proto)) {
		return -DROP_INVALID_EXTENSION_HEADER;
	}
	if (off > end)
		return -DROP_INVALID_EXTENSION_HEADER;
	ret = parse_part(ctx, p, end, cut);
	/* Neighbours never cut their messages (RFC 6980). */
	return p->kind == PKT_ND && fragmented ? -DROP_FRAGMENT : ret;
}
