/* SPDX-License-Identifier: GPL-2.0 */
/* The last step: into a container, out of a device, or into the host's stack. */
#pragma once
#include "endpoint.h"
#include "eth.h"
#include "ipv4.h"
#include "ipv6.h"
#include "maps.h"

TABLE_next_hop;
TABLE_receive;

#if __has_include("custom/container.c")
#include "custom/container.c"
enum { CONFIG_CUSTOM = 1 };
#else
enum { CONFIG_CUSTOM = 0 };
static __always_inline int custom_from_container(struct __sk_buff *ctx)
{
	return 0;
}
static __always_inline int custom_to_container(struct __sk_buff *ctx)
{
	return 0;
}
#endif

/* Reason of a hook that drops, never 0: that would be no drop. */
static __always_inline __u32 custom_reason(int ret)
{
	__u32 reason = (__u32)-ret & 0xff;

	return reason ? reason : DROP_CUSTOM;
}

/* Makes the Ethernet and IP headers linear. Packet pointers are invalid afterwards. */
static __always_inline int headers_pull(struct __sk_buff *ctx)
{
	__u32 len = ETH_HLEN + sizeof(struct ipv6hdr);

	if (CTXP(ctx, data) + len <= CTXP(ctx, data_end))
		return 0;
	return bpf_skb_pull_data(ctx, len < ctx->len ? len : ctx->len) < 0 ? -DROP_WRITE_ERROR : 0;
}

/* Rewrites MACs and takes `hop`, 1 for a routed packet and else 0, off the hop count. */
static __always_inline int headers_rewrite(struct __sk_buff *ctx, const __u8 *dst, const __u8 *src, __u32 hop)
{
	struct ethhdr *eth = CTXP(ctx, data);
	void *end = CTXP(ctx, data_end);

	if ((void *)(eth + 1) > end)
		return -DROP_INVALID_PACKET;
	if (!__builtin_constant_p(hop) || hop) {
		/* No branch for `hop` itself: the verifier would look twice at what follows. */
		if (eth->proto == bpf_htons(ETH_P_IP)) {
			struct iphdr *ip = (void *)(eth + 1);

			if ((void *)(ip + 1) > end)
				return -DROP_INVALID_PACKET;
			ipv4_hop(ip, hop);
		} else {
			struct ipv6hdr *ip = (void *)(eth + 1);

			if ((void *)(ip + 1) > end)
				return -DROP_INVALID_PACKET;
			ip->hop_limit -= (__u8)hop;
		}
	}
	eth_rewrite(eth, dst, src);
	return 0;
}

/*
 * Into the container behind a host side. A program of netkit runs while the container sends: no device has received the
 * packet yet, and such a one changes namespaces by being sent to the host side.
 */
static __always_inline int to_container(struct __sk_buff *ctx, __u32 ifindex)
{
	if (CONFIG_NETKIT && !ctx->ingress_ifindex)
		return (int)bpf_redirect(ifindex, 0);
	return (int)bpf_redirect_peer(ifindex, 0);
}

/* Sends to where `dst` (row of `slot`) is. Headers are linear. */
static __always_inline int deliver(struct __sk_buff *ctx, struct endpoint *dst, __u32 slot, __u32 hop)
{
	int ret;

	if (dst->flags & EP_STACK) {
		ret = headers_rewrite(ctx, dst->mac, dst->host_mac, 0);
		return ret < 0 ? ret : (int)bpf_redirect(dst->ifindex, BPF_F_INGRESS);
	}
	if (dst->flags & EP_ROUTE) {
		struct next_hop *next;
		__u32 known;

		/* Device and next hop write their own MACs. */
		ret = headers_rewrite(ctx, dst->mac, dst->host_mac, hop);
		if (ret < 0)
			return ret;
		next = bpf_map_lookup_elem(&next_hop, &slot);
		if (!next)
			return -DROP_NO_ENDPOINT;
		/* A next hop that is known spares the kernel another look at its routes. By calculation: one call to verify. */
		_Static_assert(AF_INET & AF_INET6 & 2, "a bit of both");
		known = next->family / 2 & 1;
		OPAQUE(known);
		return (int)bpf_redirect_neigh(dst->ifindex, next, (int)(known * sizeof(*next)), 0);
	}
	if (dst->flags & EP_RECEIVE) {
		ctx->cb[CB_SLOT] = slot;
		ctx->cb[CB_HOP] = hop;
		return ACT_RECEIVE;
	}
	if (CONFIG_CUSTOM) {
		ret = custom_to_container(ctx);
		if (ret < 0)
			return -(int)custom_reason(ret);
	}
	ret = headers_rewrite(ctx, dst->mac, dst->host_mac, hop);
	return ret < 0 ? ret : to_container(ctx, dst->ifindex);
}
