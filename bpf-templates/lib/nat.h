/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Masquerading: what a container opens with the world leaves under the address
 * of the device that it leaves by. The flow's entry keeps the port in `aux`; the
 * tuple that the world sees has an entry of its own (FLOW_NAT, opened by the
 * node), which names the container by its slot, and the container's port.
 */
#pragma once
#include "answer.h"
#include "ct_entry.h"
#include "route.h"
#include "slow.h"

enum {
	NAT_TRIES = 16, /* ports that a new flow asks for */
	NAT_PORTS = 65536 - NAT_FIRST,
	NAT_STEP = 257, /* from one to the next; shares no factor with NAT_PORTS */
};

/* What one end of a packet becomes. */
struct nat_end {
	__be32 addr[4];
	__be16 port;
	__u8 dst; /* 1: the receiver's, 0: the sender's */
	__u8 pad;
};

/* Offset from the IP header of the receiver's (`dst`) or sender's address. */
static __always_inline __u32 nat_addr_offset(__u32 family, __u32 dst)
{
	return family == 4 ? 12 + dst * 4 : 8 + dst * 16;
}

/* Offsets from the transport header: of one end's port or an echo's identifier, and of the checksum. */
static __always_inline __u32 nat_port_offset(__u8 proto, __u32 dst)
{
	return proto == IPPROTO_TCP || proto == IPPROTO_UDP ? dst * 2 : 4;
}

static __always_inline __u32 nat_check_offset(__u8 proto)
{
	return proto == IPPROTO_TCP ? 16 : proto == IPPROTO_UDP ? 6 : 2;
}

static __always_inline int nat_is_icmp(const struct packet *p)
{
	return p->proto == (p->family == 4 ? IPPROTO_ICMP : IPPROTO_ICMPV6);
}

/* Whether the packet's flow is told from others by something that can be rewritten. */
static __always_inline int nat_has_port(const struct packet *p)
{
	if (nat_is_icmp(p))
		return icmp_is_echo(p->proto, p->icmp_type);
	return p->proto == IPPROTO_TCP || p->proto == IPPROTO_UDP;
}

/*
 * Rewrites one end of the packet itself. Checksums are corrected by the difference, as offloads need it. An IPv4 address
 * is the first word of four, so that both families differ by what covers it alone. What fails is told at the end.
 */
__noinline int nat_packet(struct __sk_buff *ctx, struct packet *p, struct nat_end *to)
{
	__u32 check, mangled;
	__s64 diff;
	long failed;
	__be32 *addr;

	if (!p || !to)
		return -DROP_WRITE_ERROR;
	addr = packet_addr(p, to->dst);
	diff = bpf_csum_diff(addr, 16, to->addr, 16, 0);
	check = p->l4_off + nat_check_offset(p->proto);
	mangled = p->proto == IPPROTO_UDP ? BPF_F_MARK_MANGLED_0 : 0;
	failed = 0;
	/* ICMP's checksum covers no address. */
	if (p->frag != FRAG_LATER && p->proto != IPPROTO_ICMP)
		failed = bpf_l4_csum_replace(ctx, check, 0, (__u64)diff, mangled | BPF_F_PSEUDO_HDR);
	if (p->family == 4)
		failed |= bpf_l3_csum_replace(ctx, ETH_HLEN + 10, 0, (__u64)diff, 0) |
			  bpf_skb_store_bytes(ctx, ETH_HLEN + nat_addr_offset(4, to->dst), to->addr, 4, 0);
	else /* The helper takes the sum over the whole packet for changed, as it is in IPv4 where the IP header evens out. */
		failed |= bpf_skb_store_bytes(ctx, ETH_HLEN + nat_addr_offset(6, to->dst), to->addr, 16,
					      BPF_F_RECOMPUTE_CSUM);
	if (p->frag != FRAG_LATER && p->kind != PKT_ERROR)
		failed |= bpf_l4_csum_replace(ctx, check, packet_port(p, to->dst), to->port, mangled | 2) |
			  bpf_skb_store_bytes(ctx, p->l4_off + nat_port_offset(p->proto, to->dst), &to->port, 2, 0);
	return failed < 0 ? -DROP_WRITE_ERROR : 0;
}

/*
 * Rewrites one end of the packet that an ICMP error quotes, with the checksums
 * inside as far as they are quoted (RFC 5508, 4.2), and then the error's own.
 */
__noinline int nat_quoted(struct __sk_buff *ctx, struct packet *p, struct packet *q, struct nat_end *to)
{
	__be32 *old, was, now;
	__u32 ip, check_at;
	__s64 all, cover;
	__sum16 check;
	long failed;

	if (!p || !q || !to)
		return -DROP_WRITE_ERROR;
	ip = p->l4_off + sizeof(struct icmphdr);
	old = packet_addr(q, to->dst);
	cover = bpf_csum_diff(old, 16, to->addr, 16, 0);
	if (p->family == 4) {
		/* The quoted header's own checksum evens out what changes in it. */
		failed = bpf_l3_csum_replace(ctx, ip + 10, 0, (__u64)cover, 0) |
			 bpf_skb_store_bytes(ctx, ip + nat_addr_offset(4, to->dst), to->addr, 4, 0);
		all = 0;
	} else {
		failed = bpf_skb_store_bytes(ctx, ip + nat_addr_offset(6, to->dst), to->addr, 16, 0);
		all = cover;
	}
	was = packet_port(q, to->dst);
	now = to->port;
	all = bpf_csum_diff(&was, 4, &now, 4, (__wsum)all);
	cover = bpf_csum_diff(&was, 4, &now, 4, q->proto == IPPROTO_ICMP ? 0 : (__wsum)cover);
	failed |= bpf_skb_store_bytes(ctx, q->l4_off + nat_port_offset(q->proto, to->dst), &to->port, 2, 0);
	check_at = q->l4_off + nat_check_offset(q->proto);
	if (bpf_skb_load_bytes(ctx, check_at, &check, 2) == 0 && (check || q->proto != IPPROTO_UDP)) {
		was = check;
		check = csum_fold((__wsum)bpf_csum_diff(0, 0, (__be32 *)&cover, 4, (__u16)~check));
		if (!check && q->proto == IPPROTO_UDP)
			check = 0xffff;
		now = check;
		all = bpf_csum_diff(&was, 4, &now, 4, (__wsum)all);
		failed |= bpf_skb_store_bytes(ctx, check_at, &check, 2, 0);
	}
	failed |= bpf_l4_csum_replace(ctx, p->l4_off + nat_check_offset(p->proto), 0, (__u64)all, 0);
	return failed < 0 ? -DROP_WRITE_ERROR : 0;
}

static __always_inline void nat_set_port(struct packet *q, __u32 port)
{
	q->sport = (__be16)port;
	if (nat_is_icmp(q))
		q->dport = (__be16)port;
}

/* Makes the entry of a tuple that the world sees. Returns 0, or below 0 if somebody has it. */
__noinline int nat_create(struct packet *q, __u32 slot, __u32 port)
{
	struct flow h = { .last = (__u32)bpf_jiffies64(), .aux = (__be16)port };
	union flow_keys k = {};

	if (!q)
		return -1;
	flow_key_make(q, &k);
	h.ep[0] = (__u16)slot;
	h.ep[1] = (__u16)slot;
	h.flags = FLOW_NAT | (q->side & 1) * FLOW_OPENER_B;
	if (q->family == 4) {
		struct flow4 f = { .h = h, .created = h.last };

		return (int)bpf_map_update_elem(&flow4, &k.v4, &f, BPF_NOEXIST);
	} else {
		struct flow6 f = { .h = h };

		return (int)bpf_map_update_elem(&flow6, &k.v6, &f, BPF_NOEXIST);
	}
}

/* The same under the first free port of NAT_TRIES / 4 from `start` on. Returns it, big endian, or 0. */
__noinline __u32 nat_search(struct packet *q, __u32 slot, __u32 port, __u32 start)
{
	__u32 i, mine;

	if (!q)
		return 0;
#pragma unroll
	for (i = 0; i < NAT_TRIES / 4; i++) {
		mine = bpf_htons((__u16)(NAT_FIRST + (start + i * NAT_STEP) % NAT_PORTS));
		nat_set_port(q, mine);
		if (!nat_create(q, slot, port))
			return mine;
	}
	return 0;
}

/* Takes a copy of an entry; that of a translated tuple stays alive by it. Returns 0, or -1 if there is none. */
__noinline int nat_copy(struct flow *found, struct flow *h)
{
	if (!found || !h)
		return -1;
	__builtin_memcpy(h, found, sizeof(*h));
	if (h->flags & FLOW_NAT)
		WRITE_ONCE(found->last, (__u32)bpf_jiffies64());
	return 0;
}

/*
 * Finds the flow that a packet belongs to, or what an error quotes: `q` gets the
 * tuple, `h` a copy of the entry. Returns 0, or -1 if there is none.
 */
__noinline int nat_find(struct __sk_buff *ctx, struct packet *p, struct packet *q, struct flow *h)
{
	if (!p || !q)
		return -1;
	if (p->kind == PKT_ERROR) {
		__builtin_memset(q, 0, sizeof(*q));
		if (parse_quote(ctx, p, q) < 0)
			return -1;
	} else {
		__builtin_memcpy(q, p, sizeof(*q));
	}
	return nat_copy(flow_find(q), h);
}

/* Writes the port of the packet's flow. */
__noinline int nat_keep(struct packet *p, __u32 port)
{
	struct flow *h;

	if (!p)
		return 0;
	h = flow_find(p);
	if (h)
		WRITE_ONCE(h->aux, (__be16)port);
	return 0;
}

/* Who has a translated tuple: 1 this flow, 0 nobody, -1 another. That of this flow stays alive by it. */
__noinline int nat_owner(struct packet *q, __u32 slot, __u32 port)
{
	struct flow *h;

	if (!q)
		return -1;
	h = flow_find(q);
	if (!h)
		return 0;
	if (!(h->flags & FLOW_NAT) || h->aux != port || h->ep[0] != slot)
		return -1;
	WRITE_ONCE(h->last, (__u32)bpf_jiffies64());
	return 1;
}

/* Port, big endian, under which the flow `h` of packet `p` leaves from q->saddr, or -DROP_*. Completes `q`. */
__noinline int nat_port(struct packet *p, struct packet *q, struct flow *h)
{
	__u32 slot, start, i, mine, port;
	int owner;

	if (!p || !q || !h)
		return -DROP_NAT_NO_MAPPING;
	slot = flow_from(h, p->side);
	port = p->sport;
	mine = h->aux;
	if (mine) {
		nat_set_port(q, mine);
		owner = nat_owner(q, slot, port);
		/* If it was evicted, the peer knows this port nevertheless. */
		if (owner > 0 || (!owner && !nat_create(q, slot, port)))
			return (int)mine;
	}
	/* Another packet's search begins elsewhere, also of the same flow. */
	start = (port * 0x9e3779b1U ^ slot << 16 ^ p->daddr[0] ^ (__u32)bpf_jiffies64()) >> 8;
	mine = 0;
#pragma unroll
	for (i = 0; i < 4 && !mine; i++)
		mine = nat_search(q, slot, port, start + i * (NAT_TRIES / 4) * NAT_STEP);
	if (!mine)
		return -DROP_NAT_NO_MAPPING;
	nat_keep(p, mine);
	return (int)mine;
}

static __always_inline void nat_address(__be32 *addr, const struct endpoint *row, __u32 family)
{
	if (family == 4)
		addr[0] = row->ip4;
	else
		__builtin_memcpy(addr, row->ip6, 16);
}

/* Rewrites one end of a packet; of an ICMP error also the other end of what it quotes. Returns 0 or -DROP_*. */
__noinline int nat_apply(struct __sk_buff *ctx, struct packet *p, struct packet *q, struct nat_end *to)
{
	int ret;

	if (!p || !to)
		return -DROP_WRITE_ERROR;
	if (p->kind == PKT_ERROR) {
		to->dst ^= 1;
		ret = nat_quoted(ctx, p, q, to);
		if (ret < 0)
			return ret;
		to->dst ^= 1;
	}
	return nat_packet(ctx, p, to);
}

/* A container's packet on its way out of a device of the node. Returns ACT_PASS or -DROP_*. */
__noinline int masquerade(struct __sk_buff *ctx, struct packet *p)
{
	struct device_key key = { .ifindex = ctx->ifindex };
	struct device_entry *d;
	struct nat_end to = {};
	struct endpoint *row;
	struct packet q;
	struct flow h;
	int ret;

	if (!p)
		return -DROP_INVALID_PACKET;
	d = bpf_map_lookup_elem(&device, &key);
	row = d ? endpoint_row(d->slot) : 0;
	if (!row || !(row->flags & EP_MASQUERADE))
		return ACT_PASS;
	ret = parse_l3(ctx, p);
	if (ret < 0)
		return ret;
	nat_address(to.addr, row, p->family);
	if (!(to.addr[0] | to.addr[1] | to.addr[2] | to.addr[3]) || nat_find(ctx, p, &q, &h) < 0 ||
	    !(h.flags & FLOW_MASQUERADE) || (p->kind == PKT_ERROR && !h.aux))
		return -DROP_NAT_NO_MAPPING;
	to.port = h.aux;
	if (p->kind != PKT_ERROR) {
		p->side = q.side;
		p->src_slot = flow_from(&h, q.side);
		p->dst_slot = flow_to(&h, q.side);
		p->dst_id = ID_WORLD;
		row = endpoint_row(p->src_slot);
		p->src_id = row ? row->identity : ID_UNKNOWN;
		if (!nat_has_port(p))
			return -DROP_NAT_UNSUPPORTED;
		__builtin_memcpy(q.saddr, to.addr, 16);
		ret = nat_port(p, &q, &h);
		if (ret < 0)
			return ret;
		to.port = (__be16)ret;
	}
	ret = nat_apply(ctx, p, &q, &to);
	return ret < 0 ? ret : ACT_PASS;
}

/*
 * A packet that a device received for the node itself. Returns ACT_PASS if it is, ACT_DECIDE if it is a container's and now
 * says so, ACT_ANSWER if it cannot go on: cb[CB_MTU] says why.
 */
__noinline int unmasquerade(struct __sk_buff *ctx, struct packet *p)
{
	struct nat_end to = { .dst = 1 };
	struct endpoint *row;
	struct packet q;
	struct flow h;
	int ret, error;

	if (!p)
		return -DROP_INVALID_PACKET;
	if (parse_l3(ctx, p) < 0 || nat_find(ctx, p, &q, &h) < 0 || !(h.flags & FLOW_NAT))
		return ACT_PASS;
	/* The node opened it: an error comes to it and quotes what it sent, all else comes from the other side. */
	error = p->kind == PKT_ERROR;
	if ((!!(h.flags & FLOW_OPENER_B) == q.side) != error || (error && !addr_equal(q.saddr, p->daddr)))
		return ACT_PASS;
	row = endpoint_row(h.ep[0]);
	if (!row || !(row->flags & EP_VALID))
		return -DROP_NO_ENDPOINT;
	if (!error) {
		ctx->cb[CB_MTU] = p->hops > 1 ? row->mtu : 0;
		if (p->hops <= 1 || (p->whole && packet_size(ctx, p) > row->mtu))
			return ACT_ANSWER;
		if (p->frag == FRAG_FIRST)
			frag_remember(p);
	}
	to.port = h.aux;
	nat_address(to.addr, row, p->family);
	ret = nat_apply(ctx, p, &q, &to);
	return ret < 0 ? ret : ACT_DECIDE;
}
