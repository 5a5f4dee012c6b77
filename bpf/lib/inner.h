/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The inner IP packet of either family: what is read of its headers, its ECN
 * field, and how long its segments are.
 *
 * The header is read once, changed in the copy here and in translate.h, and
 * stored once by whoever writes the headers around it.
 */
#ifndef INNER_H
#define INNER_H

#include "address.h"
#include "checksum.h"
#include "geneve_abi.h"
#include "kernel.h"

#define TCP_OFFSET 12		/* of the field with the header's length */
#define UDP_HEADER 8
#define EXTENSIONS_MAX 6	/* headers; a real packet has one or two */

union ip_header {
	struct iphdr v4;
	struct ipv6 v6;
};

struct inner {
	union ip_header ip;	/* as it came; then as it is to be stored */
	struct address destination; /* as it came */
	__u32 l3;		/* offset of the IP header in the frame */
	__u32 l4;		/* offset behind it and IPv6's extensions */
	__u32 length;		/* bytes of the packet */
	__u32 pad;
	/* Eight bytes each: of smaller ones in its stack the verifier forgets
	 * what it knows, and follows branches that cannot be.
	 */
	__u64 family;		/* 4 or 6 */
	__u64 protocol;		/* at l4 */
	__u64 first;		/* not a later fragment: the L4 header is here */
};

/* 4, 6, or 0 for what is no IP. */
static inline __u8 family_of(__be16 ethertype)
{
	return ethertype == to_be16(ETH_P_IP)	? 4 :
	       ethertype == to_be16(ETH_P_IPV6) ? 6 :
						  0;
}

static inline __u32 header_size(const struct inner *inner)
{
	return inner->family == 6 ? sizeof(inner->ip.v6) : sizeof(inner->ip.v4);
}

static inline struct address source_of(const struct inner *inner)
{
	return inner->family == 6 ? inner->ip.v6.source :
				    from_ipv4(inner->ip.v4.saddr);
}

static inline enum drop_reason read_ipv4(struct __sk_buff *skb,
					 struct inner *inner)
{
	struct iphdr *ip = &inner->ip.v4;
	__u32 header;

	if (read_bytes(skb, inner->l3, ip, sizeof(*ip)))
		return DROP_SHORT_FRAME;
	header = ip->ihl * 4;
	if (ip->version != 4 || header < sizeof(*ip))
		return DROP_BAD_IP_HEADER;
	inner->l4 = inner->l3 + header;
	inner->length = from_be16(ip->tot_len);
	inner->protocol = ip->protocol;
	inner->first = !(ip->frag_off & to_be16(IP_OFFSET));
	inner->destination = from_ipv4(ip->daddr);
	/* Beyond 64 KB the field can't say it; the kernel then writes 0. */
	if (!inner->length && skb->gso_size)
		inner->length = skb->len - inner->l3;
	return inner->length < header ? DROP_BAD_IP_HEADER : DROP_NONE;
}

/* RFC 8200 section 4: past what stands between the header and L4. A routing
 * header that is not used up names another destination than the one we see.
 */
static inline enum drop_reason skip_extensions(struct __sk_buff *skb,
					       struct inner *inner)
{
	__u8 start[4];		/* next header, length, and what follows */
	int i;

#pragma unroll
	for (i = 0; i <= EXTENSIONS_MAX; i++) {
		if (inner->protocol != IPPROTO_HOPOPTS &&
		    inner->protocol != IPPROTO_ROUTING &&
		    inner->protocol != IPPROTO_DSTOPTS &&
		    inner->protocol != IPPROTO_FRAGMENT)
			return DROP_NONE;
		/* None is shorter; behind the packet's end is padding. */
		if (inner->l4 + 8 > inner->l3 + inner->length ||
		    read_bytes(skb, inner->l4, start, sizeof(start)))
			return DROP_SHORT_FRAME;
		if (i == EXTENSIONS_MAX)
			break;
		if (inner->protocol == IPPROTO_ROUTING && start[3])
			return DROP_EXTENSION_HEADER;
		if (inner->protocol == IPPROTO_FRAGMENT) {
			inner->l4 += 8;
			inner->protocol = start[0];
			if (start[2] || start[3] & 0xf8) {
				inner->first = 0;
				return DROP_NONE;
			}
		} else {
			inner->l4 += (start[1] + 1) * 8;
			inner->protocol = start[0];
		}
	}
	return DROP_EXTENSION_HEADER;
}

static inline enum drop_reason read_ipv6(struct __sk_buff *skb,
					 struct inner *inner)
{
	struct ipv6 *ip = &inner->ip.v6;

	if (read_bytes(skb, inner->l3, ip, sizeof(*ip)))
		return DROP_SHORT_FRAME;
	/* A mapped address would be looked up as the IPv4 address that it is not. */
	if ((ip->start & to_be32(0xf0000000)) != to_be32(0x60000000) ||
	    is_ipv4(&ip->destination))
		return DROP_BAD_IP_HEADER;
	inner->l4 = inner->l3 + sizeof(*ip);
	inner->length = sizeof(*ip) + from_be16(ip->payload);
	inner->protocol = ip->next;
	inner->first = 1;
	inner->destination = ip->destination;
	if (!ip->payload && skb->gso_size)
		inner->length = skb->len - inner->l3;
	return DROP_NONE;
}

/* The packet that starts at `l3` and must end before `end`, which are offsets
 * in the frame. What is behind it is padding.
 */
static inline enum drop_reason read_inner(struct __sk_buff *skb, __u32 l3,
					  __u32 end, __u8 family,
					  struct inner *inner)
{
	enum drop_reason reason;

	__builtin_memset(inner, 0, sizeof(*inner));
	inner->l3 = l3;
	inner->family = family;
	reason = family == 6 ? read_ipv6(skb, inner) : read_ipv4(skb, inner);
	if (reason)
		return reason;
	if (l3 + inner->length > end)
		return DROP_SHORT_FRAME;
	if (family == 6) {
		reason = skip_extensions(skb, inner);
		if (reason)
			return reason;
		if (inner->l4 > l3 + inner->length)
			return DROP_SHORT_FRAME;
	}
	return DROP_NONE;
}

/* Bytes that the largest packet this frame becomes brings into the tunnel:
 * itself with its padding, or one segment of a GSO frame.
 */
static inline __u32 segment_length(struct __sk_buff *skb,
				   const struct inner *inner)
{
	__u32 headers = inner->l4 - inner->l3;
	__u8 offset = 0;

	if (!skb->gso_size)
		return skb->len - inner->l3;
	if (inner->protocol == IPPROTO_TCP) {
		bpf_skb_load_bytes(skb, inner->l4 + TCP_OFFSET, &offset,
				   sizeof(offset));
		headers += (offset >> 4) * 4;
	} else {
		headers += UDP_HEADER;
	}
	return headers + skb->gso_size;
}

#endif /* INNER_H */
