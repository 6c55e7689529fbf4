/* SPDX-License-Identifier: GPL-2.0 */
/* IPv4 header (RFC 791): load, bounds, TTL. */
#pragma once
#include "l4.h"

enum {
	IP_FRAGMENT_MASK = 0x3fff, /* more fragments, or an offset */
};

static __always_inline int ipv4_is_multicast(__be32 addr)
{
	return (addr & bpf_htonl(0xf0000000)) == bpf_htonl(0xe0000000) || addr == 0xffffffff;
}

static __always_inline int ipv4_is_unroutable(__be32 addr)
{
	return !(addr & bpf_htonl(0xff000000)) || (addr & bpf_htonl(0xff000000)) == bpf_htonl(0x7f000000);
}

/* First offset behind a packet that says to be `len` bytes from `off` on; 0: longer than 64 KiB, the length is in the skb. */
__noinline __u32 packet_end(struct __sk_buff *ctx, __u32 off, __u32 len)
{
	return !len && ctx->gso_segs > 1 ? ctx->len : off + len;
}

static __always_inline int parse_ipv4(struct __sk_buff *ctx, struct packet *p)
{
	struct iphdr ip;
	__u32 hlen, end;

	if (bpf_skb_load_bytes(ctx, ETH_HLEN, &ip, sizeof(ip)) < 0)
		return -DROP_INVALID_PACKET;
	hlen = (ip.vihl & 0xf) * 4;
	end = packet_end(ctx, ETH_HLEN, bpf_ntohs(ip.tot_len));
	p->family = 4;
	p->saddr[0] = ip.saddr;
	p->daddr[0] = ip.daddr;
	p->proto = ip.protocol;
	p->hops = ip.ttl;
	if (ip.vihl >> 4 != 4 || hlen < sizeof(ip) || end > ctx->len || ETH_HLEN + hlen > end)
		return -DROP_INVALID_PACKET;
	p->l4_off = ETH_HLEN + hlen;
	p->whole = !!(ip.frag_off & bpf_htons(0x4000));
	p->frag_id = ip.id;
	return parse_part(ctx, p, end, (bpf_ntohs(ip.frag_off) & 0x1fff) * 8 | !!(ip.frag_off & bpf_htons(0x2000)));
}

/* Takes `hop`, 0 or 1, off the TTL in place and corrects the header checksum (RFC 1624). */
static __always_inline void ipv4_hop(struct iphdr *ip, __u32 hop)
{
	__u32 check = ip->check + bpf_htons(0x0100) * hop;

	ip->check = (__sum16)(check + ((check + hop) >> 16));
	ip->ttl -= (__u8)hop;
}
