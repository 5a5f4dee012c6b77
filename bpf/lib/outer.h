/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The headers around Geneve, as we send them: the way they take, and what is in
 * them. Both families; the node's VTEP says which.
 */
#ifndef OUTER_H
#define OUTER_H

#include "address.h"
#include "checksum.h"
#include "ecn.h"
#include "geneve.h"
#include "inner.h"
#include "kernel.h"
#include "maps.h"

#define OUTER_TTL 64

struct udp {
	__be16 source;
	__be16 destination;
	__be16 length;
	__be16 checksum;
};

/* What the families have in common. */
struct tunnel {
	struct udp udp;
	struct geneve geneve;
	struct ethhdr eth;	/* inner */
} __attribute__((packed));

/* What is in front of an inner L4 header, in one piece to be stored at once. */
struct front4 {
	struct ethhdr eth;
	struct iphdr ip;
	struct tunnel tunnel;
	union ip_header inner;
} __attribute__((packed));

struct front6 {
	struct ethhdr eth;
	struct ipv6 ip;
	struct tunnel tunnel;
	union ip_header inner;
} __attribute__((packed));

#define OVERHEAD4 (sizeof(struct iphdr) + sizeof(struct tunnel))
#define OVERHEAD6 (sizeof(struct ipv6) + sizeof(struct tunnel))

/* What the tunnel adds to an inner IP packet on the underlay. */
static inline __u32 overhead(const struct node_config *config)
{
	return is_ipv4(&config->vtep) ? OVERHEAD4 : OVERHEAD6;
}

#define FIRST_SOURCE_PORT 0x8000

/* Same flow, same port (RFC 8926 section 3.3): 32768 to 65535. */
static inline __be16 source_port(__u32 flow_hash)
{
	return to_be16((__u16)((flow_hash ^ (flow_hash >> 16)) |
			       FIRST_SOURCE_PORT));
}

/* RFC 6438: the flow's mark for routers that do not look into UDP. */
static inline __be32 flow_label(__u32 flow_hash)
{
	return to_be32((flow_hash ^ (flow_hash >> 12)) & 0xfffff);
}

/* One packet's way over the underlay. */
struct path {
	struct bpf_redir_neigh nexthop;
	__u32 ifindex;
	__u32 mtu;		/* bytes of an outer packet */
};

/* The flow's port and label are part of the question, so that several paths
 * share the flows (net.ipv4.fib_multipath_hash_policy=1 and IPv6's).
 */
static inline long ask_routes(struct __sk_buff *skb,
			      const struct node_config *config,
			      const struct address *vtep, __u32 flow_hash,
			      __u32 length, struct bpf_fib_lookup *fib)
{
	__builtin_memset(fib, 0, sizeof(*fib));
	fib->l4_protocol = IPPROTO_UDP;
	fib->sport = source_port(flow_hash);
	fib->dport = config->udp_port;
	fib->tot_len = length;
	fib->ifindex = config->fib_ifindex;
	if (is_ipv4(&config->vtep)) {
		fib->family = FAMILY_IPV4;
		fib->ipv4_src = config->vtep.word[3];
		fib->ipv4_dst = vtep->word[3];
	} else {
		fib->family = FAMILY_IPV6;
		fib->flowinfo = flow_label(flow_hash);
		__builtin_memcpy(fib->ipv6_src, &config->vtep,
				 sizeof(fib->ipv6_src));
		__builtin_memcpy(fib->ipv6_dst, vtep, sizeof(fib->ipv6_dst));
	}
	return bpf_fib_lookup(skb, fib, sizeof(*fib), 0);
}

/* Ask the kernel's routes, for every packet: nothing here outlives a change of
 * theirs.
 */
static inline enum drop_reason find_path(struct __sk_buff *skb,
					 const struct node_config *config,
					 const struct address *vtep,
					 __u32 flow_hash, __u32 length,
					 struct path *path)
{
	struct bpf_fib_lookup fib;
	long answer;

	answer = ask_routes(skb, config, vtep, flow_hash, length, &fib);
	path->mtu = fib.mtu_result;
	/* It is the caller's to tell the sender, who may have to know more. */
	if (answer == BPF_FIB_LKUP_RET_FRAG_NEEDED)
		return DROP_NONE;
	/* Without a neighbour entry redirect_neigh makes one and waits for it. */
	if (answer != BPF_FIB_LKUP_RET_SUCCESS &&
	    answer != BPF_FIB_LKUP_RET_NO_NEIGH)
		return DROP_NO_UNDERLAY_ROUTE;
	path->ifindex = fib.ifindex;
	path->nexthop.nh_family = fib.family;
	if (fib.family == FAMILY_IPV4)
		path->nexthop.ipv4_nh = fib.ipv4_dst;
	else
		__builtin_memcpy(path->nexthop.ipv6_nh, fib.ipv6_dst,
				 sizeof(path->nexthop.ipv6_nh));
	/* The kernel says the MTU last, or to refuse what is longer. */
	if (answer == BPF_FIB_LKUP_RET_NO_NEIGH) {
		ask_routes(skb, config, vtep, flow_hash, 0xffff, &fib);
		path->mtu = fib.mtu_result;
	}
	return DROP_NONE;
}

/* What the tunnel's headers say. */
struct envelope {
	const struct address *vtep;
	const __u8 *source_mac;		/* inner */
	const __u8 *destination_mac;
	__u32 vni;
	__u32 flow_hash;
	__be16 inner_protocol;
	__u8 ecn;
};

/* The UDP checksum is 0: for a GSO frame a program can't have one made. RFC 8926
 * section 3.3 allows it over IPv4, and over IPv6 between nodes that know each
 * other, as ours do.
 */
static inline void make_tunnel(struct tunnel *tunnel,
			       const struct node_config *config,
			       const struct envelope *envelope, __u32 length)
{
	tunnel->udp.source = source_port(envelope->flow_hash);
	tunnel->udp.destination = config->udp_port;
	tunnel->udp.length = to_be16((__u16)length);
	tunnel->geneve.protocol = to_be16(GENEVE_ETHERNET);
	tunnel->geneve.vni = to_be32(envelope->vni << 8);
	__builtin_memcpy(tunnel->eth.h_source, envelope->source_mac, ETH_ALEN);
	__builtin_memcpy(tunnel->eth.h_dest, envelope->destination_mac,
			 ETH_ALEN);
	tunnel->eth.h_proto = envelope->inner_protocol;
}

/* Write what stands in front of a frame's payload, which has room for it
 * already; with `inner`, its IP header as well. Not 0: it could not be stored.
 *
 * DSCP is 0 and TTL 64, whatever the sandbox chose (RFC 2983's pipe model); DF
 * is always set. In a GSO frame beyond 64 KB the lengths wrap; segmentation
 * writes each segment's own.
 */
static inline long write_front(struct __sk_buff *skb,
			       const struct node_config *config,
			       const struct envelope *envelope,
			       const struct inner *inner)
{
	__u32 length = skb->len - ETH_HLEN;
	__u32 inner_size = inner ? header_size(inner) : 0;

	if (is_ipv4(&config->vtep)) {
		struct front4 front = {};

		front.eth.h_proto = to_be16(ETH_P_IP);
		front.ip.version = 4;
		front.ip.ihl = 5;
		front.ip.tos = envelope->ecn;
		front.ip.tot_len = to_be16((__u16)length);
		front.ip.frag_off = to_be16(IP_DF);
		front.ip.ttl = OUTER_TTL;
		front.ip.protocol = IPPROTO_UDP;
		front.ip.saddr = config->vtep.word[3];
		front.ip.daddr = envelope->vtep->word[3];
		/* From what went in: to read words back that were just written
		 * in pieces makes the CPU wait.
		 */
		front.ip.check = (__be16)~fold(
			(__u64)to_be16(0x4500) + to_be16(envelope->ecn) +
			to_be16((__u16)length) + to_be16(IP_DF) +
			to_be16(OUTER_TTL << 8 | IPPROTO_UDP) +
			config->vtep.word[3] + envelope->vtep->word[3]);
		make_tunnel(&front.tunnel, config, envelope,
			    length - sizeof(front.ip));
		if (inner)
			front.inner = inner->ip;
		return bpf_skb_store_bytes(skb, 0, &front,
					   sizeof(front) - sizeof(front.inner) +
						   inner_size, 0);
	} else {
		struct front6 front = {};

		front.eth.h_proto = to_be16(ETH_P_IPV6);
		front.ip.start = to_be32(6U << 28 |
					 (__u32)envelope->ecn << 20) |
				 flow_label(envelope->flow_hash);
		front.ip.payload = to_be16((__u16)(length - sizeof(front.ip)));
		front.ip.next = IPPROTO_UDP;
		front.ip.hop_limit = OUTER_TTL;
		front.ip.source = config->vtep;
		front.ip.destination = *envelope->vtep;
		make_tunnel(&front.tunnel, config, envelope,
			    length - sizeof(front.ip));
		if (inner)
			front.inner = inner->ip;
		return bpf_skb_store_bytes(skb, 0, &front,
					   sizeof(front) - sizeof(front.inner) +
						   inner_size, 0);
	}
}

#endif /* OUTER_H */
