/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The host's own side. from_netdev sees every packet that a device of the node
 * receives and, at the ingress of pilus_net, every packet that the host's stack
 * sends to containers; from_netdev_stack what a device receives where the stack
 * routes; to_netdev every packet that leaves by a device.
 */
#define PILUS_CONFIG "netdev_config.h"
#include "lib/config.h"
#include "lib/fast.h"
#include "lib/ipcache.h"
#include "lib/stages.h"

/* Whether a packet is for this node's containers, or for an address of theirs that nobody has. */
static __always_inline int is_for_containers(struct __sk_buff *ctx)
{
	struct ipcache_entry *e;
	__be32 daddr[4] = {};
	__u32 family;

	if (CONFIG_IPV4 && ctx->protocol == bpf_htons(ETH_P_IP)) {
		family = 4;
		if (bpf_skb_load_bytes(ctx, ETH_HLEN + 16, daddr, 4) < 0)
			return 0;
	} else if (ctx->protocol == bpf_htons(ETH_P_IPV6)) {
		family = 6;
		if (bpf_skb_load_bytes(ctx, ETH_HLEN + 24, daddr, 16) < 0)
			return 0;
	} else {
		return 0;
	}
	e = ipcache_find(daddr, family);
	return e && (e->identity == ID_UNKNOWN || slot_is_container(e->slot));
}

/* Whether the slow path is to find out if a packet to the node answers a masqueraded one: by its port, or because it takes more to see that. */
static __always_inline int may_be_masked(struct __sk_buff *ctx)
{
	struct ipv6hdr ip6;
	struct iphdr ip;
	__u32 l4, proto;
	__be16 dport;

	if (CONFIG_IPV4 && ctx->protocol == bpf_htons(ETH_P_IP)) {
		if (bpf_skb_load_bytes(ctx, ETH_HLEN, &ip, sizeof(ip)) < 0)
			return 0;
		if (ip.frag_off & bpf_htons(IP_FRAGMENT_MASK))
			return 1;
		l4 = ETH_HLEN + (ip.vihl & 0xf) * 4;
		proto = ip.protocol;
	} else if (ctx->protocol == bpf_htons(ETH_P_IPV6)) {
		if (bpf_skb_load_bytes(ctx, ETH_HLEN, &ip6, sizeof(ip6)) < 0)
			return 0;
		l4 = ETH_HLEN + sizeof(ip6);
		proto = ip6.nexthdr;
	} else {
		return 0;
	}
	if (proto != IPPROTO_TCP && proto != IPPROTO_UDP)
		return proto == IPPROTO_ICMP || proto == IPPROTO_ICMPV6 || ipv6_is_extension(proto);
	return bpf_skb_load_bytes(ctx, l4 + 2, &dport, 2) == 0 && bpf_ntohs(dport) >= NAT_FIRST;
}

SEC("tc")
int from_netdev_stack(struct __sk_buff *ctx)
{
	return may_be_masked(ctx) ? go_stage(ctx, STAGE_NAT, FROM_STACK, SLOT_WORLD, 0) : TC_ACT_UNSPEC;
}

SEC("tc")
int to_netdev(struct __sk_buff *ctx)
{
	if (!(ctx->mark & MARK_MASQUERADE))
		return TC_ACT_UNSPEC;
	ctx->mark &= ~MARK_MASQUERADE;
	return go_stage(ctx, STAGE_NAT, TO_NETDEV, SLOT_WORLD, 0);
}

/* FROM_HOST or FROM_NETDEV. Without a branch, after which the verifier would look at the whole fast path twice. */
static __always_inline __u32 netdev_origin(struct __sk_buff *ctx)
{
	__u32 other = ctx->ifindex ^ IFINDEX_NET;

	other = (other | -other) >> 31;
	OPAQUE(other);
	return FROM_HOST + other * (FROM_NETDEV - FROM_HOST);
}

SEC("tc")
int from_netdev(struct __sk_buff *ctx)
{
	__u32 from = netdev_origin(ctx), slot = SLOT_WORLD, reason = 0;
	int ret = fast_path(ctx, 0, 0, (int)from);

	if (ret == ACT_RECEIVE) {
		slot = ctx->cb[CB_SLOT];
		bpf_tail_call(ctx, &receive, slot);
		from = FROM_RECEIVE;
		reason = DROP_MISSED_TAIL_CALL;
	} else if (ret < 0) {
		reason = (__u32)-ret;
	} else if (ret != ACT_MISS) {
		return ret;
	} else if (from == FROM_NETDEV && !is_for_containers(ctx)) {
		/* The host's own traffic is none of ours. */
		return may_be_masked(ctx) ? go_stage(ctx, STAGE_NAT, FROM_MASKED, SLOT_WORLD, 0) : TC_ACT_UNSPEC;
	}
	return go_slow(ctx, from, slot, reason);
}

/* The kernel's clock of flow entries, for user space (run by BPF_PROG_TEST_RUN). */
SEC("tc")
int flow_clock(struct __sk_buff *ctx)
{
	return (int)(__u32)bpf_jiffies64();
}

char LICENSE[] SEC("license") = "GPL";
