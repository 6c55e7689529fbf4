/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The host's own side. from_host sees, at the ingress of pilus_net, every packet
 * that the host's stack sends to containers; from_netdev every packet that a
 * device of the node receives.
 */
#define PILUS_CONFIG "netdev_config.h"
#include "lib/config.h"
#include "lib/fast.h"
#include "lib/ipcache.h"
#include "lib/stages.h"

SEC("tc")
int from_host(struct __sk_buff *ctx)
{
	int ret = fast_path(ctx, 0, 0, FROM_HOST);

	if (ret == ACT_MISS)
		return go_slow(ctx, FROM_HOST, SLOT_HOST, 0);
	if (ret != ACT_RECEIVE)
		return ret;
	bpf_tail_call(ctx, &receive, ctx->cb[CB_SLOT]);
	return go_slow(ctx, FROM_RECEIVE, ctx->cb[CB_SLOT], DROP_MISSED_TAIL_CALL);
}

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

SEC("tc")
int from_netdev(struct __sk_buff *ctx)
{
	int ret = fast_path(ctx, 0, 0, FROM_NETDEV);

	/* The host's own traffic is none of ours. */
	if (ret == ACT_MISS)
		return is_for_containers(ctx) ? go_slow(ctx, FROM_NETDEV, SLOT_WORLD, 0) : TC_ACT_OK;
	if (ret != ACT_RECEIVE)
		return ret;
	bpf_tail_call(ctx, &receive, ctx->cb[CB_SLOT]);
	return go_slow(ctx, FROM_RECEIVE, ctx->cb[CB_SLOT], DROP_MISSED_TAIL_CALL);
}

/* The kernel's clock of flow entries, for user space (run by BPF_PROG_TEST_RUN). */
SEC("tc")
int flow_clock(struct __sk_buff *ctx)
{
	return (int)(__u32)bpf_jiffies64();
}

char LICENSE[] SEC("license") = "GPL";
