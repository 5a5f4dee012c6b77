/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The outer headers: Geneve (RFC 8926 section 3.4) in UDP in IPv4. */
#ifndef GENEVE_H
#define GENEVE_H

#include "maps.h"
#include "kernel.h"

#define GENEVE_VERSION_MASK 0xc0
#define GENEVE_OPTIONS_MASK 0x3f	/* in units of four bytes */
#define GENEVE_CONTROL 0x80		/* O: not for a tenant */
#define GENEVE_CRITICAL 0x40		/* C: an option must be understood */
#define GENEVE_ETHERNET 0x6558
#define OUTER_TTL 64

struct udp {
	__be16 source;
	__be16 destination;
	__be16 length;
	__be16 checksum;
};

struct geneve {
	__u8 version_options;
	__u8 flags;
	__be16 protocol;
	__be32 vni;		/* upper 24 bits; the last byte is reserved */
};

/* All that goes in front of an inner IP packet. */
struct outer {
	struct ethhdr eth;
	struct iphdr ip;
	struct udp udp;
	struct geneve geneve;
	struct ethhdr inner_eth;
} __attribute__((packed));

/* What the tunnel adds to an inner IP packet on the underlay: outer IP to
 * inner Ethernet.
 */
#define OVERHEAD (sizeof(struct outer) - ETH_HLEN)

/* Same flow, same port (RFC 8926 section 3.3): 32768 to 65535. */
static inline __be16 source_port(__u32 flow_hash)
{
	return to_be16((__u16)((flow_hash ^ (flow_hash >> 16)) | 0x8000));
}

static inline __be16 header_checksum(const struct iphdr *ip)
{
	const __u16 *words = (const __u16 *)ip;
	__u32 sum = 0;
	int i;

#pragma unroll
	for (i = 0; i < 10; i++)
		sum += words[i];
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return (__be16)~sum;
}

/* Ask the kernel's routes, for every packet: nothing here outlives a change of
 * theirs. The flow's ports are part of the question, so that several paths
 * share the flows (net.ipv4.fib_multipath_hash_policy=1).
 */
static inline enum drop_reason find_path(struct __sk_buff *skb,
					 const struct node_config *config,
					 __be32 vtep, __be16 port, __u32 length,
					 __u32 *ifindex,
					 struct bpf_redir_neigh *nexthop)
{
	struct bpf_fib_lookup fib = {
		.family = FAMILY_IPV4,
		.l4_protocol = IPPROTO_UDP,
		.sport = port,
		.dport = config->udp_port,
		.tot_len = length,
		.ifindex = config->fib_ifindex,
		.ipv4_src = config->vtep.word[3],
		.ipv4_dst = vtep,
	};
	long answer = bpf_fib_lookup(skb, &fib, sizeof(fib), 0);

	if (answer == BPF_FIB_LKUP_RET_FRAG_NEEDED)
		return DROP_TOO_BIG;
	/* Without a neighbour entry redirect_neigh makes one and waits for it. */
	if (answer != BPF_FIB_LKUP_RET_SUCCESS &&
	    answer != BPF_FIB_LKUP_RET_NO_NEIGH)
		return DROP_NO_UNDERLAY_ROUTE;
	*ifindex = fib.ifindex;
	nexthop->nh_family = fib.family;
	if (fib.family == FAMILY_IPV4)
		nexthop->ipv4_nh = fib.ipv4_dst;
	else
		__builtin_memcpy(nexthop->ipv6_nh, fib.ipv6_dst,
				 sizeof(nexthop->ipv6_nh));
	return DROP_NONE;
}

/* Make the headers for a frame that has room for them already.
 *
 * The UDP checksum is 0: for a GSO frame a program can't have one made, and
 * RFC 8926 section 3.3 allows it over IPv4. ECN is not carried over
 * (RFC 6040's compatibility mode). DF is always set.
 */
static inline void make_outer(struct __sk_buff *skb, struct outer *outer,
			      const struct node_config *config, __be32 vtep,
			      __be16 port, __u32 vni, __be16 inner_protocol,
			      const __u8 *inner_source,
			      const __u8 *inner_destination)
{
	/* In a GSO frame beyond 64 KB the lengths wrap; segmentation writes
	 * each segment's own.
	 */
	__u32 length = skb->len - ETH_HLEN;

	__builtin_memset(outer, 0, sizeof(*outer));
	outer->eth.h_proto = to_be16(ETH_P_IP);
	outer->ip.version = 4;
	outer->ip.ihl = 5;
	outer->ip.tot_len = to_be16((__u16)length);
	outer->ip.frag_off = to_be16(IP_DF);
	outer->ip.ttl = OUTER_TTL;
	outer->ip.protocol = IPPROTO_UDP;
	outer->ip.saddr = config->vtep.word[3];
	outer->ip.daddr = vtep;
	outer->ip.check = header_checksum(&outer->ip);
	outer->udp.source = port;
	outer->udp.destination = config->udp_port;
	outer->udp.length = to_be16((__u16)(length - sizeof(outer->ip)));
	outer->geneve.protocol = to_be16(GENEVE_ETHERNET);
	outer->geneve.vni = to_be32(vni << 8);
	__builtin_memcpy(outer->inner_eth.h_source, inner_source, ETH_ALEN);
	__builtin_memcpy(outer->inner_eth.h_dest, inner_destination, ETH_ALEN);
	outer->inner_eth.h_proto = inner_protocol;
}

#endif /* GENEVE_H */
