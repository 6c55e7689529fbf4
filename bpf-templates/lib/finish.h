/* SPDX-License-Identifier: GPL-2.0 */
/* The one exit: counts, reports, and turns a verdict into a TC action. */
#pragma once
#include "events.h"

__noinline int finish(struct __sk_buff *ctx, struct packet *p, int ret)
{
	__u32 dropped = (__u32)ret >> 31, reason, wanted;

	if (!p)
		return TC_ACT_SHOT;
	OPAQUE(dropped);
	reason = (__u32)-ret & (0 - dropped) & 0xff;
	metrics_count(reason, p->dir, ctx->len);
	wanted = dropped * EP_DROPS | (dropped ^ 1) * ((EP_TRACE_ALL | EP_TRACE_FLOW) & ~(__u32)p->quiet);
	if (CONFIG_EVENTS && event_wanted(p) & wanted)
		event_send(ctx, p, ret < 0 ? EVENT_DROP << 8 | reason : EVENT_TRACE << 8 | p->point);
	return ret < 0 ? TC_ACT_SHOT : ret;
}
