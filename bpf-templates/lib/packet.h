/* SPDX-License-Identifier: GPL-2.0 */
/* What the pipeline knows of a packet: filled by parse, completed by each stage, read by finish(). */
#pragma once
#include <bpf.h>
#include "abi.h"

enum {
	ETH_HLEN = 14,
	ETH_P_IP = 0x0800,
	ETH_P_ARP = 0x0806,
	ETH_P_IPV6 = 0x86dd,
};

enum {
	IPPROTO_HOPOPTS = 0,
	IPPROTO_ICMP = 1,
	IPPROTO_IGMP = 2,
	IPPROTO_TCP = 6,
	IPPROTO_UDP = 17,
	IPPROTO_ROUTING = 43,
	IPPROTO_FRAGMENT = 44,
	IPPROTO_AH = 51,
	IPPROTO_ICMPV6 = 58,
	IPPROTO_NONE = 59,
	IPPROTO_DSTOPTS = 60,
	IPPROTO_SCTP = 132,
};

enum {
	TCP_FIN = 0x01,
	TCP_SYN = 0x02,
	TCP_RST = 0x04,
	TCP_ACK = 0x10,
};

/* Verdicts that are no TC action: the entry point acts on them. */
enum {
	ACT_MISS = 0x100,    /* the fast path leaves it to the slow one */
	ACT_RECEIVE = 0x101, /* tail call receive[cb[0]] */
	ACT_DECIDE = 0x102,  /* flow and policy decide */
	ACT_PASS = 0x103,    /* none of ours */
	ACT_ANSWER = 0x104,  /* an error goes back */
};

/* __sk_buff.cb: what a tail call hands over. */
enum {
	CB_SLOT = 0,  /* slot of the receiver; for the slow path that of the sending container */
	CB_HOP = 1,   /* the packet is routed, so its hop count goes down */
	CB_MTU = 1,   /* FROM_ANSWER: what the packet is too big for, or 0: its hops ran out */
	CB_FROM = 2,  /* for the slow path: FROM_*, and << 8 the reason to drop, or 0; for a report: TRACE_CB_* */
	CB_STAGE = 3, /* on the way to a stage: its slot */
	CB_LAST = 3,  /* for a report: jiffies and number of its flow's packet before it */
	CB_NTH = 4,
};

/* cb[CB_FROM] for a report, by bits: the packet goes to who opened its flow; receive_own is to deliver it; a container sent it; its slot. */
enum {
	TRACE_CB_REPLY = 8,
	TRACE_CB_RECEIVE = 9,
	TRACE_CB_EGRESS = 10,
	TRACE_CB_SLOT = 16,
};

/* Who calls the slow path, or the stage before it. */
enum {
	FROM_CONTAINER = 0, /* cb[CB_SLOT]: sender */
	FROM_HOST = 1,
	FROM_RECEIVE = 2, /* a delivery that fails; cb[CB_SLOT]: receiver */
	FROM_NETDEV = 3,  /* a device of the node */
	FROM_MASKED = 4,  /* a device of the node, to the node's address: an answer to what was masqueraded, maybe */
	FROM_STACK = 5,	  /* the same, to be routed by the stack */
	TO_NETDEV = 6,	  /* a container's, about to leave by a device */
	FROM_ANSWER = 7,  /* an answer to what was masqueraded, that cannot go on: cb[CB_MTU] says why */
};

/* packet.kind */
enum {
	PKT_FLOW = 0,  /* belongs to a flow */
	PKT_ERROR = 1, /* ICMP error: the quoted packet names the flow */
	PKT_ND = 2,    /* neighbour discovery or multicast listener message */
};

/* packet.frag */
enum {
	FRAG_NONE = 0,
	FRAG_FIRST = 1,
	FRAG_LATER = 2, /* ports and flags are those of the first */
};

/* packet.masked */
enum {
	MASKED_FLOW = 1, /* its flow leaves under the node's address */
	MASKED_NODE = 2, /* it came to the node's address, and its sender knows no other */
};

struct packet {
	__be32 saddr[4]; /* IPv4 in [0] */
	__be32 daddr[4];
	__be16 sport; /* ICMP echo: identifier in both */
	__be16 dport;
	__u16 l4_off; /* from the Ethernet header */
	__u16 match;  /* what policy compares: destination port or ICMP type, host order */
	__u16 src_slot;
	__u16 dst_slot;
	__u32 src_id;
	__u32 dst_id;
	__u32 rule;
	__u8 family; /* 4 or 6 */
	__u8 proto;
	__u8 tcp_flags;
	__u8 icmp_type;
	__u8 icmp_code;
	__u8 hops;	/* TTL or hop limit */
	__u8 kind;	/* PKT_* */
	__u8 state;	/* FLOW_STATE_* */
	__u8 dir;	/* side whose decision counts: DIR_* */
	__u8 point;	/* trace point */
	__u8 flags;	/* EVENT_* flags found on the way */
	__u8 side;	/* 0: the sender is side A of its flow */
	__u8 frag;	/* FRAG_* */
	__u8 l4_len;	/* TCP, UDP, SCTP: length of the header */
	__u8 whole;	/* routers must not cut it */
	__u8 masked;	/* MASKED_* */
	__u8 quiet;	/* EP_TRACE_* that ask for other packets */
	__u8 nat46;	/* made of an IPv6 packet of its sender */
	__u16 rule_out; /* of the opener's side, where both were asked */
	__u32 frag_id;	/* as it stands in the header */
	__u32 l4;	/* what policy is asked: match << 8 | protocol */
	__u32 opened;	/* flows that were opened at its place before its own was looked for */
	__u32 untold;	/* drops of its tuple that are not reported yet */
};

struct ethhdr {
	__u8 dst[6];
	__u8 src[6];
	__be16 proto;
} __attribute__((packed));

struct iphdr {
	__u8 vihl;
	__u8 tos;
	__be16 tot_len;
	__be16 id;
	__be16 frag_off;
	__u8 ttl;
	__u8 protocol;
	__sum16 check;
	__be32 saddr;
	__be32 daddr;
};

struct ipv6hdr {
	__be32 vtcfl;
	__be16 payload_len;
	__u8 nexthdr;
	__u8 hop_limit;
	__be32 saddr[4];
	__be32 daddr[4];
};

struct tcphdr {
	__be16 source;
	__be16 dest;
	__be32 seq;
	__be32 ack_seq;
	__u8 doff; /* high nibble: header length in words */
	__u8 flags;
	__be16 window;
	__sum16 check;
	__be16 urg_ptr;
};

struct icmphdr {
	__u8 type;
	__u8 code;
	__sum16 check;
	__be16 id;
	__be16 seq;
};
_Static_assert(sizeof(struct ethhdr) == 14 && sizeof(struct iphdr) == 20, "header layout");
_Static_assert(sizeof(struct ipv6hdr) == 40 && sizeof(struct tcphdr) == 20, "header layout");

/* As all comparisons of several words: with one branch, since the verifier looks at what follows each. */
static __always_inline int addr_equal(const __be32 *a, const __be32 *b)
{
	__u32 differ = (a[0] ^ b[0]) | (a[1] ^ b[1]) | (a[2] ^ b[2]) | (a[3] ^ b[3]);

	OPAQUE(differ);
	return !differ;
}

/* The receiver's address (`dst` 1) or the sender's (0), by calculation: the verifier follows each choice to its end. */
static __always_inline __be32 *packet_addr(struct packet *p, __u32 dst)
{
	_Static_assert(__builtin_offsetof(struct packet, daddr) == __builtin_offsetof(struct packet, saddr) + 16,
		       "addresses");
	return (__be32 *)((char *)p->saddr + (dst & 1) * 16);
}

/* The same of the ports. */
static __always_inline __be16 packet_port(const struct packet *p, __u32 dst)
{
	_Static_assert(__builtin_offsetof(struct packet, dport) == __builtin_offsetof(struct packet, sport) + 2,
		       "ports");
	return *(const __be16 *)((const char *)&p->sport + (dst & 1) * 2);
}

/* The same of the slots. */
static __always_inline __u32 packet_slot(const struct packet *p, __u32 dst)
{
	_Static_assert(__builtin_offsetof(struct packet, dst_slot) == __builtin_offsetof(struct packet, src_slot) + 2,
		       "slots");
	return *(const __u16 *)((const char *)&p->src_slot + (dst & 1) * 2);
}
