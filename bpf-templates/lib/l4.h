/* SPDX-License-Identifier: GPL-2.0 */
/* Transport headers: ports, flags and ICMP kinds. */
#pragma once
#include "frag.h"
#include "icmp.h"
#include "packet.h"

static __always_inline int parse_tcp(struct __sk_buff *ctx, struct packet *p, __u32 end)
{
	struct tcphdr tcp;

	if (bpf_skb_load_bytes(ctx, p->l4_off, &tcp, sizeof(tcp)) < 0)
		return -DROP_TRUNCATED_L4;
	if (tcp.doff >> 4 < 5 || p->l4_off + (tcp.doff >> 4) * 4 > end)
		return -DROP_TRUNCATED_L4;
	p->sport = tcp.source;
	p->dport = tcp.dest;
	p->tcp_flags = tcp.flags;
	p->l4_len = tcp.doff >> 2 & 0x3c;
	p->match = bpf_ntohs(tcp.dest);
	return 0;
}

/* UDP and SCTP start with the ports; `min` is the length of the header. */
static __always_inline int parse_ports(struct __sk_buff *ctx, struct packet *p, __u32 end, __u32 min)
{
	__be16 ports[2];

	if (p->l4_off + min > end || bpf_skb_load_bytes(ctx, p->l4_off, ports, sizeof(ports)) < 0)
		return -DROP_TRUNCATED_L4;
	p->sport = ports[0];
	p->dport = ports[1];
	p->l4_len = (__u8)min;
	p->match = bpf_ntohs(ports[1]);
	return 0;
}

static __always_inline int parse_icmp(struct __sk_buff *ctx, struct packet *p, __u32 end)
{
	struct icmphdr icmp;

	if (p->l4_off + sizeof(icmp) > end || bpf_skb_load_bytes(ctx, p->l4_off, &icmp, sizeof(icmp)) < 0)
		return -DROP_TRUNCATED_L4;
	p->icmp_type = icmp.type;
	p->icmp_code = icmp.code;
	p->match = icmp.type;
	if (icmp_is_echo(p->proto, icmp.type)) {
		p->sport = icmp.id;
		p->dport = icmp.id;
		return 0;
	}
	p->dport = icmp_kind_port(icmp.type);
	if (icmp_is_error(p->proto, icmp.type)) {
		p->kind = PKT_ERROR;
	} else if (p->proto == IPPROTO_ICMPV6 && icmp6_is_nd(icmp.type)) {
		p->kind = PKT_ND;
		/* Both name a target (RFC 4861, 7.1). */
		if ((icmp.type == ICMP6_NS || icmp.type == ICMP6_NA) && p->l4_off + 24 > end)
			return -DROP_TRUNCATED_L4;
	}
	return 0;
}

/* `end`: first offset behind the packet, from the Ethernet header. */
static __always_inline int parse_l4(struct __sk_buff *ctx, struct packet *p, __u32 end)
{
	switch (p->proto) {
	case IPPROTO_TCP:
		return parse_tcp(ctx, p, end);
	case IPPROTO_UDP:
		return parse_ports(ctx, p, end, 8);
	case IPPROTO_SCTP:
		return parse_ports(ctx, p, end, 12);
	case IPPROTO_ICMP:
	case IPPROTO_ICMPV6:
		/* ICMP of the other family is no ICMP: it is carried like any unknown protocol. */
		if ((p->proto == IPPROTO_ICMP) == (p->family == 4))
			return parse_icmp(ctx, p, end);
	}
	return 0;
}

/* What may be a fragment. `cut`: bytes into the datagram, a multiple of 8; 1: more follow. */
__noinline int parse_part(struct __sk_buff *ctx, struct packet *p, __u32 end, __u32 cut)
{
	int ret;

	if (!p)
		return -DROP_INVALID_PACKET;
	if (cut & ~7U) {
		p->frag = FRAG_LATER;
		return frag_follow(p, cut & ~7U);
	}
	ret = parse_l4(ctx, p, end);
	if (ret < 0 || !(cut & 1))
		return ret;
	p->frag = FRAG_FIRST;
	return p->kind == PKT_FLOW ? 0 : -DROP_FRAGMENT;
}
