/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The slow path's stages are programs of their own: verified once for all that end
 * in them. Programs of a generation share the array that names them; it is filled
 * before the first of them is attached and never changes.
 */
#pragma once
#include "maps.h"
#include "metrics.h"
#include "packet.h"

TABLE_stages;

/*
 * Ends the program: `stage` (STAGE_*) goes on, or drops and reports for `reason`. The stage is read back from memory: one that
 * the verifier knows becomes a jump that the kernel patches when its slot is filled, with all processors stopping three times
 * for each place: a twentieth of what a set takes to load.
 */
static __always_inline int go_stage(struct __sk_buff *ctx, __u32 stage, __u32 from, __u32 slot, __u32 reason)
{
	ctx->cb[CB_SLOT] = slot;
	ctx->cb[CB_FROM] = from | (reason & 0xff) << 8;
	WRITE_ONCE(ctx->cb[CB_STAGE], stage);
	bpf_tail_call(ctx, &stages, READ_ONCE(ctx->cb[CB_STAGE]));
	metrics_count(DROP_MISSED_TAIL_CALL, from == FROM_CONTAINER ? DIR_EGRESS : DIR_INGRESS, ctx->len);
	return TC_ACT_SHOT;
}

static __always_inline int go_slow(struct __sk_buff *ctx, __u32 from, __u32 slot, __u32 reason)
{
	return go_stage(ctx, STAGE_SLOW, from, slot, reason);
}
