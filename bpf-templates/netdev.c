/* SPDX-License-Identifier: GPL-2.0 */
/* The host's own side: from_host sees, at the ingress of pilus_net, every packet that the host's stack sends to containers. */
#define PILUS_CONFIG "netdev_config.h"
#include "lib/config.h"
#include "lib/fast.h"
#include "lib/slow.h"

static __always_inline int from_host_stages(struct __sk_buff *ctx, struct packet *p)
{
	struct ipcache_entry *src;
	struct endpoint *dst;
	int ret;

	p->src_slot = SLOT_WORLD;
	p->src_id = ID_WORLD;
	ret = parse_l3(ctx, p);
	if (ret < 0)
		return ret;
	src = ipcache_find(p->saddr, p->family);
	if (src) {
		p->src_slot = src->slot;
		p->src_id = src->identity;
	}
	/* Nobody but a container itself speaks with its address. */
	if (slot_is_container(p->src_slot))
		return -DROP_INVALID_SOURCE_IP;
	if (to_multicast(p))
		return -DROP_MULTICAST;
	resolve(p);
	dst = endpoint_row(p->dst_slot);
	if (!slot_is_container(p->dst_slot) || !dst || !(dst->flags & EP_VALID))
		return -DROP_UNKNOWN_TARGET;
	/* The host probes its neighbours by unicast. */
	if (p->kind == PKT_ND) {
		if (p->src_slot != SLOT_HOST || p->icmp_type != ICMP6_NS || p->hops != ND_HOPS)
			return -DROP_NEIGHBOUR;
		ret = headers_pull(ctx);
		return ret < 0 ? ret : deliver(ctx, dst, p->dst_slot, 0);
	}
	return decide_and_deliver(ctx, p, 0);
}

__noinline int from_host_slow(struct __sk_buff *ctx)
{
	struct packet p = { .state = FLOW_STATE_NONE, .dir = DIR_INGRESS };

	return finish(ctx, &p, from_host_stages(ctx, &p));
}

SEC("tc")
int from_host(struct __sk_buff *ctx)
{
	struct packet p = { .src_slot = SLOT_HOST, .state = FLOW_STATE_NONE, .dir = DIR_INGRESS };
	int ret = fast_path(ctx, 0, 0);

	if (ret == ACT_MISS)
		ret = from_host_slow(ctx);
	if (ret != ACT_RECEIVE)
		return ret;
	p.dst_slot = (__u16)ctx->cb[CB_SLOT];
	bpf_tail_call(ctx, &receive, ctx->cb[CB_SLOT]);
	return finish(ctx, &p, -DROP_MISSED_TAIL_CALL);
}

/* The kernel's clock of flow entries, for user space (run by BPF_PROG_TEST_RUN). */
SEC("tc")
int flow_clock(struct __sk_buff *ctx)
{
	return (int)(__u32)bpf_jiffies64();
}

char LICENSE[] SEC("license") = "GPL";
