/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What the gateway itself answers: ARP (RFC 826), neighbour and router
 * solicitations (RFC 4861), echo, packets whose hop count ran out or that are
 * too big.
 * An answer leaves through the interface that the question came in by.
 */
#pragma once
#include "csum.h"
#include "deliver.h"

enum {
	GATEWAY4 = 0xa9fe0101, /* 169.254.1.1, host order */
	ARP_REQUEST = 1,
	RA_LIFETIME = 9000, /* seconds, the most that RFC 4861 allows */
	QUOTE_MAX = 128,    /* bytes of the packet that an ICMP error quotes */
};

struct arphdr {
	__be16 htype;
	__be16 ptype;
	__u8 hlen;
	__u8 plen;
	__be16 op;
	__u8 sha[6];
	__u8 spa[4];
	__u8 tha[6];
	__u8 tpa[4];
} __attribute__((packed));

struct nd_option {
	__u8 type;
	__u8 len; /* units of 8 bytes */
	__u8 data[6];
};

struct advert {
	struct ethhdr eth;
	struct ipv6hdr ip;
	__u8 type;
	__u8 code;
	__sum16 check;
	union {
		struct {
			__be32 flags;
			__be32 target[4];
			struct nd_option mac;
		} na;
		struct {
			__u8 hops;
			__u8 flags;
			__be16 lifetime;
			__be32 reachable;
			__be32 retrans;
			struct nd_option mac;
			struct nd_option mtu;
		} ra;
	};
} __attribute__((packed));
_Static_assert(sizeof(struct advert) == 86, "advertisement");

/* Sources a container may use: its own addresses, the link-local address of its MAC. */
__noinline int source_is_own(struct packet *p, struct endpoint *row)
{
	if (!p || !row)
		return 0;
	if (p->family == 4)
		return p->saddr[0] == EP_IP4(row) && p->saddr[0];
	return addr_equal(p->saddr, EP_IP6(row)) || ipv6_is_link_local_of(p->saddr, EP_MAC(row));
}

static __always_inline int to_gateway(struct packet *p)
{
	return p->family == 4 ? p->daddr[0] == bpf_htonl(GATEWAY4) : ipv6_is_gateway(p->daddr);
}

static __always_inline int answer_send(struct __sk_buff *ctx, struct packet *p)
{
	p->point = TRACE_REPLY;
	p->state = FLOW_STATE_NONE;
	return (int)bpf_redirect(ctx->ifindex, 0);
}

/* `row`: the asking container. */
__noinline int answer_arp(struct __sk_buff *ctx, struct packet *p, struct endpoint *row)
{
	struct {
		struct ethhdr eth;
		struct arphdr arp;
	} __attribute__((packed)) f;
	__be32 spa, tpa, gateway = bpf_htonl(GATEWAY4);

	if (!p || !row || bpf_skb_load_bytes(ctx, 0, &f, sizeof(f)) < 0)
		return -DROP_INVALID_PACKET;
	__builtin_memcpy(&spa, f.arp.spa, 4);
	__builtin_memcpy(&tpa, f.arp.tpa, 4);
	p->family = 4;
	p->saddr[0] = spa;
	p->daddr[0] = tpa;
	if (f.arp.htype != bpf_htons(1) || f.arp.ptype != bpf_htons(ETH_P_IP) || f.arp.hlen != 6 || f.arp.plen != 4)
		return -DROP_INVALID_PACKET;
	if (!mac_equal(f.arp.sha, EP_MAC(row)))
		return -DROP_INVALID_SOURCE_MAC;
	/* Probes (no sender address) are never answered, nor is anything but the gateway. */
	if (f.arp.op != bpf_htons(ARP_REQUEST) || !spa || tpa != gateway)
		return -DROP_NEIGHBOUR;
	if (spa != EP_IP4(row))
		return -DROP_INVALID_SOURCE_IP;
	mac_copy(f.eth.dst, EP_MAC(row));
	mac_copy(f.eth.src, EP_HOST_MAC(row));
	f.arp.op = bpf_htons(2);
	mac_copy(f.arp.tha, f.arp.sha);
	mac_copy(f.arp.sha, EP_HOST_MAC(row));
	__builtin_memcpy(f.arp.tpa, &spa, 4);
	__builtin_memcpy(f.arp.spa, &gateway, 4);
	if (bpf_skb_store_bytes(ctx, 0, &f, sizeof(f), 0) < 0)
		return -DROP_WRITE_ERROR;
	return answer_send(ctx, p);
}

/* Completes an advertisement and sends it: to all if the asker has no address yet. */
__noinline int advert_send(struct __sk_buff *ctx, struct packet *p, struct endpoint *row, struct advert *a)
{
	__wsum sum;

	if (!p || !row || !a)
		return -DROP_INVALID_PACKET;
	mac_copy(a->eth.dst, EP_MAC(row));
	mac_copy(a->eth.src, EP_HOST_MAC(row));
	a->eth.proto = bpf_htons(ETH_P_IPV6);
	a->ip.vtcfl = bpf_htonl(0x60000000);
	a->ip.payload_len = bpf_htons(32);
	a->ip.nexthdr = IPPROTO_ICMPV6;
	a->ip.hop_limit = ND_HOPS;
	a->ip.saddr[0] = bpf_htonl(0xfe800000);
	a->ip.saddr[1] = 0;
	a->ip.saddr[2] = 0;
	a->ip.saddr[3] = bpf_htonl(1);
	__builtin_memcpy(a->ip.daddr, p->saddr, 16);
	if (ipv6_is_unspecified(p->saddr)) {
		a->ip.daddr[0] = bpf_htonl(0xff020000);
		a->ip.daddr[3] = bpf_htonl(1);
	}
	sum = csum_pseudo6(a->ip.saddr, 32, IPPROTO_ICMPV6, 0);
	a->check = csum_fold((__wsum)bpf_csum_diff(0, 0, (__be32 *)&a->type, 32, sum));
	if (bpf_skb_change_tail(ctx, sizeof(*a), 0) < 0 || bpf_skb_store_bytes(ctx, 0, a, sizeof(*a), 0) < 0)
		return -DROP_WRITE_ERROR;
	return answer_send(ctx, p);
}

/* Neighbour discovery from a container that is not for the host. `row`: the container. */
__noinline int answer_nd(struct __sk_buff *ctx, struct packet *p, struct endpoint *row)
{
	struct advert a = {};
	__be32 target[4];

	if (!p || !row)
		return -DROP_INVALID_PACKET;
	if (p->icmp_type != ICMP6_RS && p->icmp_type != ICMP6_NS)
		return p->icmp_type == ICMP6_NA || p->icmp_type == ICMP6_RA || p->icmp_type == ICMP6_REDIRECT ?
			       -DROP_NEIGHBOUR :
			       -DROP_MULTICAST;
	/* A message that was routed is no neighbour's. */
	if (p->hops != ND_HOPS || p->icmp_code)
		return -DROP_INVALID_PACKET;
	if (p->icmp_type == ICMP6_RS) {
		a.type = ICMP6_RA;
		a.ra.hops = 64;
		a.ra.lifetime = bpf_htons(RA_LIFETIME);
		a.ra.mac.type = 1;
		a.ra.mac.len = 1;
		mac_copy(a.ra.mac.data, EP_HOST_MAC(row));
		a.ra.mtu.type = 5;
		a.ra.mtu.len = 1;
		a.ra.mtu.data[4] = (__u8)(EP_MTU(row) >> 8);
		a.ra.mtu.data[5] = (__u8)EP_MTU(row);
		return advert_send(ctx, p, row, &a);
	}
	if (bpf_skb_load_bytes(ctx, p->l4_off + 8, target, sizeof(target)) < 0)
		return -DROP_TRUNCATED_L4;
	if (!ipv6_is_gateway(target))
		return -DROP_NEIGHBOUR;
	a.type = ICMP6_NA;
	/* Router, override, and solicited unless the asker has no address yet. */
	a.na.flags = bpf_htonl(ipv6_is_unspecified(p->saddr) ? 0xa0000000 : 0xe0000000);
	__builtin_memcpy(a.na.target, target, 16);
	a.na.mac.type = 2;
	a.na.mac.len = 1;
	mac_copy(a.na.mac.data, EP_HOST_MAC(row));
	return advert_send(ctx, p, row, &a);
}

/* Echo request to the gateway: swap addresses, change the type, correct the checksum by the difference. */
__noinline int answer_echo(struct __sk_buff *ctx, struct packet *p, struct endpoint *row)
{
	__u32 off, sum;
	__u16 type, old;
	__sum16 check;

	if (!p || !row)
		return -DROP_INVALID_PACKET;
	off = p->l4_off;
	old = p->icmp_type;
	type = p->family == 4 ? ICMP_ECHO_REPLY : ICMP6_ECHO_REPLY; /* code 0 in the high byte */
	if (bpf_skb_load_bytes(ctx, off + 2, &check, 2) < 0)
		return -DROP_TRUNCATED_L4;
	sum = (__u16)~check + (__u16)~old + type;
	check = csum_fold(sum);
	if (bpf_skb_store_bytes(ctx, off, &type, 2, 0) < 0 || bpf_skb_store_bytes(ctx, off + 2, &check, 2, 0) < 0)
		return -DROP_WRITE_ERROR;
	if (p->family == 4) {
		__be32 addrs[2] = { p->daddr[0], p->saddr[0] };

		if (bpf_skb_store_bytes(ctx, ETH_HLEN + 12, addrs, sizeof(addrs), 0) < 0)
			return -DROP_WRITE_ERROR;
	} else {
		if (bpf_skb_store_bytes(ctx, ETH_HLEN + 8, p->daddr, 16, 0) < 0 ||
		    bpf_skb_store_bytes(ctx, ETH_HLEN + 24, p->saddr, 16, 0) < 0)
			return -DROP_WRITE_ERROR;
	}
	if (headers_pull(ctx) < 0 || headers_rewrite(ctx, EP_MAC(row), EP_HOST_MAC(row), 0) < 0)
		return -DROP_WRITE_ERROR;
	return answer_send(ctx, p);
}

static __always_inline int answer_is_allowed(struct packet *p)
{
	/* No error about an error (RFC 4443 2.4 e), in IPv4 nor about a later fragment (RFC 1812 4.3.2.7). */
	return p->kind == PKT_FLOW && (p->family == 6 || p->frag != FRAG_LATER);
}

/* Back to where the frame came from; below 0 if that fails. Packet pointers are invalid afterwards. */
static __always_inline long eth_return(struct __sk_buff *ctx)
{
	struct ethhdr eth;
	__u8 mac[6];
	long ret;

	ret = bpf_skb_load_bytes(ctx, 0, &eth, sizeof(eth));
	mac_copy(mac, eth.dst);
	mac_copy(eth.dst, eth.src);
	mac_copy(eth.src, mac);
	return ret | bpf_skb_store_bytes(ctx, 0, &eth, sizeof(eth), 0);
}

/* Of an answer that quotes a packet. */
struct quote {
	__u32 mtu; /* what is too big for, or 0 */
	__u32 len; /* bytes of the packet, a multiple of 4 */
	__u32 bytes[QUOTE_MAX / 4];
};

/* The answer in place of the packet, which was cut to what `q` quotes. Functions of their own, so that the verifier looks at each once. */
__noinline int answer_error4(struct __sk_buff *ctx, struct packet *p, struct quote *q)
{
	struct {
		struct iphdr ip;
		struct icmphdr icmp;
	} h = { .ip = { .vihl = 0x45, .ttl = 64, .protocol = IPPROTO_ICMP }, .icmp = { .type = ICMP_TIME_EXCEEDED } };
	struct endpoint *router = endpoint_row(SLOT_HOST);
	__u32 len;
	__wsum sum;

	if (!p || !q || !router)
		return -1;
	len = q->len;
	if (len > QUOTE_MAX)
		return -1;
	if (q->mtu) {
		h.icmp.type = ICMP_UNREACHABLE;
		h.icmp.code = ICMP_FRAGMENTATION_NEEDED;
	}
	h.icmp.seq = bpf_htons((__u16)q->mtu);
	h.ip.tot_len = bpf_htons((__u16)(sizeof(h) + len));
	h.ip.saddr = p->masked == MASKED_NODE ? p->daddr[0] : router->ip4;
	h.ip.daddr = p->saddr[0];
	h.ip.check = csum_fold((__wsum)bpf_csum_diff(0, 0, (__be32 *)&h.ip, sizeof(h.ip), 0));
	sum = (__wsum)bpf_csum_diff(0, 0, (__be32 *)&h.icmp, sizeof(h.icmp), 0);
	h.icmp.check = csum_fold((__wsum)bpf_csum_diff(0, 0, q->bytes, len, sum));
	return (int)(bpf_skb_adjust_room(ctx, sizeof(h), BPF_ADJ_ROOM_MAC, 0) |
		     bpf_skb_store_bytes(ctx, ETH_HLEN, &h, sizeof(h), 0));
}

__noinline int answer_error6(struct __sk_buff *ctx, struct packet *p, struct quote *q)
{
	struct {
		struct ipv6hdr ip;
		struct icmphdr icmp;
	} h = { .ip = { .vtcfl = bpf_htonl(0x60000000), .nexthdr = IPPROTO_ICMPV6, .hop_limit = 64 },
		.icmp = { .type = ICMP6_TIME_EXCEEDED } };
	struct endpoint *router = endpoint_row(SLOT_HOST);
	__u32 len;
	__wsum sum;

	if (!p || !q || !router)
		return -1;
	len = q->len;
	if (len > QUOTE_MAX)
		return -1;
	if (q->mtu)
		h.icmp.type = ICMP6_TOO_BIG;
	h.icmp.seq = bpf_htons((__u16)q->mtu);
	h.ip.payload_len = bpf_htons((__u16)(sizeof(h.icmp) + len));
	__builtin_memcpy(h.ip.saddr, p->masked == MASKED_NODE ? p->daddr : router->ip6, 16);
	__builtin_memcpy(h.ip.daddr, p->saddr, 16);
	sum = csum_pseudo6(h.ip.saddr, sizeof(h.icmp) + len, IPPROTO_ICMPV6, 0);
	sum = (__wsum)bpf_csum_diff(0, 0, (__be32 *)&h.icmp, sizeof(h.icmp), sum);
	h.icmp.check = csum_fold((__wsum)bpf_csum_diff(0, 0, q->bytes, len, sum));
	return (int)(bpf_skb_adjust_room(ctx, sizeof(h), BPF_ADJ_ROOM_MAC, 0) |
		     bpf_skb_store_bytes(ctx, ETH_HLEN, &h, sizeof(h), 0));
}

/*
 * The node's router address says that a packet cannot go on, quoting its start:
 * time exceeded in transit, or with an `mtu` too big (RFC 792 and 1191, RFC 4443).
 */
__noinline int answer_error(struct __sk_buff *ctx, struct packet *p, __u32 mtu)
{
	__u32 len = ctx->len - ETH_HLEN, more, few;
	struct quote q = { .mtu = mtu };
	int ret;

	if (!p)
		return -DROP_TTL_EXCEEDED;
	if (!answer_is_allowed(p) || len < 28)
		goto failed;
	/* At most QUOTE_MAX: less what it has more than that, whose sign makes a mask. */
	more = len - QUOTE_MAX;
	few = 0 - (more >> 31);
	OPAQUE(few);
	len -= more & ~few;
	/* 4 to QUOTE_MAX, in a form from which also the verifier of Linux 6.1 learns both ends. */
	OPAQUE(len);
	len = ((len - 4) & (QUOTE_MAX - 4)) + 4;
	if (bpf_skb_load_bytes(ctx, ETH_HLEN, q.bytes, len) < 0 || bpf_skb_change_tail(ctx, ETH_HLEN + len, 0) < 0)
		goto failed;
	q.len = len;
	ret = p->family == 4 ? answer_error4(ctx, p, &q) : answer_error6(ctx, p, &q);
	if ((ret | (int)eth_return(ctx)) >= 0)
		return answer_send(ctx, p);
failed:
	return mtu ? -DROP_TOO_BIG : -DROP_TTL_EXCEEDED;
}
