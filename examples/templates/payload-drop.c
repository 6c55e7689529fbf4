/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Drops UDP datagrams whose payload begins with "BLOCK", on their way to a
 * container; the monitor tells them as "Dropped by custom program".
 */
static __always_inline int custom_from_container(struct __sk_buff *ctx)
{
	return 0;
}

static __always_inline int custom_to_container(struct __sk_buff *ctx)
{
	__u8 word[5], proto, vihl;
	__u32 payload;

	if (ctx->protocol == bpf_htons(ETH_P_IP)) {
		if (bpf_skb_load_bytes(ctx, ETH_HLEN, &vihl, 1) < 0 ||
		    bpf_skb_load_bytes(ctx, ETH_HLEN + 9, &proto, 1) < 0)
			return 0;
		payload = ETH_HLEN + (vihl & 0xf) * 4 + 8;
	} else if (ctx->protocol == bpf_htons(ETH_P_IPV6)) {
		if (bpf_skb_load_bytes(ctx, ETH_HLEN + 6, &proto, 1) < 0)
			return 0;
		payload = ETH_HLEN + sizeof(struct ipv6hdr) + 8;
	} else {
		return 0;
	}
	if (proto != IPPROTO_UDP || bpf_skb_load_bytes(ctx, payload, word, sizeof(word)) < 0)
		return 0;
	if (word[0] == 'B' && word[1] == 'L' && word[2] == 'O' && word[3] == 'C' && word[4] == 'K')
		return -DROP_CUSTOM;
	return 0;
}
