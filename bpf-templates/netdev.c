/* SPDX-License-Identifier: GPL-2.0 */
/* The host's own side: from_host sees, at the ingress of pilus_net, every packet that the host's stack sends to containers. */
#define PILUS_CONFIG "netdev_config.h"
#include "lib/config.h"
#include "lib/fast.h"
#include "lib/stages.h"

SEC("tc")
int from_host(struct __sk_buff *ctx)
{
	int ret = fast_path(ctx, 0, 0);

	if (ret == ACT_MISS)
		return go_slow(ctx, FROM_HOST, SLOT_HOST, 0);
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
