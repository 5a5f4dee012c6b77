/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The headers around Geneve, as they come: whether a frame is ours, and whether
 * it may be believed.
 */
#ifndef ARRIVAL_H
#define ARRIVAL_H

#include "address.h"
#include "checksum.h"
#include "geneve.h"
#include "inner.h"
#include "kernel.h"
#include "outer.h"
#include "translate.h"

/* What the outer headers of a frame for us say. Offsets are in the frame. */
struct arrival {
	struct address sender;
	__u32 vni;
	__u32 udp;		/* offset of the UDP header */
	__u32 end;		/* offset behind the UDP payload */
	__u32 payload;		/* offset of what Geneve carries */
	__be16 protocol;	/* of the payload, as Geneve says */
	__u8 family;		/* of the underlay: 4 or 6 */
	__u8 ecn;
	__u8 odd;		/* enum drop_reason, one byte: it cannot be taken */
	__u8 unsummed;		/* the UDP checksum is still the device's to make */
	__u8 pad[2];
};

/* UDP to our VTEP and port? Fills in sender, udp, family and ecn, and what makes
 * the IP header one that we don't take. A later fragment shows no port, so that
 * it can't be told from somebody else's.
 */
static inline int read_outer4(struct __sk_buff *skb, const __u32 l2,
			      const struct node_config *config,
			      struct arrival *arrival)
{
	struct iphdr ip;

	if (skb->protocol != to_be16(ETH_P_IP) ||
	    read_bytes(skb, l2, &ip, sizeof(ip)))
		return 0;
	if (ip.daddr != config->vtep.word[3] || ip.protocol != IPPROTO_UDP ||
	    ip.version != 4 || (ip.frag_off & to_be16(IP_OFFSET)))
		return 0;
	if (ip.frag_off & to_be16(IP_MF))
		arrival->odd = DROP_OUTER_FRAGMENT;
	else if (ip.ihl != 5)
		arrival->odd = DROP_OUTER_OPTIONS;
	else if (header_sum(&ip) != 0xffff)
		arrival->odd = DROP_OUTER_CHECKSUM;
	arrival->sender = from_ipv4(ip.saddr);
	arrival->udp = l2 + ip.ihl * 4;
	arrival->end = l2 + from_be16(ip.tot_len);
	arrival->ecn = ip.tos & ECN_MASK;
	arrival->family = 4;
	return 1;
}

static inline int read_outer6(struct __sk_buff *skb, const __u32 l2,
			      const struct node_config *config,
			      struct arrival *arrival)
{
	struct ipv6 ip;
	__u8 start[4];
	int i;

	if (skb->protocol != to_be16(ETH_P_IPV6) ||
	    read_bytes(skb, l2, &ip, sizeof(ip)))
		return 0;
	if (!same_address(&ip.destination, &config->vtep) ||
	    (ip.start & to_be32(0xf0000000)) != to_be32(0x60000000))
		return 0;
	arrival->sender = ip.source;
	arrival->udp = l2 + sizeof(ip);
	arrival->end = l2 + sizeof(ip) + from_be16(ip.payload);
	arrival->ecn = (from_be32(ip.start) >> 20) & ECN_MASK;
	arrival->family = 6;
#pragma clang loop unroll(disable)
	for (i = 0; i < 3; i++) {
		if (ip.next != IPPROTO_HOPOPTS && ip.next != IPPROTO_ROUTING &&
		    ip.next != IPPROTO_DSTOPTS && ip.next != IPPROTO_FRAGMENT)
			break;
		if (read_bytes(skb, arrival->udp, start, sizeof(start)))
			return 0;
		if (ip.next == IPPROTO_FRAGMENT) {
			if (start[2] || start[3] & 0xf8)
				return 0;
			arrival->odd = DROP_OUTER_FRAGMENT;
			arrival->udp += 8;
		} else {
			if (!arrival->odd)
				arrival->odd = DROP_OUTER_OPTIONS;
			arrival->udp += (start[1] + 1) * 8;
		}
		ip.next = start[0];
	}
	return ip.next == IPPROTO_UDP;
}

/* The sender of a frame whose outer header was read before. */
static inline long read_sender(struct __sk_buff *skb, __u32 l2,
			       const struct node_config *config,
			       struct arrival *arrival)
{
	__be32 ipv4;

	if (!is_ipv4(&config->vtep))
		return read_bytes(skb, l2 + 8, &arrival->sender,
				  sizeof(arrival->sender));
	if (read_bytes(skb, l2 + 12, &ipv4, sizeof(ipv4)))
		return -1;
	arrival->sender = from_ipv4(ipv4);
	return 0;
}

/* Whether a frame is UDP to our VTEP and port. */
static inline int read_outer(struct __sk_buff *skb, const __u32 l2,
			     const struct node_config *config,
			     struct arrival *arrival, struct udp *udp)
{
	if (is_ipv4(&config->vtep) ? !read_outer4(skb, l2, config, arrival) :
				     !read_outer6(skb, l2, config, arrival))
		return 0;
	if (read_bytes(skb, arrival->udp, udp, sizeof(*udp)))
		return 0;
	return udp->destination == config->udp_port;
}

/* A tunnel device of this machine takes the outer sum before the inner one is made,
 * where that is left to a NIC (lco_csum in the kernel): what is from the inner L4
 * header on will add up to the complement of its field, which holds the inner
 * pseudo-header's sum so far. There is no NIC on a veth, so we see it as it is.
 * `sum` is the outer pseudo-header's.
 */
static inline int sums_around_partial(struct __sk_buff *skb,
				      const struct arrival *arrival,
				      const struct geneve *geneve, __u64 sum)
{
	__u32 at = arrival->udp + sizeof(struct udp) + sizeof(*geneve) +
		   options_length(geneve);
	__be16 protocol = geneve->protocol, field;
	struct address source;
	struct inner inner;
	__u32 offset;

	if (protocol == to_be16(GENEVE_ETHERNET)) {
		at += ETH_HLEN;
		if (read_bytes(skb, at - sizeof(protocol), &protocol,
			       sizeof(protocol)))
			return 0;
	}
	if (!family_of(protocol) ||
	    read_inner(skb, at, arrival->end, family_of(protocol), &inner) ||
	    !inner.first)
		return 0;
	if (inner.protocol != IPPROTO_TCP && inner.protocol != IPPROTO_UDP)
		return 0;
	offset = checksum_offset(inner.family, inner.protocol);
	source = source_of(&inner);
	if (inner.l4 + offset + sizeof(field) > at + inner.length ||
	    read_bytes(skb, inner.l4 + offset, &field, sizeof(field)) ||
	    field != fold(pseudo_sum(&source, &inner.destination,
				     at + inner.length - inner.l4,
				     inner.protocol)))
		return 0;
	return sum_bytes(skb, arrival->udp, inner.l4 - arrival->udp,
			 sum + (__u16)~field, HEADERS_MAX) == 0xffff;
}

/* RFC 8926 section 3.3: a checksum that is there must be right. Right is, too,
 * what the NIC has verified, and what a peer on this same machine has left to a
 * NIC that there is none of: a field that holds the pseudo-header's sum alone, or
 * one that counts on an inner checksum which is not made yet.
 */
static inline int checksum_holds(struct __sk_buff *skb,
				 const struct node_config *config,
				 struct arrival *arrival,
				 const struct udp *udp,
				 const struct geneve *geneve)
{
	__u32 length = from_be16(udp->length);
	__u64 pseudo;

	if (!udp->checksum || skb->gso_size)
		return 1;
	pseudo = pseudo_sum(&arrival->sender, &config->vtep, length,
			    IPPROTO_UDP);
	if (udp->checksum == fold(pseudo)) {
		arrival->unsummed = 1;
		return 1;
	}
	if (bpf_csum_level(skb, BPF_CSUM_LEVEL_QUERY) >= 0)
		return 1;
	return sum_bytes(skb, arrival->udp, length, pseudo, 65535) == 0xffff ||
	       sums_around_partial(skb, arrival, geneve, pseudo);
}

/* Whether a frame for us from a known VTEP may be taken in; fills in the rest
 * of the arrival. The lengths of a GSO frame are those of no packet.
 */
static inline enum drop_reason check_outer(struct __sk_buff *skb,
					   const struct node_config *config,
					   struct arrival *arrival,
					   const struct udp *udp)
{
	struct geneve geneve;
	__u32 at;

	if (arrival->odd)
		return arrival->odd;
	at = arrival->udp + sizeof(*udp);
	if (read_bytes(skb, at, &geneve, sizeof(geneve)))
		return DROP_SHORT_FRAME;
	if (skb->gso_size) {
		arrival->end = skb->len;
	} else {
		__u32 end = arrival->udp + from_be16(udp->length);

		if (arrival->end > skb->len || end > arrival->end ||
		    end < at + sizeof(geneve))
			return DROP_OUTER_LENGTH;
		arrival->end = end;
	}
	if (!checksum_holds(skb, config, arrival, udp, &geneve))
		return DROP_OUTER_CHECKSUM;
	arrival->vni = from_be32(geneve.vni) >> 8;
	arrival->protocol = geneve.protocol;
	arrival->payload = at + sizeof(geneve) + options_length(&geneve);
	if (arrival->payload > arrival->end)
		return DROP_SHORT_FRAME;
	return check_geneve(skb, at, &geneve);
}

#endif /* ARRIVAL_H */
