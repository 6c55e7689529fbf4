/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Refusals of packets without a flow: the fast path repeats what is known before it looks for a flow, counts what the slow
 * path would count, and reports nothing. After `reporting.drops` jiffies a packet goes the long way again, is judged anew, and
 * reported with the number of those before it. A refusal also ends when an epoch moves, and when any flow is opened that has
 * its place; it is set aside when such a packet passes, for only then is its flow looked for without being judged. Places
 * follow from a hash: who knows it can take one, but nothing is refused without a full comparison. Each processor has its own
 * denials, so nobody reads what another writes.
 */
#pragma once
#include "endpoint.h"
#include "maps.h"
#include "metrics.h"

TABLE_denial;
TABLE_opened;

enum {
	/* Who is asked about every packet, or refuses nothing. */
	DENIAL_NEVER = EP_REMOTE | EP_AUDIT_IN | EP_AUDIT_OUT | EP_VERDICT | EP_TRACE_ALL,
};

/* What a packet is known by, as it stands in it: source and destination (IPv4: one word each), then ports and protocol. */
struct denial_key {
	__u64 words[5];
};

/* Place of both directions. */
static __always_inline __u32 denial_place(const struct denial_key *key)
{
	const __u64 odd = 0x9e3779b97f4a7c15, *w = key->words;
	__u32 ports = (__u32)w[4];

	_Static_assert(DENIAL_PLACES == 1 << 12, "bits of the hash");
	return (__u32)((w[0] + w[2] + (w[1] + w[3]) * 3 + ((ports & 0xffff) + (ports >> 16)) * odd) * odd >> 52);
}

/* That of a direction: `place`, or another. */
static __always_inline __u32 denial_at(__u32 place, const struct denial_key *key)
{
	return (place ^ (__u32)key->words[4]) & (DENIAL_PLACES - 1);
}

/* What else packets have in common that are refused alike: family, and the way by which they come. Never 0. */
static __always_inline __u32 denial_what(struct __sk_buff *ctx, __u32 from)
{
	return ctx->protocol ^ from << 1;
}

/* 0 if `d` is about that packet. */
static __always_inline __u64 denial_differs(const struct denial *d, const struct denial_key *key, __u32 what)
{
	__u64 differs = d->what ^ what;
	int i;

#pragma unroll
	for (i = 0; i < 5; i++)
		differs |= d->key[i] ^ key->words[i];
	return differs;
}

/* 1 for what is not 0, without a branch. */
static __always_inline __u32 denial_nonzero(__u64 x)
{
	x |= 0 - x;
	OPAQUE(x);
	return (__u32)(x >> 63);
}

/* 0 while it holds. */
static __always_inline __u32 denial_is_over(const struct denial *d)
{
	__u32 left = d->until - (__u32)bpf_jiffies64() - 1;

	OPAQUE(left);
	return left / DENIAL_LONGEST;
}

/* What is counted besides the drop: packets without a flow, and rules. */
__noinline int denial_count(struct __sk_buff *ctx, struct denial *d, __u32 dir)
{
	if (!d)
		return 0;
	if (d->counter & DENIAL_NO_FLOW)
		metrics_count(REASON_NO_FLOW, dir, ctx->len);
	rule_count_add(d->rule[0], ctx->len);
	rule_count_add(d->rule[1], ctx->len);
	return 0;
}

/* Whether what was refused is refused still; then the packet is counted. `src`: the sender's row, if it is known. */
static __always_inline int denial_holds(struct __sk_buff *ctx, struct denial *d, struct endpoint *src, __u32 place,
					__u32 from)
{
	struct opened *o = bpf_map_lookup_elem(&opened, &place);
	struct endpoint *dst = endpoint_row(d->slot[1]);
	__u32 over;

	if (!src)
		src = endpoint_row(d->slot[0]);
	if (!src || !dst || !o)
		return 0;
	/* One branch, as the verifier follows each. */
	over = denial_is_over(d) | (d->epoch ^ (READ_ONCE(o->flows) + src->epoch + dst->epoch)) |
	       ((src->flags | dst->flags) & DENIAL_NEVER) | (~dst->flags & EP_VALID);
	OPAQUE(over);
	if (over)
		return 0;
	d->untold++;
	metrics_add(d->counter & (DENIAL_NO_FLOW - 1), 1, ctx->len);
	if (d->rule[0] | d->rule[1] | (d->counter & DENIAL_NO_FLOW))
		denial_count(ctx, d, from == FROM_CONTAINER ? DIR_EGRESS : DIR_INGRESS);
	return 1;
}

/* The refusal of packets like this one, if there is one: `place` is theirs. `src`, `slot`, `from`: as fast_path. */
static __always_inline struct denial *denial_find(struct __sk_buff *ctx, const struct denial_key *key,
						  struct endpoint *src, __u32 slot, __u32 from, __u32 *place)
{
	__u32 at;
	struct denial *d;
	__u64 differs;

	*place = denial_place(key);
	at = denial_at(*place, key);
	d = bpf_map_lookup_elem(&denial, &at);
	if (!d)
		return 0;
	differs = denial_differs(d, key, denial_what(ctx, from));
	/* Who uses another's address is refused for that. */
	if (src)
		differs |= slot ^ d->slot[0];
	OPAQUE(differs);
	return differs ? 0 : d;
}
