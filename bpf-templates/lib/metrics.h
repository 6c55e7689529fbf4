/* SPDX-License-Identifier: GPL-2.0 */
/* Packets and bytes: by reason and direction (reason 0 is forwarded), and by rule. */
#pragma once
#include "maps.h"

TABLE_metrics;
TABLE_rule_count;

static __always_inline void metrics_add(__u32 idx, __u64 packets, __u32 bytes)
{
	struct counter *c = bpf_map_lookup_elem(&metrics, &idx);

	if (c) {
		c->packets += packets;
		c->bytes += bytes;
	}
}

static __always_inline void metrics_count(__u32 reason, __u32 dir, __u32 bytes)
{
	metrics_add(reason << 1 | (dir & 1), 1, bytes);
}

static __always_inline void rule_count_add(__u32 idx, __u32 bytes)
{
	struct counter *c = bpf_map_lookup_elem(&rule_count, &idx);

	if (c) {
		c->packets++;
		c->bytes += bytes;
	}
}
