/* SPDX-License-Identifier: GPL-2.0 */
/* One decision: may this identity talk to that port under this policy? */
#pragma once
#include "maps.h"
#include "packet.h"

TABLE_policy;

/* What policy_verdict returns: below 0 a drop reason with no rule behind it, else flags << 16 | rule record index. */
enum {
	VERDICT_FLAGS = 16,
};

enum {
	BLOCK_NONE = -1, /* no rule of the block matches and none follows */
	BLOCK_MORE = -2, /* the next block of the chain goes on */
	BLOCK_ABSENT = -3,
};

/* First match in the block of that key: flags << 16 | record index, or BLOCK_*. `l4` match << 8 | protocol. */
__noinline int policy_block_match(struct policy_key *key, __u32 l4)
{
	__u32 match = l4 >> 8 & 0xffff, proto = l4 & 0xff, found = 0;
	struct policy_block *block;
	struct policy_key own;
	int i;

	if (!key)
		return BLOCK_ABSENT;
	own = *key; /* Linux 6.1 takes no key by a function's argument */
	block = bpf_map_lookup_elem(&policy, &own);
	if (!block)
		return BLOCK_ABSENT;
	for (i = 0; i < POLICY_BLOCK_RULES; i++) {
		struct policy_rule *r = &block->rules[i];
		__u32 own = r->proto, miss;

		found = (__u32)r->flags << VERDICT_FLAGS | r->idx;
		/* By the signs of differences: the verifier follows each branch to its end. */
		miss = ((match - r->lo) | (r->hi - match) | ((0 - own) & (0 - (own ^ proto)))) >> 31;
		miss &= (found & RULE_USED << VERDICT_FLAGS) / (RULE_USED << VERDICT_FLAGS);
		OPAQUE(found);
		OPAQUE(miss);
		if (!miss)
			return found & RULE_USED << VERDICT_FLAGS ? (int)found : BLOCK_NONE;
	}
	return found & RULE_MORE << VERDICT_FLAGS ? BLOCK_MORE : BLOCK_NONE;
}

/*
 * `id` policy id, `dir` DIR_*, `l4` match << 8 | protocol. Blocks hold the
 * any-identity rules too, so a block of this identity decides alone.
 */
__noinline int policy_verdict(__u32 id, __u32 dir, __u32 identity, __u32 l4)
{
	struct policy_key key = { .policy = id << 5 | dir << 4, .identity = identity };
	int chain, v;

	if (id == POLICY_OPEN)
		return 0;
	if (id == POLICY_NONE)
		return -DROP_POLICY_DENIED;
	v = policy_block_match(&key, l4);
	if (v == BLOCK_ABSENT) {
		key.identity = 0;
		v = policy_block_match(&key, l4);
	}
	for (chain = 1; v == BLOCK_MORE && chain < POLICY_CHAIN; chain++) {
		key.policy++;
		v = policy_block_match(&key, l4);
	}
	return v >= 0 ? v : -DROP_POLICY_DENIED;
}
