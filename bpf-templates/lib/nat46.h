/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Containers without IPv4 and the IPv4 world (RFC 7915): an address of the node's
 * IPv4 range stands for such a container, and an IPv6 prefix with an IPv4 address
 * behind it for everybody there. Flow and policy see IPv4 alone; the container
 * sees IPv6 alone. What is in parts, has options or extension headers, or no
 * checksum that covers it, is refused.
 */
#pragma once
#include "answer.h"
#include "endpoint.h"
#include "icmp.h"
#include "maps.h"
#include "nat.h"

TABLE_nat46;

enum {
	NAT46_QUOTE = 64, /* bytes behind the IP header that a translated error quotes */
	NAT46_GROWTH = sizeof(struct ipv6hdr) - sizeof(struct iphdr),
	IPV6_MIN_MTU = 1280,
};

static __always_inline struct nat46_range *nat46_range_row(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&nat46, &zero);
}

/* Whether an address stands for an IPv4 address. */
static __always_inline int nat46_covers(const __be32 *addr)
{
	struct nat46_range *r = nat46_range_row();

	return r && addr[0] == r->prefix[0] && addr[1] == r->prefix[1] && addr[2] == r->prefix[2];
}

static __always_inline void nat46_address(__be32 *addr, const struct nat46_range *r, __be32 ip4)
{
	addr[0] = r->prefix[0];
	addr[1] = r->prefix[1];
	addr[2] = r->prefix[2];
	addr[3] = ip4;
}

/* The other family's number of a protocol, 0 for none; below, of an echo's type. */
static __always_inline __u8 nat46_proto(__u8 proto)
{
	switch (proto) {
	case IPPROTO_TCP:
	case IPPROTO_UDP:
		return proto;
	case IPPROTO_ICMP:
		return IPPROTO_ICMPV6;
	case IPPROTO_ICMPV6:
		return IPPROTO_ICMP;
	}
	return 0;
}

static __always_inline __u8 nat46_echo(__u8 type)
{
	switch (type) {
	case ICMP6_ECHO:
		return ICMP_ECHO;
	case ICMP6_ECHO_REPLY:
		return ICMP_ECHO_REPLY;
	case ICMP_ECHO:
		return ICMP6_ECHO;
	}
	return ICMP6_ECHO_REPLY;
}

static __always_inline void nat46_header4(struct iphdr *ip, __u32 len, __u8 hops, __u8 proto, __u8 tos)
{
	ip->vihl = 0x45;
	ip->tos = tos;
	ip->tot_len = bpf_htons((__u16)len);
	ip->frag_off = bpf_htons(0x4000); /* IPv6 is never cut on its way */
	ip->ttl = hops;
	ip->protocol = proto;
	ip->check = csum_fold((__wsum)bpf_csum_diff(0, 0, (__be32 *)ip, sizeof(*ip), 0));
}

static __always_inline __u8 nat46_class(__be32 vtcfl)
{
	return (__u8)(bpf_ntohl(vtcfl) >> 20);
}

/* The transport's checksum and, of an echo, the type: from one pseudo header to the other. `l4`: where it is now. */
__noinline int nat46_transport(struct __sk_buff *ctx, struct packet *p, __u32 l4, __u32 pseudo)
{
	__u64 mangled;
	__u32 check;
	__u8 type;

	if (!p)
		return -DROP_WRITE_ERROR;
	check = l4 + nat_check_offset(p->proto);
	mangled = p->proto == IPPROTO_UDP ? BPF_F_MARK_MANGLED_0 : 0;
	if (bpf_l4_csum_replace(ctx, check, 0, pseudo, mangled | BPF_F_PSEUDO_HDR) < 0)
		return -DROP_WRITE_ERROR;
	if (p->proto == IPPROTO_TCP || p->proto == IPPROTO_UDP)
		return 0;
	type = nat46_echo(p->icmp_type);
	if (bpf_l4_csum_replace(ctx, check, p->icmp_type, type, 2) < 0 || bpf_skb_store_bytes(ctx, l4, &type, 1, 0) < 0)
		return -DROP_WRITE_ERROR;
	return 0;
}

/* Ethernet's idea of what follows, and the header that does. */
static __always_inline int nat46_store(struct __sk_buff *ctx, __be16 proto, const void *header, __u32 len)
{
	return bpf_skb_store_bytes(ctx, 12, &proto, 2, 0) < 0 ||
			       bpf_skb_store_bytes(ctx, ETH_HLEN, header, len, 0) < 0 ?
		       -DROP_WRITE_ERROR :
		       0;
}

struct nat64_error {
	struct iphdr ip;
	struct icmphdr icmp;
	struct iphdr quoted;
	__be32 l4[NAT46_QUOTE / 4];
};

struct nat46_error {
	struct ipv6hdr ip;
	struct icmphdr icmp;
	struct ipv6hdr quoted;
	__be32 l4[NAT46_QUOTE / 4];
};

/* Bytes of a quote behind its IP header, a multiple of 4 up to NAT46_QUOTE; 0: too few. */
static __always_inline __u32 nat46_quote(struct __sk_buff *ctx, __u32 off, __be32 *to)
{
	__u32 len = ctx->len - off;

	if (len > NAT46_QUOTE)
		len = NAT46_QUOTE;
	len &= 0x7c;
	OPAQUE(len); /* or clang tests the unmasked value */
	if (len < 8 || len > NAT46_QUOTE || bpf_skb_load_bytes(ctx, off, to, len) < 0)
		return 0;
	return len;
}

/* Kind of an error of IPv6 in IPv4: type << 8 | code; below 0 there is none (RFC 7915, 5.2). */
static __always_inline int nat64_kind(__u8 type, __u8 code)
{
	switch (type) {
	case ICMP6_UNREACHABLE:
		return ICMP_UNREACHABLE << 8 | (code == 1 ? 10 : code == 4 ? 3 : 1);
	case ICMP6_TOO_BIG:
		return ICMP_UNREACHABLE << 8 | ICMP_FRAGMENTATION_NEEDED;
	case ICMP6_TIME_EXCEEDED:
		return ICMP_TIME_EXCEEDED << 8 | code;
	case ICMP6_PARAMETER:
		if (code == 1)
			return ICMP_UNREACHABLE << 8 | 2;
	}
	return -1;
}

/* The same the other way (4.2). */
static __always_inline int nat46_kind(__u8 type, __u8 code)
{
	if (type == ICMP_TIME_EXCEEDED)
		return ICMP6_TIME_EXCEEDED << 8 | code;
	if (type != ICMP_UNREACHABLE)
		return -1;
	switch (code) {
	case 2:
		return ICMP6_PARAMETER << 8 | 1;
	case 3:
		return ICMP6_UNREACHABLE << 8 | 4;
	case ICMP_FRAGMENTATION_NEEDED:
		return ICMP6_TOO_BIG << 8;
	case 9:
	case 10:
	case 13:
	case 15:
		return ICMP6_UNREACHABLE << 8 | 1;
	}
	return ICMP6_UNREACHABLE << 8;
}

/* An ICMPv6 error of a container about what an IPv4 address sent to it. */
__noinline int nat64_error(struct __sk_buff *ctx, struct packet *p, struct endpoint *row)
{
	struct nat64_error e = {};
	struct ipv6hdr quoted;
	__u32 len, off, mtu;
	__wsum sum;
	int kind;

	if (!p || !row)
		return -DROP_INVALID_PACKET;
	kind = nat64_kind(p->icmp_type, p->icmp_code);
	off = p->l4_off + sizeof(struct icmphdr);
	if (kind < 0 || bpf_skb_load_bytes(ctx, off, &quoted, sizeof(quoted)) < 0 || !nat46_covers(quoted.saddr) ||
	    !nat46_proto(quoted.nexthdr) || bpf_skb_load_bytes(ctx, p->l4_off + 4, &mtu, 4) < 0)
		return -DROP_NAT46_UNSUPPORTED;
	len = nat46_quote(ctx, off + sizeof(quoted), e.l4);
	if (!len)
		return -DROP_TRUNCATED_L4;
	e.icmp.type = (__u8)(kind >> 8);
	e.icmp.code = (__u8)kind;
	if (p->icmp_type == ICMP6_TOO_BIG)
		e.icmp.seq = bpf_htons((__u16)(bpf_ntohl(mtu) - NAT46_GROWTH));
	e.quoted.saddr = quoted.saddr[3];
	e.quoted.daddr = row->ip4;
	nat46_header4(&e.quoted, bpf_ntohs(quoted.payload_len) + sizeof(e.quoted), quoted.hop_limit,
		      nat46_proto(quoted.nexthdr), nat46_class(quoted.vtcfl));
	if (quoted.nexthdr == IPPROTO_ICMPV6)
		*(__u8 *)e.l4 = nat46_echo(*(__u8 *)e.l4);
	sum = (__wsum)bpf_csum_diff(0, 0, (__be32 *)&e.icmp, sizeof(e.icmp) + sizeof(e.quoted), 0);
	e.icmp.check = csum_fold((__wsum)bpf_csum_diff(0, 0, e.l4, len, sum));
	e.ip.saddr = row->ip4;
	e.ip.daddr = p->daddr[3];
	nat46_header4(&e.ip, sizeof(e) - sizeof(e.l4) + len, p->hops, IPPROTO_ICMP, 0);
	len += sizeof(e) - sizeof(e.l4);
	if (bpf_skb_change_proto(ctx, bpf_htons(ETH_P_IP), 0) < 0 || bpf_skb_change_tail(ctx, ETH_HLEN + len, 0) < 0)
		return -DROP_WRITE_ERROR;
	return nat46_store(ctx, bpf_htons(ETH_P_IP), &e, len);
}

/* An ICMP error to a container about what it sent to an IPv4 address, as its flow shows. */
__noinline int nat46_error(struct __sk_buff *ctx, struct packet *p, struct endpoint *row)
{
	struct nat46_range *r = nat46_range_row();
	struct nat46_error e = {};
	struct icmphdr icmp;
	struct iphdr quoted;
	__u32 len, off, mtu;
	__wsum sum;
	int kind;

	if (!p || !row || !r)
		return -DROP_INVALID_PACKET;
	kind = nat46_kind(p->icmp_type, p->icmp_code);
	off = p->l4_off + sizeof(icmp);
	if (kind < 0 || bpf_skb_load_bytes(ctx, p->l4_off, &icmp, sizeof(icmp)) < 0 ||
	    bpf_skb_load_bytes(ctx, off, &quoted, sizeof(quoted)) < 0 || quoted.vihl != 0x45 ||
	    !nat46_proto(quoted.protocol))
		return -DROP_NAT46_UNSUPPORTED;
	len = nat46_quote(ctx, off + sizeof(quoted), e.l4);
	if (!len)
		return -DROP_TRUNCATED_L4;
	e.icmp.type = (__u8)(kind >> 8);
	e.icmp.code = (__u8)kind;
	if (e.icmp.type == ICMP6_TOO_BIG) {
		mtu = bpf_ntohs(icmp.seq) + NAT46_GROWTH;
		e.icmp.seq = bpf_htons((__u16)(mtu < IPV6_MIN_MTU ? IPV6_MIN_MTU : mtu));
	} else if (e.icmp.type == ICMP6_PARAMETER) {
		e.icmp.seq = bpf_htons(6); /* points at the next header */
	}
	e.quoted.vtcfl = bpf_htonl(0x60000000 | (__u32)quoted.tos << 20);
	e.quoted.payload_len = bpf_htons((__u16)(bpf_ntohs(quoted.tot_len) - sizeof(quoted)));
	e.quoted.nexthdr = nat46_proto(quoted.protocol);
	e.quoted.hop_limit = quoted.ttl;
	__builtin_memcpy(e.quoted.saddr, row->ip6, 16);
	nat46_address(e.quoted.daddr, r, quoted.daddr);
	if (quoted.protocol == IPPROTO_ICMP)
		*(__u8 *)e.l4 = nat46_echo(*(__u8 *)e.l4);
	e.ip.vtcfl = bpf_htonl(0x60000000);
	e.ip.payload_len = bpf_htons((__u16)(sizeof(e.icmp) + sizeof(e.quoted) + len));
	e.ip.nexthdr = IPPROTO_ICMPV6;
	e.ip.hop_limit = p->hops;
	nat46_address(e.ip.saddr, r, p->saddr[0]);
	__builtin_memcpy(e.ip.daddr, row->ip6, 16);
	sum = csum_pseudo6(e.ip.saddr, sizeof(e.icmp) + sizeof(e.quoted) + len, IPPROTO_ICMPV6, 0);
	sum = (__wsum)bpf_csum_diff(0, 0, (__be32 *)&e.icmp, sizeof(e.icmp) + sizeof(e.quoted), sum);
	e.icmp.check = csum_fold((__wsum)bpf_csum_diff(0, 0, e.l4, len, sum));
	len += sizeof(e) - sizeof(e.l4);
	if (bpf_skb_change_proto(ctx, bpf_htons(ETH_P_IPV6), 0) < 0 || bpf_skb_change_tail(ctx, ETH_HLEN + len, 0) < 0)
		return -DROP_WRITE_ERROR;
	return nat46_store(ctx, bpf_htons(ETH_P_IPV6), &e, len);
}

/* What has no counterpart in the other family: -DROP_*, else 0. `header`: length of an IP header with nothing in it but itself. */
static __always_inline int nat46_refuses(const struct packet *p, __u32 header)
{
	if (p->frag)
		return -DROP_NAT46_FRAGMENT;
	return p->l4_off == ETH_HLEN + header && (p->kind == PKT_ERROR || nat_has_port(p)) ? 0 :
											     -DROP_NAT46_UNSUPPORTED;
}

/* A container's packet to an address that stands for an IPv4 address. `p` is of another packet afterwards. */
__noinline int nat64(struct __sk_buff *ctx, struct packet *p, struct endpoint *row)
{
	struct iphdr ip = {};
	struct ipv6hdr old;
	__be32 tail[2];
	__s64 pseudo;
	int ret;

	if (!p || !row)
		return -DROP_INVALID_PACKET;
	ret = nat46_refuses(p, sizeof(old));
	if (ret < 0)
		return ret;
	if (p->kind == PKT_ERROR)
		return nat64_error(ctx, p, row);
	if (bpf_skb_load_bytes(ctx, ETH_HLEN, &old, sizeof(old)) < 0)
		return -DROP_INVALID_PACKET;
	ip.saddr = row->ip4;
	ip.daddr = old.daddr[3];
	nat46_header4(&ip, bpf_ntohs(old.payload_len) + sizeof(ip), old.hop_limit, nat46_proto(p->proto),
		      nat46_class(old.vtcfl));
	/* ICMP's checksum covers no addresses, that of ICMPv6 covers also length and protocol. */
	tail[0] = bpf_htonl(bpf_ntohs(old.payload_len));
	tail[1] = bpf_htonl(IPPROTO_ICMPV6);
	if (p->proto == IPPROTO_ICMPV6)
		pseudo = bpf_csum_diff(tail, 8, 0, 0, (__wsum)bpf_csum_diff(old.saddr, 32, 0, 0, 0));
	else
		pseudo = bpf_csum_diff(old.saddr, 32, &ip.saddr, 8, 0);
	/* Where a device summed the whole packet up; an IPv4 header evens itself out. */
	bpf_csum_update(ctx, (__wsum)bpf_csum_diff((__be32 *)&old, sizeof(old), 0, 0, 0));
	if (bpf_skb_change_proto(ctx, bpf_htons(ETH_P_IP), 0) < 0 ||
	    nat46_store(ctx, bpf_htons(ETH_P_IP), &ip, sizeof(ip)) < 0)
		return -DROP_WRITE_ERROR;
	return nat46_transport(ctx, p, ETH_HLEN + sizeof(ip), (__u32)pseudo);
}

/*
 * An IPv4 packet as the container of `row` sees it: its receiver (`dst`), or the
 * one that nat64 made this of.
 */
__noinline int nat46_to_container(struct __sk_buff *ctx, struct packet *p, struct endpoint *row, __u32 dst)
{
	struct nat46_range *r = nat46_range_row();
	struct ipv6hdr ip = {};
	__be32 tail[2];
	struct iphdr old;
	__s64 pseudo;
	__sum16 check;
	int ret;

	if (!p || !row || !r)
		return -DROP_INVALID_PACKET;
	ret = nat46_refuses(p, sizeof(old));
	if (ret < 0)
		return ret;
	if (p->kind == PKT_ERROR)
		return nat46_error(ctx, p, row);
	if (bpf_skb_load_bytes(ctx, ETH_HLEN, &old, sizeof(old)) < 0)
		return -DROP_INVALID_PACKET;
	/* UDP over IPv6 has a checksum always. */
	if (p->proto == IPPROTO_UDP && (bpf_skb_load_bytes(ctx, p->l4_off + 6, &check, 2) < 0 || !check))
		return -DROP_NAT46_UNSUPPORTED;
	ip.vtcfl = bpf_htonl(0x60000000 | (__u32)old.tos << 20);
	ip.payload_len = bpf_htons((__u16)(bpf_ntohs(old.tot_len) - sizeof(old)));
	ip.nexthdr = nat46_proto(p->proto);
	ip.hop_limit = old.ttl;
	if (dst) {
		nat46_address(ip.saddr, r, old.saddr);
		__builtin_memcpy(ip.daddr, row->ip6, 16);
	} else {
		__builtin_memcpy(ip.saddr, row->ip6, 16);
		nat46_address(ip.daddr, r, old.daddr);
	}
	tail[0] = bpf_htonl(bpf_ntohs(ip.payload_len));
	tail[1] = bpf_htonl(IPPROTO_ICMPV6);
	if (p->proto == IPPROTO_ICMP)
		pseudo = bpf_csum_diff(0, 0, tail, 8, (__wsum)bpf_csum_diff(0, 0, ip.saddr, 32, 0));
	else
		pseudo = bpf_csum_diff(&old.saddr, 8, ip.saddr, 32, 0);
	if (bpf_skb_change_proto(ctx, bpf_htons(ETH_P_IPV6), 0) < 0 ||
	    nat46_store(ctx, bpf_htons(ETH_P_IPV6), &ip, sizeof(ip)) < 0)
		return -DROP_WRITE_ERROR;
	bpf_csum_update(ctx, (__wsum)bpf_csum_diff(0, 0, (__be32 *)&ip, sizeof(ip), 0));
	return nat46_transport(ctx, p, ETH_HLEN + sizeof(ip), (__u32)pseudo);
}
