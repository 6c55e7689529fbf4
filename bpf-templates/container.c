/* SPDX-License-Identifier: GPL-2.0 */
/* Container's device, host side. from_container: every packet that a container sends. receive: a receiver with a program of its own. */
#define PILUS_CONFIG "container_config.h"
#include "lib/config.h"
#include "lib/fast.h"
#include "lib/stages.h"

/* Whether the frame holds what the packet says it does. A received one was told so by its frame; who sends on netkit says it himself. */
static __always_inline int protocol_is_framed(struct __sk_buff *ctx)
{
	__be16 proto;

	return bpf_skb_load_bytes(ctx, ETH_HLEN - 2, &proto, 2) == 0 && proto == ctx->protocol;
}

SEC("tc")
int from_container(struct __sk_buff *ctx)
{
	__u32 slot = ctx->ifindex - IFINDEX_BASE;
	struct endpoint *row = endpoint_row(slot);
	__u32 from = FROM_CONTAINER, reason = DROP_NO_ENDPOINT;
	int ret;

	if (!row || !(row->flags & EP_VALID) || !EP_OWNS_SLOT(slot) || row->ifindex != ctx->ifindex)
		goto slow;
	reason = DROP_UNSUPPORTED_L3;
	if (CONFIG_NETKIT && !protocol_is_framed(ctx))
		goto slow;
	if (CONFIG_CUSTOM) {
		ret = custom_from_container(ctx);
		if (ret < 0) {
			reason = custom_reason(ret);
			goto slow;
		}
	}
	reason = 0;
	ret = fast_path(ctx, row, slot, FROM_CONTAINER);
	if (ret == ACT_RECEIVE) {
		slot = ctx->cb[CB_SLOT];
		bpf_tail_call(ctx, &receive, slot);
		from = FROM_RECEIVE;
		reason = DROP_MISSED_TAIL_CALL;
	} else if (ret < 0) {
		reason = (__u32)-ret;
	} else if (ret != ACT_MISS) {
		return ret;
	}
	/* One call for all: the kernel pays for each when a stage is loaded. */
slow:
	return go_slow(ctx, from, slot, reason);
}

/* Delivery to a container that has a program of its own; the sender's program has judged the packet. */
SEC("tc")
int receive_own(struct __sk_buff *ctx)
{
	__u32 slot = ctx->cb[CB_SLOT];
	struct endpoint *row = endpoint_row(slot);
	__u32 reason = DROP_NO_ENDPOINT;
	int ret;

	if (!row || !(row->flags & EP_VALID) || !EP_OWNS_SLOT(slot))
		goto slow;
	if (CONFIG_CUSTOM) {
		ret = custom_to_container(ctx);
		if (ret < 0) {
			reason = custom_reason(ret);
			goto slow;
		}
	}
	ret = headers_rewrite(ctx, EP_MAC(row), EP_HOST_MAC(row), ctx->cb[CB_HOP]);
	if (ret >= 0)
		return to_container(ctx, EP_IFINDEX(row));
	reason = -ret;
slow:
	return go_slow(ctx, FROM_RECEIVE, slot, reason);
}

char LICENSE[] SEC("license") = "GPL";
