/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Counts what each container sends, by protocol, in a table of its own. The
 * table is pinned, so it outlives programs and agent, and all programs share
 * it: bpftool map dump pinned /sys/fs/bpf/pilus/v1/maps/proto_count
 */
struct proto_key {
	__u32 slot;  /* the container's endpoint id */
	__u32 proto; /* IP protocol; next header, in IPv6 */
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__type(key, struct proto_key);
	__type(value, struct counter);
	__uint(max_entries, 4096);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} proto_count SEC(".maps");

static __always_inline int custom_from_container(struct __sk_buff *ctx)
{
	struct proto_key key = { .slot = ctx->ifindex - IFINDEX_BASE };
	struct counter one = { .packets = 1, .bytes = ctx->len }, *c;
	__u32 at;
	__u8 proto;

	if (ctx->protocol == bpf_htons(ETH_P_IP))
		at = ETH_HLEN + 9;
	else if (ctx->protocol == bpf_htons(ETH_P_IPV6))
		at = ETH_HLEN + 6;
	else
		return 0;
	if (bpf_skb_load_bytes(ctx, at, &proto, sizeof(proto)) < 0)
		return 0;
	key.proto = proto;
	c = bpf_map_lookup_elem(&proto_count, &key);
	if (c) {
		__sync_fetch_and_add(&c->packets, 1);
		__sync_fetch_and_add(&c->bytes, ctx->len);
	} else {
		bpf_map_update_elem(&proto_count, &key, &one, BPF_ANY);
	}
	return 0;
}

static __always_inline int custom_to_container(struct __sk_buff *ctx)
{
	return 0;
}
