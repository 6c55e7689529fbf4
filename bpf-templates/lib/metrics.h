/* SPDX-License-Identifier: GPL-2.0 */
/* Packets and bytes by reason and direction; reason 0 is forwarded. */
#pragma once
#include "maps.h"

TABLE_metrics;

static __always_inline void metrics_count(__u32 reason, __u32 dir, __u32 bytes)
{
	__u32 idx = reason << 1 | (dir & 1);
	struct counter *c = bpf_map_lookup_elem(&metrics, &idx);

	if (c) {
		c->packets++;
		c->bytes += bytes;
	}
}
