/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Every packet that the fast path leaves: new flows, flows whose verdict may
 * have changed, TCP's SYN, FIN and RST, ICMP errors, and what is to be dropped.
 */
#pragma once
#include "answer.h"
#include "ct_entry.h"
#include "deliver.h"
#include "denial.h"
#include "finish.h"
#include "ipcache.h"
#include "maps.h"
#include "policy.h"
#include "route.h"

TABLE_direct;

/* What policy_verdict's `v` comes to: 0 or -DROP_*. Its rule, p->rule, has been asked once more. */
__noinline int rule_apply(struct __sk_buff *ctx, struct packet *p, int v)
{
	if (!p)
		return -DROP_NO_ENDPOINT;
	p->rule = 0;
	if (v < 0)
		return v;
	p->rule = (__u32)v & 0xffff;
	rule_count_add(p->rule, ctx->len);
	if (v >> VERDICT_FLAGS & RULE_DENY)
		return -DROP_POLICY_DENY;
	/* Never let through what a proxy should have seen. */
	return v >> VERDICT_FLAGS & (RULE_L7 | RULE_AUTH) ? -DROP_POLICY_L7 : 0;
}

/* One direction's verdict on p->l4, reported where asked. `row`: whose policy. Returns 0 or -DROP_*. */
__noinline int judge_one(struct __sk_buff *ctx, struct packet *p, struct endpoint *row, __u32 dir, __u32 peer)
{
	__u32 audit = dir == DIR_EGRESS ? EP_AUDIT_OUT : EP_AUDIT_IN, id;
	int ret;

	if (!p || !row)
		return -DROP_NO_ENDPOINT;
	id = dir == DIR_EGRESS ? READ_ONCE(row->policy_out) : READ_ONCE(row->policy_in);
	ret = rule_apply(ctx, p, policy_verdict(id, dir, peer, p->l4));
	p->dir = (__u8)dir;
	if (CONFIG_EVENTS && row->flags & (EP_VERDICT | audit) && (row->flags & EP_VERDICT || ret < 0)) {
		p->flags = (ret < 0 ? 0 : EVENT_ALLOW) | (ret < 0 && row->flags & audit ? EVENT_AUDIT : 0);
		event_send(ctx, p, EVENT_VERDICT << 8 | ((__u32)-ret & 0xff));
		p->flags = 0;
	}
	return row->flags & audit ? 0 : ret;
}

/*
 * Both policies: the opener's egress, the other side's ingress. `reverse`: the
 * packet is an answer, its receiver opened the flow. Returns 0 or -DROP_*.
 */
__noinline int judge(struct __sk_buff *ctx, struct packet *p, __u32 reverse)
{
	__u32 from_id, to_id, match;
	struct endpoint *from, *to;
	int ret;

	if (!p)
		return -DROP_INVALID_PACKET;
	from = endpoint_row(packet_slot(p, reverse));
	to = endpoint_row(packet_slot(p, reverse ^ 1));
	from_id = reverse ? p->dst_id : p->src_id;
	to_id = reverse ? p->src_id : p->dst_id;
	match = p->match;
	if (!from || !to)
		return -DROP_NO_ENDPOINT;
	if (reverse) {
		if (p->family == 4 && p->proto == IPPROTO_ICMP && p->icmp_type == ICMP_ECHO_REPLY)
			match = ICMP_ECHO;
		else if (p->proto == IPPROTO_ICMPV6 && p->icmp_type == ICMP6_ECHO_REPLY)
			match = ICMP6_ECHO;
		else if (p->proto != IPPROTO_ICMP && p->proto != IPPROTO_ICMPV6)
			match = bpf_ntohs(p->sport);
	}
	p->l4 = match << 8 | p->proto;
	ret = judge_one(ctx, p, from, DIR_EGRESS, to_id);
	if (ret < 0)
		return ret;
	p->rule_out = (__u16)p->rule;
	return judge_one(ctx, p, to, DIR_INGRESS, from_id);
}

/* Who has an address of the packet's family. Unknown ones are the world. */
static __always_inline void end_find(struct packet *p, const __be32 *addr, __u16 *slot, __u32 *id)
{
	struct ipcache_entry *e = ipcache_find(addr, p->family);

	*slot = e ? e->slot : SLOT_WORLD;
	*id = e ? e->identity : ID_WORLD;
}

/*
 * Who receives: p->dst_slot and p->dst_id. The world's side of a container's
 * packet gets the slot of today's route.
 */
__noinline int resolve(struct __sk_buff *ctx, struct packet *p)
{
	if (!p)
		return 0;
	end_find(p, p->daddr, &p->dst_slot, &p->dst_id);
	if (p->dst_slot == SLOT_WORLD && slot_is_container(p->src_slot))
		p->dst_slot = (__u16)route_slot(ctx, p, 0);
	else if (p->src_slot == SLOT_WORLD && slot_is_container(p->dst_slot))
		p->src_slot = (__u16)route_slot(ctx, p, 1);
	return 0;
}

/* Who sends, by the address: p->src_slot and p->src_id. */
__noinline int sender_find(struct packet *p)
{
	if (p)
		end_find(p, p->saddr, &p->src_slot, &p->src_id);
	return 0;
}

/* Whether a flow that this packet opens leaves under the node's address. */
__noinline int is_masked(struct packet *p)
{
	struct endpoint *world = endpoint_row(SLOT_WORLD);
	struct ipcache_lpm_key key = {};

	if (!p || !world || !(world->flags & EP_MASQUERADE) || !slot_is_container(p->src_slot) ||
	    !slot_is_world(p->dst_slot))
		return 0;
	key.prefixlen = lpm_bits(p->family);
	key.family = p->family;
	__builtin_memcpy(key.addr, p->daddr, 16);
	return !bpf_map_lookup_elem(&direct, &key);
}

/* Functions of their own, so that the verifier does not follow each way to their result on its own. */
__noinline int tcp_is_syn(struct packet *p)
{
	return p && p->proto == IPPROTO_TCP && (p->tcp_flags & (TCP_SYN | TCP_ACK | TCP_RST)) == TCP_SYN;
}

/* Whether an entry is alive and between the packet's ends. */
__noinline int flow_is_same(struct flow *h, struct packet *p)
{
	return h && p && slot_same(flow_from(h, p->side), p->src_slot) && slot_same(flow_to(h, p->side), p->dst_slot) &&
	       !flow_is_expired(h, p->proto);
}

/* Counts what opens nothing and has no entry. */
__noinline int flow_missed(struct __sk_buff *ctx, struct packet *p)
{
	if (p && p->proto == IPPROTO_TCP && !tcp_is_syn(p))
		metrics_count(REASON_NO_FLOW, p->dir, ctx->len);
	return 0;
}

/* Makes the entry of a packet that policy has let through. */
__noinline int flow_open(struct __sk_buff *ctx, struct packet *p, __u32 epoch, __u32 state)
{
	if (!p)
		return -DROP_INVALID_PACKET;
	p->state = (__u8)state;
	p->masked = is_masked(p) ? MASKED_FLOW : 0;
	return flow_create(p, epoch, p->proto == IPPROTO_TCP && !tcp_is_syn(p) ? FLOW_MIDSTREAM : 0, ctx->len);
}

/*
 * Has the fast path refuse packets like this one, which has no flow and may not open one. Those that it has refused so, and
 * not reported, are p->untold from now on. `reason` 0: it passes, and the fast path is to look for its flow.
 */
__noinline int denial_note(struct __sk_buff *ctx, struct packet *p, __u32 reason, __u32 epoch)
{
	__u32 zero = 0, what, at, other, keep;
	struct denial_key k = {};
	struct reporting *r;
	struct denial *d;

	/* A translated packet is another one to the fast path. */
	if (!p || (CONFIG_NAT46 && p->nat46))
		return 0;
	at = denial_key_make(p, &k);
	at = denial_at(at, &k);
	what = denial_what(ctx, ctx->cb[CB_FROM] & 0xff);
	d = bpf_map_lookup_elem(&denial, &at);
	r = bpf_map_lookup_elem(&reporting, &zero);
	if (!d || !r)
		return 0;
	other = denial_nonzero(denial_differs(d, &k, what | (d->what & DENIAL_ASIDE)));
	if (!reason) {
		d->what |= (__u16)((1 - other) * DENIAL_ASIDE);
		return 0;
	}
	/* Another's place is taken when its time is over, or nothing is lost by it. */
	keep = other & denial_nonzero(d->untold) & ~denial_nonzero(denial_is_over(d));
	OPAQUE(keep);
	if (keep)
		return 0;
	other *= d->untold;
	OPAQUE(other);
	p->untold = d->untold - other;
	__builtin_memcpy(d->key, k.words, sizeof(d->key));
	d->epoch = epoch + p->opened;
	d->until = (__u32)bpf_jiffies64() + r->drops;
	d->untold = 0;
	d->slot[0] = p->src_slot;
	d->slot[1] = p->dst_slot;
	d->rule[0] = p->rule_out;
	d->rule[1] = (__u16)p->rule;
	d->what = (__u16)what;
	d->counter =
		(__u16)(reason << 1 | (p->dir & 1) | (1 - denial_nonzero(p->proto ^ IPPROTO_TCP)) * DENIAL_NO_FLOW);
	metrics_add(REASON_EVENT_LOST << 1 | (p->dir & 1), other, 0);
	return 0;
}

/* A SYN between the ends of an entry that lives: its opener's decides anew, a stranger's does not touch a live flow. */
static __always_inline int flow_syn(struct __sk_buff *ctx, struct packet *p, struct flow *h, __u32 epoch)
{
	__u32 reply = (h->flags ^ p->side) & FLOW_OPENER_B;
	int ret = judge(ctx, p, 0);

	if (ret >= 0 && (h->flags & FLOW_DENY || flow_is_closing(h->flags)))
		return flow_open(ctx, p, epoch, FLOW_STATE_REOPENED);
	if (!reply)
		flow_judged(h, p, epoch, ret < 0 ? FLOW_DENY : 0);
	if (ret < 0)
		return ret;
	/* A repeated SYN, or both sides open at once: the flow lives on, judged as its opener. */
	p->state = FLOW_STATE_NEW;
	return flow_seen(h, p, ctx->len);
}

/*
 * A packet whose entry is `h`, or has none, under today's epoch. A function of its own, so that the verifier looks at it
 * once for both families' entries.
 */
__noinline int flow_go(struct __sk_buff *ctx, struct packet *p, struct flow *h, __u32 epoch)
{
	__u32 reply;
	int ret;

	if (!p)
		return -DROP_INVALID_PACKET;
	if (!h || !flow_is_same(h, p)) {
		flow_missed(ctx, p);
		ret = judge(ctx, p, 0);
		if (ret >= 0)
			return flow_open(ctx, p, epoch, FLOW_STATE_NEW);
		if (tcp_is_syn(p))
			flow_create(p, epoch, FLOW_DENY, ctx->len);
		else
			denial_note(ctx, p, (__u32)-ret, epoch);
		return ret;
	}
	p->masked = h->flags / FLOW_MASQUERADE & MASKED_FLOW;
	if (tcp_is_syn(p))
		return flow_syn(ctx, p, h, epoch);
	reply = (h->flags ^ p->side) & FLOW_OPENER_B;
	p->state = (__u8)(FLOW_STATE_ESTABLISHED + reply * (FLOW_STATE_REPLY - FLOW_STATE_ESTABLISHED));
	if (h->epoch != epoch || flow_moved(h, p)) {
		ret = judge(ctx, p, reply);
		flow_judged(h, p, epoch, ret < 0 ? FLOW_DENY : 0);
	} else {
		ret = h->flags & FLOW_DENY ? -DROP_REVOKED : 0;
	}
	if (ret >= 0)
		return flow_seen(h, p, ctx->len);
	p->state = FLOW_STATE_REVOKED;
	return -DROP_REVOKED;
}

/*
 * The flow stage, then policy. Invariants: epochs are read before the policies
 * that they vouch for; only a SYN, or a packet that policy admits, creates an
 * entry; a revoked flow keeps its entry, so that neither direction passes.
 */
__noinline int flow_decide(struct __sk_buff *ctx, struct packet *p)
{
	struct endpoint *src, *dst;
	__u32 epoch;
	int ret;

	if (!p)
		return -DROP_INVALID_PACKET;
	resolve(ctx, p);
	src = endpoint_row(p->src_slot);
	dst = endpoint_row(p->dst_slot);
	if (!src || !dst || !(dst->flags & EP_VALID) || p->dst_slot == p->src_slot)
		return -DROP_NO_ENDPOINT;
	epoch = READ_ONCE(src->epoch) + READ_ONCE(dst->epoch);
	barrier();
	/* An identity is read after the epoch that vouches for it. */
	if (slot_is_container(p->dst_slot))
		p->dst_id = READ_ONCE(dst->identity);
	if (slot_is_container(p->src_slot))
		p->src_id = READ_ONCE(src->identity);

	/* Before anybody looks for its entry. */
	p->opened = opened_count(p, 0);
	ret = flow_go(ctx, p, flow_find(p), epoch);
	if (ret >= 0)
		denial_note(ctx, p, 0, epoch);
	return ret;
}

/* A container's identity is its row's, everybody else's that of the address: the sender's, or the receiver's (`dst`). */
__noinline __u32 identity_of(struct packet *p, struct endpoint *row, __u32 dst)
{
	struct ipcache_entry *e;

	if (!p || !row)
		return ID_UNKNOWN;
	if (slot_is_container(packet_slot(p, dst)))
		return READ_ONCE(row->identity);
	e = ipcache_find(packet_addr(p, dst), p->family);
	return e ? e->identity : ID_WORLD;
}

/* The quoted packet of an ICMP error: the tuple as its sender wrote it. */
__noinline int parse_quote(struct __sk_buff *ctx, struct packet *p, struct packet *q)
{
	struct ipv6_fragment ext;
	__be16 l4[4];
	__u32 off;
	int i;

	if (!p || !q)
		return -DROP_INVALID_PACKET;
	off = p->l4_off + sizeof(struct icmphdr);
	if (p->family == 4) {
		struct iphdr ip;

		if (bpf_skb_load_bytes(ctx, off, &ip, sizeof(ip)) < 0 || ip.vihl >> 4 != 4 || (ip.vihl & 0xf) < 5)
			return -DROP_TRUNCATED_L4;
		/* Only a first fragment carries ports. */
		if (ip.frag_off & bpf_htons(0x1fff))
			return -DROP_FRAGMENT;
		q->saddr[0] = ip.saddr;
		q->daddr[0] = ip.daddr;
		q->proto = ip.protocol;
		off += (ip.vihl & 0xf) * 4;
	} else {
		struct ipv6hdr ip;

		if (bpf_skb_load_bytes(ctx, off, &ip, sizeof(ip)) < 0 ||
		    (ip.vtcfl & bpf_htonl(0xf0000000)) != bpf_htonl(0x60000000))
			return -DROP_TRUNCATED_L4;
		__builtin_memcpy(q->saddr, ip.saddr, 16);
		__builtin_memcpy(q->daddr, ip.daddr, 16);
		q->proto = ip.nexthdr;
		off += sizeof(ip);
		for (i = 0; i < 2; i++) {
			if (!ipv6_is_extension(q->proto) || q->proto == IPPROTO_AH)
				break;
			if (bpf_skb_load_bytes(ctx, off, &ext, sizeof(ext)) < 0)
				return -DROP_TRUNCATED_L4;
			if (q->proto == IPPROTO_FRAGMENT && ext.offset & bpf_htons(0xfff8))
				return -DROP_FRAGMENT;
			off += q->proto == IPPROTO_FRAGMENT ? 8 : (ext.len + 1) * 8;
			q->proto = ext.nexthdr;
		}
	}
	q->family = p->family;
	q->l4_off = (__u16)off;
	if (q->proto == IPPROTO_TCP || q->proto == IPPROTO_UDP || q->proto == IPPROTO_SCTP) {
		if (bpf_skb_load_bytes(ctx, off, l4, 8) < 0)
			return -DROP_TRUNCATED_L4;
		q->sport = l4[0];
		q->dport = l4[1];
	} else if (q->proto == p->proto) {
		if (bpf_skb_load_bytes(ctx, off, l4, 8) < 0)
			return -DROP_TRUNCATED_L4;
		q->icmp_type = (__u8)l4[0];
		if (icmp_is_error(q->proto, q->icmp_type))
			return -DROP_INVALID_PACKET; /* an error about an error */
		q->dport = icmp_kind_port(q->icmp_type);
		if (icmp_is_echo(q->proto, q->icmp_type)) {
			q->sport = l4[2];
			q->dport = l4[2];
		}
		q->match = q->icmp_type;
	}
	if (q->proto != IPPROTO_ICMP && q->proto != IPPROTO_ICMPV6)
		q->match = bpf_ntohs(q->dport);
	return 0;
}

/* Of an ICMP error `p` that quotes `q`, which has the entry `h`: as flow_go. */
__noinline int related_go(struct __sk_buff *ctx, struct packet *p, struct packet *q, struct flow *h)
{
	struct endpoint *src, *dst;
	__u32 epoch, reply;
	int ret;

	if (!p || !q || !h || !addr_equal(q->saddr, p->daddr))
		return -DROP_NO_FLOW;
	if (!slot_same(flow_from(h, q->side), p->dst_slot) ||
	    (slot_is_container(p->src_slot) && flow_to(h, q->side) != p->src_slot))
		return -DROP_NO_FLOW;
	q->src_slot = flow_from(h, q->side);
	q->dst_slot = flow_to(h, q->side);
	src = endpoint_row(q->src_slot);
	dst = endpoint_row(q->dst_slot);
	if (!src || !dst || !(src->flags & EP_VALID))
		return -DROP_NO_ENDPOINT;
	epoch = READ_ONCE(src->epoch) + READ_ONCE(dst->epoch);
	barrier();
	q->src_id = identity_of(q, src, 0);
	q->dst_id = identity_of(q, dst, 1);
	reply = (h->flags ^ q->side) & FLOW_OPENER_B;
	if (h->epoch != epoch) {
		/* Judged, but left to the flow's own packets to record. */
		ret = judge(ctx, q, reply);
		p->rule = q->rule;
		if (ret < 0)
			return ret;
	} else if (h->flags & FLOW_DENY) {
		return -DROP_REVOKED;
	}
	if (h->flags & FLOW_MASQUERADE)
		p->masked = MASKED_FLOW;
	return 0;
}

/*
 * An ICMP error passes if the packet it quotes belongs to a flow that policy
 * admits now, if it goes to the side that sent that packet, and if a container
 * speaks only of packets that were sent to itself.
 */
__noinline int related_decide(struct __sk_buff *ctx, struct packet *p)
{
	struct packet q = {};
	int ret;

	if (!p)
		return -DROP_INVALID_PACKET;
	p->state = FLOW_STATE_RELATED;
	p->dir = slot_is_container(p->src_slot) ? DIR_EGRESS : DIR_INGRESS;
	ret = parse_quote(ctx, p, &q);
	if (ret < 0)
		return ret;
	resolve(ctx, p);
	return related_go(ctx, p, &q, flow_find(&q));
}

static __always_inline int to_multicast(struct packet *p)
{
	return p->family == 4 ? ipv4_is_multicast(p->daddr[0]) : ipv6_is_multicast(p->daddr);
}

/* Loopback, "this network", link-local and multicast: never the sender, nor the receiver (`dst`), of what is routed. */
__noinline int is_unroutable(struct packet *p, __u32 dst)
{
	__be32 *addr;

	if (!p)
		return 1;
	addr = packet_addr(p, dst);
	if (p->family == 4)
		return ipv4_is_unroutable(addr[0]) || ipv4_is_multicast(addr[0]) ||
		       (addr[0] & bpf_htonl(0xffff0000)) == bpf_htonl(0xa9fe0000);
	return ipv6_is_unroutable(addr) || ipv6_is_multicast(addr) ||
	       (addr[0] & bpf_htonl(0xffc00000)) == bpf_htonl(0xfe800000);
}

__noinline int parse_l3(struct __sk_buff *ctx, struct packet *p)
{
	if (!p)
		return -DROP_INVALID_PACKET;
	if (ctx->vlan_present)
		return -DROP_UNSUPPORTED_L3;
	if (CONFIG_IPV4 && ctx->protocol == bpf_htons(ETH_P_IP))
		return parse_ipv4(ctx, p);
	if (ctx->protocol == bpf_htons(ETH_P_IPV6))
		return parse_ipv6(ctx, p);
	return -DROP_UNSUPPORTED_L3;
}

/* A packet that is dropped for `reason`, and that nobody has read: what its report can tell is found out. Returns -DROP_*. */
__noinline int drop_known(struct __sk_buff *ctx, struct packet *p, __u32 reason)
{
	__u16 to;

	if (!p)
		return -DROP_INVALID_PACKET;
	/* Of that reason may be what holds something else than it says. */
	if (reason != DROP_UNSUPPORTED_L3 && parse_l3(ctx, p) >= 0) {
		if (slot_is_container(p->src_slot))
			p->src_id = identity_of(p, endpoint_row(p->src_slot), 0);
		else
			sender_find(p);
		to = p->dst_slot;
		resolve(ctx, p);
		/* Who was to receive it is known better where it is known. */
		if (slot_is_container(to))
			p->dst_slot = to;
	}
	return -(int)reason;
}

/* Bytes from the IP header on of the largest packet that this becomes. */
static __always_inline __u32 packet_size(struct __sk_buff *ctx, struct packet *p)
{
	if (ctx->gso_size)
		return p->l4_off - ETH_HLEN + p->l4_len + ctx->gso_size;
	return ctx->len - ETH_HLEN;
}

/* Sends to where `dst` (row of `slot`) is, whatever the packet looks like in memory. */
__noinline int deliver_any(struct __sk_buff *ctx, struct endpoint *dst, __u32 slot, __u32 hop)
{
	int ret;

	if (!dst)
		return -DROP_NO_ENDPOINT;
	ret = headers_pull(ctx);
	return ret < 0 ? ret : deliver(ctx, dst, slot, hop);
}
