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
	return !(addr[0] | addr[1] | addr[2] | addr[3]);
}

static __always_inline int ipv6_is_unroutable(const __be32 *addr)
{
	return !(addr[0] | addr[1] | addr[2]) && bpf_ntohl(addr[3]) <= 1;
}

/* fe80:: with the modified EUI-64 of a MAC (RFC 4291, appendix A). */
static __always_inline int ipv6_is_link_local_of(const __be32 *addr, const __u8 *mac)
{
	return addr[0] == bpf_htonl(0xfe800000) && !addr[1] &&
	       addr[2] ==
		       bpf_htonl(((__u32)(mac[0] ^ 2) << 24) | ((__u32)mac[1] << 16) | ((__u32)mac[2] << 8) | 0xff) &&
	       addr[3] == bpf_htonl(0xfe000000 | ((__u32)mac[3] << 16) | ((__u32)mac[4] << 8) | mac[5]);
}

/* fe80::1, the gateway of every container. */
static __always_inline int ipv6_is_gateway(const __be32 *addr)
{
	return addr[0] == bpf_htonl(0xfe800000) && !addr[1] && !addr[2] && addr[3] == bpf_htonl(1);
}

static __always_inline int ipv6_is_extension(__u8 next)
{
	return next == IPPROTO_HOPOPTS || next == IPPROTO_ROUTING || next == IPPROTO_DSTOPTS || next == IPPROTO_AH ||
	       next == IPPROTO_FRAGMENT;
}

/* The first 8 bytes of an extension header: of a fragment header all of it. */
struct ipv6_fragment {
	__u8 nexthdr;
	__u8 len;      /* units of 8 bytes, less one; nothing in a fragment header */
	__be16 offset; /* bytes, a multiple of 8; 1: more follow */
	__be32 id;
};

static __always_inline int parse_ipv6(struct __sk_buff *ctx, struct packet *p)
{
	__u32 off = ETH_HLEN + sizeof(struct ipv6hdr), end, cut = 0;
	struct ipv6_fragment part;
	struct ipv6hdr ip;
	__u8 next, ext[2];
	int i, ret, fragmented = 0;

	if (bpf_skb_load_bytes(ctx, ETH_HLEN, &ip, sizeof(ip)) < 0)
		return -DROP_INVALID_PACKET;
	end = off + bpf_ntohs(ip.payload_len);
	if (!ip.payload_len && ctx->gso_segs > 1)
		end = ctx->len; /* longer than 64 KiB: the length is in the skb */
	p->family = 6;
	p->whole = 1;
	__builtin_memcpy(p->saddr, ip.saddr, sizeof(p->saddr));
	__builtin_memcpy(p->daddr, ip.daddr, sizeof(p->daddr));
	p->hops = ip.hop_limit;
	next = ip.nexthdr;
	if ((ip.vtcfl & bpf_htonl(0xf0000000)) != bpf_htonl(0x60000000) || end > ctx->len)
		return -DROP_INVALID_PACKET;
	/* Finds the transport header only: what is behind is parsed once, not once an iteration. */
#pragma unroll
	for (i = 0; i <= IPV6_EXTENSIONS; i++) {
		if (!ipv6_is_extension(next) || next == IPPROTO_FRAGMENT)
			break;
		/* Hop-by-hop options stand first or nowhere. */
		if (i == IPV6_EXTENSIONS || (next == IPPROTO_HOPOPTS && i) || off + 8 > end ||
		    bpf_skb_load_bytes(ctx, off, ext, sizeof(ext)) < 0) {
			p->proto = next;
			return -DROP_INVALID_EXTENSION_HEADER;
		}
		off += next == IPPROTO_AH ? (ext[1] + 2) * 4 : (ext[1] + 1) * 8;
		next = ext[0];
	}
	if (next == IPPROTO_FRAGMENT) {
		p->proto = next;
		if (off + sizeof(part) > end || bpf_skb_load_bytes(ctx, off, &part, sizeof(part)) < 0)
			return -DROP_INVALID_EXTENSION_HEADER;
		off += sizeof(part);
		next = part.nexthdr;
		cut = bpf_ntohs(part.offset);
		p->frag_id = part.id;
		fragmented = 1;
		/* What the first fragment alone can show is not looked for any further. */
		if (ipv6_is_extension(next) && !(cut & ~7U))
			return -DROP_INVALID_EXTENSION_HEADER;
	}
	p->proto = next;
	if (off > end)
		return -DROP_INVALID_EXTENSION_HEADER;
	p->l4_off = off;
	ret = parse_part(ctx, p, end, cut);
	/* Neighbours never cut their messages (RFC 6980). */
	return p->kind == PKT_ND && fragmented ? -DROP_FRAGMENT : ret;
}
