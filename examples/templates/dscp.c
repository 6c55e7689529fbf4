/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Marks what containers send as expedited (DSCP 46, RFC 3246); the two bits of
 * congestion notification behind it stay as they are.
 */
enum {
	DSCP = 46,
};

static __always_inline int custom_from_container(struct __sk_buff *ctx)
{
	if (ctx->protocol == bpf_htons(ETH_P_IP)) {
		__u8 old, new;
		__sum16 check;
		__u32 sum;

		if (bpf_skb_load_bytes(ctx, ETH_HLEN + 1, &old, 1) < 0 ||
		    bpf_skb_load_bytes(ctx, ETH_HLEN + 10, &check, 2) < 0)
			return 0;
		new = DSCP << 2 | (old & 3);
		/* The second byte of a 16 bit word: RFC 1624, equation 3. */
		sum = (__u16)~check + (__u16)~bpf_htons(old) + bpf_htons(new);
		sum = (sum & 0xffff) + (sum >> 16);
		sum = (sum & 0xffff) + (sum >> 16);
		check = (__sum16)~sum;
		if (bpf_skb_store_bytes(ctx, ETH_HLEN + 1, &new, 1, 0) < 0 ||
		    bpf_skb_store_bytes(ctx, ETH_HLEN + 10, &check, 2, 0) < 0)
			return -DROP_WRITE_ERROR;
	} else if (ctx->protocol == bpf_htons(ETH_P_IPV6)) {
		__u8 word[2];

		/* Version, traffic class and flow label share words: 4 bits of the class are in the first byte, 4 in the second. */
		if (bpf_skb_load_bytes(ctx, ETH_HLEN, word, 2) < 0)
			return 0;
		word[0] = (word[0] & 0xf0) | (DSCP >> 2);
		word[1] = (word[1] & 0x3f) | (__u8)(DSCP << 6);
		if (bpf_skb_store_bytes(ctx, ETH_HLEN, word, 2, 0) < 0)
			return -DROP_WRITE_ERROR;
	}
	return 0;
}

static __always_inline int custom_to_container(struct __sk_buff *ctx)
{
	return 0;
}
