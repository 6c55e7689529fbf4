/* SPDX-License-Identifier: GPL-2.0 */
/* Container veth, host side. from_container: every packet that a container sends. receive: a receiver with a program of its own. */
#define PILUS_CONFIG "container_config.h"
#include "lib/config.h"
#include "lib/fast.h"
#include "lib/stages.h"

SEC("tc")
int from_container(struct __sk_buff *ctx)
{
	__u32 slot = ctx->ifindex - IFINDEX_BASE;
	struct endpoint *row = endpoint_row(slot);
	int ret;

	if (!row || !(row->flags & EP_VALID) || !EP_OWNS_SLOT(slot) || row->ifindex != ctx->ifindex)
		return go_slow(ctx, FROM_CONTAINER, slot, DROP_NO_ENDPOINT);
	if (CONFIG_CUSTOM) {
		ret = custom_from_container(ctx);
		if (ret < 0)
			return go_slow(ctx, FROM_CONTAINER, slot, custom_reason(ret));
	}
	ret = fast_path(ctx, row, slot, FROM_CONTAINER);
	if (ret == ACT_MISS)
		return go_slow(ctx, FROM_CONTAINER, slot, 0);
	if (ret != ACT_RECEIVE)
		return ret;
	bpf_tail_call(ctx, &receive, ctx->cb[CB_SLOT]);
	return go_slow(ctx, FROM_RECEIVE, ctx->cb[CB_SLOT], DROP_MISSED_TAIL_CALL);
}

/* Delivery to a container that has a program of its own; the sender's program has judged the packet. */
SEC("tc")
int receive_own(struct __sk_buff *ctx)
{
	__u32 slot = ctx->cb[CB_SLOT];
	struct endpoint *row = endpoint_row(slot);
	int ret;

	if (!row || !(row->flags & EP_VALID) || !EP_OWNS_SLOT(slot))
		return go_slow(ctx, FROM_RECEIVE, slot, DROP_NO_ENDPOINT);
	if (CONFIG_CUSTOM) {
		ret = custom_to_container(ctx);
		if (ret < 0)
			return go_slow(ctx, FROM_RECEIVE, slot, custom_reason(ret));
	}
	ret = headers_rewrite(ctx, EP_MAC(row), EP_HOST_MAC(row), (int)ctx->cb[CB_HOP]);
	if (ret >= 0)
		return (int)bpf_redirect_peer(EP_IFINDEX(row), 0);
	return go_slow(ctx, FROM_RECEIVE, slot, -ret);
}

char LICENSE[] SEC("license") = "GPL";
