/* SPDX-License-Identifier: GPL-2.0 */
/* Container veth, host side. from_container: every packet that a container sends. receive: a receiver with a program of its own. */
#define PILUS_CONFIG "container_config.h"
#include "lib/config.h"
#include "lib/answer.h"
#include "lib/fast.h"
#include "lib/slow.h"

/* parse → flow → (service) → policy → forward */
static __always_inline int from_container_stages(struct __sk_buff *ctx, struct packet *p, struct endpoint *row)
{
	struct endpoint *dst;
	__be32 target[4];
	struct ethhdr eth;
	int ret;

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
		resolve(p);
		dst = endpoint_row(SLOT_HOST);
		if (p->dst_slot != SLOT_HOST || p->icmp_type != ICMP6_NA || p->hops != ND_HOPS || !dst)
			return answer_nd(ctx, p, row);
		/* It answers for itself only. */
		if (bpf_skb_load_bytes(ctx, p->l4_off + 8, target, sizeof(target)) < 0 ||
		    (!addr_equal(target, EP_IP6(row)) && !ipv6_is_link_local_of(target, EP_MAC(row))))
			return -DROP_NEIGHBOUR;
		p->point = TRACE_TO_HOST;
		ret = headers_pull(ctx);
		return ret < 0 ? ret : deliver(ctx, dst, SLOT_HOST, 0);
	}
	if (to_multicast(p))
		return -DROP_MULTICAST;
	if (eth.dst[0] & 1)
		return -DROP_INVALID_DESTINATION_MAC;
	if (to_gateway(p)) {
		if (p->icmp_type == (p->family == 4 ? ICMP_ECHO : ICMP6_ECHO) && !p->icmp_code &&
		    p->proto == (p->family == 4 ? IPPROTO_ICMP : IPPROTO_ICMPV6))
			return answer_echo(ctx, p, row);
		return -DROP_UNKNOWN_TARGET;
	}
	if (to_unroutable(p))
		return -DROP_INVALID_DESTINATION;
	/* A link-local source is not routed. */
	if (p->family == 6 && !addr_equal(p->saddr, EP_IP6(row)))
		return -DROP_INVALID_SOURCE_IP;
	if (p->hops <= 1) {
		resolve(p);
		dst = endpoint_row(p->dst_slot);
		/* The host counts its own hops. */
		if (!dst || !(dst->flags & EP_STACK))
			return answer_expired(ctx, p, row);
	}
	return decide_and_deliver(ctx, p, 1);
}

__noinline int from_container_slow(struct __sk_buff *ctx, __u32 slot)
{
	struct endpoint *row = endpoint_row(slot);
	struct packet p = { .src_slot = (__u16)slot, .state = FLOW_STATE_NONE, .dir = DIR_EGRESS };
	int ret;

	if (!row || !(row->flags & EP_VALID) || row->ifindex != ctx->ifindex)
		return finish(ctx, &p, -DROP_NO_ENDPOINT);
	ret = from_container_stages(ctx, &p, row);
	return finish(ctx, &p, ret);
}

static __noinline int drop(struct __sk_buff *ctx, __u32 src, __u32 dst, __u32 dir, int reason)
{
	struct packet p = {
		.src_slot = (__u16)src, .dst_slot = (__u16)dst, .state = FLOW_STATE_NONE, .dir = (__u8)dir
	};

	return finish(ctx, &p, -reason);
}

SEC("tc")
int from_container(struct __sk_buff *ctx)
{
	__u32 slot = ctx->ifindex - IFINDEX_BASE;
	struct endpoint *row = endpoint_row(slot);
	int ret = ACT_MISS;

	if (!row || !(row->flags & EP_VALID) || !EP_OWNS_SLOT(slot) || row->ifindex != ctx->ifindex)
		return drop(ctx, slot, 0, DIR_EGRESS, DROP_NO_ENDPOINT);
	if (CONFIG_CUSTOM) {
		ret = custom_from_container(ctx);
		if (ret < 0)
			return drop(ctx, slot, 0, DIR_EGRESS, -ret);
	}
	ret = fast_path(ctx, row, slot);
	if (ret == ACT_MISS)
		ret = from_container_slow(ctx, slot);
	if (ret != ACT_RECEIVE)
		return ret;
	bpf_tail_call(ctx, &receive, ctx->cb[CB_SLOT]);
	return drop(ctx, slot, ctx->cb[CB_SLOT], DIR_INGRESS, DROP_MISSED_TAIL_CALL);
}

/* Delivery to a container that has a program of its own; the sender's program has judged the packet. */
SEC("tc")
int receive_own(struct __sk_buff *ctx)
{
	__u32 slot = ctx->cb[CB_SLOT];
	struct endpoint *row = endpoint_row(slot);
	int ret = 0;

	if (!row || !(row->flags & EP_VALID) || !EP_OWNS_SLOT(slot))
		return drop(ctx, 0, slot, DIR_INGRESS, DROP_NO_ENDPOINT);
	if (CONFIG_CUSTOM)
		ret = custom_to_container(ctx);
	if (ret >= 0)
		ret = headers_rewrite(ctx, EP_MAC(row), EP_HOST_MAC(row), (int)ctx->cb[CB_HOP]);
	if (ret >= 0)
		return (int)bpf_redirect_peer(EP_IFINDEX(row), 0);
	return drop(ctx, 0, slot, DIR_INGRESS, -ret);
}

char LICENSE[] SEC("license") = "GPL";
