/* SPDX-License-Identifier: GPL-2.0 */
/* The one exit: counts, reports, and turns a verdict into a TC action. */
#pragma once
#include "events.h"

__noinline int finish(struct __sk_buff *ctx, struct packet *p, int ret)
{
	if (!p)
		return TC_ACT_SHOT;
	if (ret < 0) {
		metrics_count((__u32)-ret & 0xff, p->dir, ctx->len);
		if (CONFIG_EVENTS && event_wanted(p) & EP_DROPS)
			event_send(ctx, p, EVENT_DROP << 8 | ((__u32)-ret & 0xff));
		return TC_ACT_SHOT;
	}
	metrics_count(0, p->dir, ctx->len);
	if (CONFIG_EVENTS && event_wanted(p) & (EP_TRACE_ALL | EP_TRACE_FLOW) & ~(__u32)p->quiet)
		event_send(ctx, p, EVENT_TRACE << 8 | p->point);
	return ret;
}
