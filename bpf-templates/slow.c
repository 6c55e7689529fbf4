/* SPDX-License-Identifier: GPL-2.0 */
/* Every packet that a fast path leaves: one program for containers, host and devices. */
#define PILUS_CONFIG "slow_config.h"
#define ENDPOINT_ROW_CALLED
#include "lib/config.h"
#include "lib/nat.h"
#include "lib/nat46.h"
#include "lib/slow.h"
#include "lib/stages.h"
#include "lib/trace.h"

/* What was known is of another packet: a translated one comes as if it were new. Its sender stays. */
static __always_inline void packet_renew(struct packet *p, __u32 slot, __u32 identity, __u8 dir)
{
	__builtin_memset(p, 0, sizeof(*p));
	p->state = FLOW_STATE_NONE;
	p->dir = dir;
	p->src_slot = (__u16)slot;
	p->src_id = identity;
}

/* What a container sends to an IPv4 address, by the address that stands for it. Returns as from_container_stages. */
__noinline int from_nat46(struct __sk_buff *ctx, struct packet *p, struct endpoint *row)
{
	int ret;

	if (!p || !row)
		return -DROP_INVALID_PACKET;
	ret = nat64(ctx, p, row);
	if (ret < 0)
		return ret;
	packet_renew(p, p->src_slot, row->identity, DIR_EGRESS);
	p->nat46 = 1;
	ret = parse_l3(ctx, p);
	if (ret < 0)
		return ret;
	return is_unroutable(p, 1) ? -DROP_INVALID_DESTINATION : ACT_DECIDE;
}

/* Returns ACT_DECIDE for a packet that flow and policy decide about, else what became of it. */
__noinline int from_container_stages(struct __sk_buff *ctx, struct packet *p, struct endpoint *row)
{
	struct endpoint *dst;
	__be32 target[4];
	struct ethhdr eth;
	int ret;

	if (!p || !row)
		return -DROP_INVALID_PACKET;
	p->src_id = row->identity;
	if (bpf_skb_load_bytes(ctx, 0, &eth, sizeof(eth)) < 0)
		return -DROP_INVALID_PACKET;
	if (!mac_equal(eth.src, EP_MAC(row)))
		return -DROP_INVALID_SOURCE_MAC;
	if (!(eth.dst[0] & 1) && !mac_equal(eth.dst, EP_HOST_MAC(row)))
		return -DROP_INVALID_DESTINATION_MAC;
	if (CONFIG_IPV4 && ctx->protocol == bpf_htons(ETH_P_ARP) && !ctx->vlan_present)
		return answer_arp(ctx, p, row);
	ret = parse_l3(ctx, p);
	if (ret < 0)
		return ret;
	if (p->kind == PKT_ND && p->family == 6 && ipv6_is_unspecified(p->saddr)) {
		/* Duplicate address detection and listener reports have no address yet. */
		if (p->icmp_type != ICMP6_NS && p->icmp_type != ICMP6_RS && p->icmp_type != ICMP6_MLD2_REPORT)
			return -DROP_INVALID_SOURCE_IP;
	} else if (!source_is_own(p, row)) {
		return -DROP_INVALID_SOURCE_IP;
	}
	if (p->kind == PKT_ND) {
		resolve(ctx, p);
		dst = endpoint_row(SLOT_HOST);
		if (p->dst_slot != SLOT_HOST || p->icmp_type != ICMP6_NA || p->hops != ND_HOPS || !dst)
			return answer_nd(ctx, p, row);
		/* It answers for itself only. */
		if (bpf_skb_load_bytes(ctx, p->l4_off + 8, target, sizeof(target)) < 0 ||
		    (!addr_equal(target, EP_IP6(row)) && !ipv6_is_link_local_of(target, EP_MAC(row))))
			return -DROP_NEIGHBOUR;
		p->point = TRACE_TO_HOST;
		return deliver_any(ctx, dst, SLOT_HOST, 0);
	}
	if (to_multicast(p))
		return -DROP_MULTICAST;
	if (eth.dst[0] & 1)
		return -DROP_INVALID_DESTINATION_MAC;
	if (to_gateway(p)) {
		if (p->frag)
			return -DROP_FRAGMENT;
		if (p->icmp_type == (p->family == 4 ? ICMP_ECHO : ICMP6_ECHO) && !p->icmp_code &&
		    p->proto == (p->family == 4 ? IPPROTO_ICMP : IPPROTO_ICMPV6))
			return answer_echo(ctx, p, row);
		return -DROP_UNKNOWN_TARGET;
	}
	if (is_unroutable(p, 1))
		return -DROP_INVALID_DESTINATION;
	/* A link-local source is not routed. */
	if (p->family == 6 && !addr_equal(p->saddr, EP_IP6(row)))
		return -DROP_INVALID_SOURCE_IP;
	if (p->hops <= 1) {
		resolve(ctx, p);
		dst = endpoint_row(p->dst_slot);
		/* The host counts its own hops. */
		if (!dst || !(dst->flags & EP_STACK))
			return answer_error(ctx, p, 0);
	}
	if (CONFIG_NAT46 && row->flags & EP_NAT46) {
		/* It has no IPv4 but by translation. */
		if (p->family == 4)
			return -DROP_INVALID_SOURCE_IP;
		if (nat46_covers(p->daddr))
			return from_nat46(ctx, p, row);
	}
	return ACT_DECIDE;
}

/* As from_container_stages, for what the host's stack sends, or a device receives. */
__noinline int from_host_stages(struct __sk_buff *ctx, struct packet *p, __u32 from)
{
	struct endpoint *dst;
	int ret;

	if (!p)
		return -DROP_INVALID_PACKET;
	p->src_slot = SLOT_WORLD;
	p->src_id = ID_WORLD;
	ret = parse_l3(ctx, p);
	if (ret < 0)
		return ret;
	sender_find(p);
	/* Nobody but a container itself speaks with its address, nor from outside with the host's, or one of no use to answer. */
	if (slot_is_container(p->src_slot) ||
	    (from == FROM_NETDEV && (p->src_slot == SLOT_HOST || is_unroutable(p, 0))))
		return -DROP_INVALID_SOURCE_IP;
	if (to_multicast(p))
		return -DROP_MULTICAST;
	resolve(ctx, p);
	dst = endpoint_row(p->dst_slot);
	if (!slot_is_container(p->dst_slot) || !dst || !(dst->flags & EP_VALID))
		return -DROP_UNKNOWN_TARGET;
	/* The host probes its neighbours by unicast. */
	if (p->kind == PKT_ND) {
		if (p->src_slot != SLOT_HOST || p->icmp_type != ICMP6_NS || p->hops != ND_HOPS)
			return -DROP_NEIGHBOUR;
		return deliver_any(ctx, dst, p->dst_slot, 0);
	}
	if (from == FROM_NETDEV && p->hops <= 1)
		return answer_error(ctx, p, 0);
	return ACT_DECIDE;
}

/* What became of a container's IPv6 packet is too long for where it goes: told in its own terms. */
__noinline int nat46_too_big(struct __sk_buff *ctx, struct packet *p, __u32 mtu)
{
	struct endpoint *row;
	int ret;

	if (!p)
		return -DROP_INVALID_PACKET;
	row = endpoint_row(p->src_slot);
	if (!row)
		return -DROP_NO_ENDPOINT;
	ret = nat46_to_container(ctx, p, row, 0);
	if (ret < 0)
		return ret;
	packet_renew(p, p->src_slot, p->src_id, DIR_EGRESS);
	ret = parse_l3(ctx, p);
	return ret < 0 ? ret : answer_error(ctx, p, mtu + NAT46_GROWTH);
}

/* Judge, then send on its way. `hop`: the packet is routed by us. */
static __always_inline int decide_and_deliver(struct __sk_buff *ctx, struct packet *p, __u32 hop)
{
	struct endpoint *dst;
	__u32 grow;
	int ret;

	ret = p->kind == PKT_ERROR ? related_decide(ctx, p) : flow_decide(ctx, p);
	if (ret < 0)
		return ret;
	if (p->frag == FRAG_FIRST)
		frag_remember(p);
	dst = endpoint_row(p->dst_slot);
	if (!dst || !(dst->flags & EP_VALID))
		return -DROP_NO_ENDPOINT;
	grow = CONFIG_NAT46 && p->family == 4 && dst->flags & EP_NAT46 ? NAT46_GROWTH : 0;
	/* The stack cuts or refuses for itself, a container takes what nobody forbade to cut. */
	if (!(dst->flags & EP_STACK) && packet_size(ctx, p) + grow > dst->mtu) {
		if (CONFIG_NAT46 && p->nat46)
			return nat46_too_big(ctx, p, dst->mtu - grow);
		if (p->whole)
			return answer_error(ctx, p, dst->mtu - grow);
		if (grow)
			return -DROP_TOO_BIG;
		if (dst->flags & EP_ROUTE)
			dst = endpoint_row(SLOT_WORLD);
		if (!dst)
			return -DROP_NO_ENDPOINT;
	}
	p->point = (__u8)trace_point(dst, p->dst_slot);
	if (CONFIG_NAT46 && grow) {
		ret = nat46_to_container(ctx, p, dst, 1);
		if (ret < 0)
			return ret;
		p->family = 6;
	}
	if (p->masked && slot_is_container(p->src_slot))
		ctx->mark |= MARK_MASQUERADE;
	return deliver_any(ctx, dst, p->dst_slot, hop);
}

/* parse → flow → (service) → policy → forward */
__noinline int stages_run(struct __sk_buff *ctx, struct packet *p, __u32 from, __u32 slot)
{
	struct endpoint *row;
	int ret;

	if (!p)
		return -DROP_INVALID_PACKET;
	if (from == FROM_ANSWER) {
		/* Whoever is told of this knows the node, not the container. */
		p->masked = MASKED_NODE;
		ret = parse_l3(ctx, p);
		return ret < 0 ? ret : answer_error(ctx, p, ctx->cb[CB_MTU]);
	}
	if (from == FROM_CONTAINER) {
		row = endpoint_row(slot);
		if (!row || !(row->flags & EP_VALID) || row->ifindex != ctx->ifindex)
			return -DROP_NO_ENDPOINT;
		ret = from_container_stages(ctx, p, row);
	} else {
		ret = from_host_stages(ctx, p, from);
	}
	return ret == ACT_DECIDE ? decide_and_deliver(ctx, p, from != FROM_HOST) : ret;
}

SEC("tc")
int slow_path(struct __sk_buff *ctx)
{
	__u32 from = ctx->cb[CB_FROM] & 0xff, reason = ctx->cb[CB_FROM] >> 8 & 0xff, slot = ctx->cb[CB_SLOT];
	struct packet p = { .state = FLOW_STATE_NONE, .dir = from == FROM_CONTAINER ? DIR_EGRESS : DIR_INGRESS };
	int ret;

	if (from == FROM_RECEIVE)
		p.dst_slot = (__u16)slot;
	else
		p.src_slot = (__u16)slot;
	ret = finish(ctx, &p, reason ? drop_known(ctx, &p, reason) : stages_run(ctx, &p, from, slot));
	if (ret != ACT_RECEIVE)
		return ret;
	bpf_tail_call(ctx, &receive, ctx->cb[CB_SLOT]);
	p.dst_slot = (__u16)ctx->cb[CB_SLOT];
	p.dir = DIR_INGRESS;
	return finish(ctx, &p, -DROP_MISSED_TAIL_CALL);
}

/* A packet that the fast path has sent on its way, and whose report is wanted. */
SEC("tc")
int trace_path(struct __sk_buff *ctx)
{
	if (CONFIG_EVENTS)
		trace_report(ctx);
	if (!(ctx->cb[CB_FROM] >> TRACE_CB_RECEIVE & 1))
		return TC_ACT_REDIRECT;
	bpf_tail_call(ctx, &receive, ctx->cb[CB_SLOT]);
	return go_slow(ctx, FROM_RECEIVE, ctx->cb[CB_SLOT], DROP_MISSED_TAIL_CALL);
}

/* Packets that leave by a device, or come to the node itself, as far as they may belong to a masqueraded flow. */
SEC("tc")
int nat_path(struct __sk_buff *ctx)
{
	__u32 from = ctx->cb[CB_FROM] & 0xff;
	struct packet p = { .state = FLOW_STATE_NONE,
			    .dir = from == TO_NETDEV ? DIR_EGRESS : DIR_INGRESS,
			    .src_slot = SLOT_WORLD };
	int ret = from == TO_NETDEV ? masquerade(ctx, &p) : unmasquerade(ctx, &p);

	if (ret >= 0 && ret != ACT_ANSWER && (ret != ACT_DECIDE || from != FROM_MASKED))
		return TC_ACT_UNSPEC;
	/* A translated packet comes as if it were new, to our programs or to the stack. One that is dropped is reported there. */
	return go_slow(ctx,
		       ret == ACT_ANSWER ? FROM_ANSWER :
		       from == TO_NETDEV ? FROM_CONTAINER :
					   FROM_NETDEV,
		       p.src_slot, ret < 0 ? (__u32)-ret : 0);
}

char LICENSE[] SEC("license") = "GPL";
