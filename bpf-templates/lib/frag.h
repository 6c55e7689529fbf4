/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Fragments: the first one has the ports and is judged; what follows takes them
 * from it. One that comes before its first is dropped.
 */
#pragma once
#include "maps.h"
#include "packet.h"

TABLE_frag;

enum {
	FRAG_SECONDS = 30, /* as the kernel waits for the rest of a datagram */
};

static __always_inline void frag_key_make(struct frag_key *k, const struct packet *p)
{
	__builtin_memcpy(k->saddr, p->saddr, 16);
	__builtin_memcpy(k->daddr, p->daddr, 16);
	k->id = p->frag_id;
	k->proto = p->family == 4 ? p->proto : 0;
	k->family = p->family;
	k->pad = 0;
}

/* A later fragment, `offset` bytes into what was cut: the flow is its first one's. */
__noinline int frag_follow(struct packet *p, __u32 offset)
{
	struct frag_entry *e;
	struct frag_key key;

	if (!p)
		return -DROP_FRAGMENT_UNKNOWN;
	frag_key_make(&key, p);
	e = bpf_map_lookup_elem(&frag, &key);
	if (!e || bpf_ktime_get_ns() - e->time > FRAG_SECONDS * 1000000000ULL)
		return -DROP_FRAGMENT_UNKNOWN;
	/* None may write over the header that was judged (RFC 1858, RFC 5722). */
	if (offset < (e->proto == IPPROTO_TCP ? sizeof(struct tcphdr) : 8))
		return -DROP_FRAGMENT;
	p->sport = e->sport;
	p->dport = e->dport;
	p->match = e->port;
	p->proto = e->proto;
	p->tcp_flags = TCP_ACK;
	if (p->proto == IPPROTO_ICMP || p->proto == IPPROTO_ICMPV6)
		p->icmp_type = (__u8)e->port;
	return 0;
}

/* A first fragment that goes on its way. */
__noinline int frag_remember(struct packet *p)
{
	struct frag_entry e = {};
	struct frag_key key;

	if (!p)
		return 0;
	e.time = bpf_ktime_get_ns();
	e.sport = p->sport;
	e.dport = p->dport;
	e.port = p->match;
	e.proto = p->proto;
	frag_key_make(&key, p);
	bpf_map_update_elem(&frag, &key, &e, BPF_ANY);
	return 0;
}
