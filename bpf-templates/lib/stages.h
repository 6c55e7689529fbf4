/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The slow path is a program of its own: verified once for all that end in it.
 * Programs of a generation share the array that names it; it is filled before
 * the first of them is attached and never changes.
 */
#pragma once
#include "metrics.h"
#include "packet.h"

/* Ends the program: the slow path goes on, or drops and reports for `reason`. */
static __always_inline int go_slow(struct __sk_buff *ctx, __u32 from, __u32 slot, __u32 reason)
{
	ctx->cb[CB_SLOT] = slot;
	ctx->cb[CB_FROM] = from | (reason & 0xff) << 8;
	bpf_tail_call(ctx, &stages, STAGE_SLOW);
	metrics_count(DROP_MISSED_TAIL_CALL, from == FROM_CONTAINER ? DIR_EGRESS : DIR_INGRESS, ctx->len);
	return TC_ACT_SHOT;
}
