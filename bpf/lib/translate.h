/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Stateless 1:1 translation of one inner address, with every checksum that
 * covers it: in the packet all but the IP header's, in the copy the rest.
 *
 * IPv4's header checksum makes up for the address, so that the sum of the frame
 * as a NIC may have taken it (CHECKSUM_COMPLETE) stays true; IPv6 has none, so
 * there the header is stored with BPF_F_RECOMPUTE_CSUM.
 */
#ifndef TRANSLATE_H
#define TRANSLATE_H

#include "inner.h"

#define TCP_CHECKSUM 16		/* offsets in the headers */
#define UDP_CHECKSUM 6
#define ICMP_CHECKSUM 2
#define ICMP_HEADER 8
#define IPV4_CHECKSUM 10

enum field {
	SOURCE,
	DESTINATION,
};

static inline __u32 field_offset(__u8 family, enum field field)
{
	if (family == 6)
		return field == SOURCE ? 8 : 24;
	return field == SOURCE ? 12 : 16;
}

/* Where the checksum of a protocol over a pseudo-header is; 0: it has none. */
static inline __u32 checksum_offset(__u8 family, __u8 protocol)
{
	if (protocol == IPPROTO_TCP)
		return TCP_CHECKSUM;
	if (protocol == IPPROTO_UDP)
		return UDP_CHECKSUM;
	if (family == 6 && protocol == IPPROTO_ICMPV6)
		return ICMP_CHECKSUM;
	return 0;
}

/* What is added to a sum when one address takes another's place. */
static inline __u32 difference(__u8 family, const struct address *from,
			       const struct address *to)
{
	__u64 sum = (__u64)(__u32)~from->word[3] + to->word[3];

	if (family == 6)
		sum += (__u64)(__u32)~from->word[0] + to->word[0] +
		       (__u32)~from->word[1] + to->word[1] +
		       (__u32)~from->word[2] + to->word[2];
	return fold(sum);
}

/* Whether an ICMP message is an error, and quotes a packet. */
static inline int is_icmp_error(__u8 family, __u8 type)
{
	if (family == 6)
		return type < 128;
	/* unreachable, quench, redirect, time exceeded, parameter problem */
	return type == 3 || type == 4 || type == 5 || type == 11 || type == 12;
}

/* An ICMP error quotes the packet it is about, as the reporter saw it; the
 * other side must find its own address in there, in the other field. What the
 * address adds to ICMP's sum is taken off again by a checksum in the quote that
 * covers it, if the quote has one.
 */
static inline enum drop_reason
translate_quote(struct __sk_buff *skb, const struct inner *inner,
		enum field field, const struct address *from,
		const struct address *to, __u32 change)
{
	__u8 family = inner->family;
	__u32 size = header_size(inner);
	__u32 quote = inner->l4 + ICMP_HEADER;
	__u32 end = inner->l3 + inner->length;
	struct inner quoted = { .l3 = quote, .length = end - quote };
	union ip_header *ip = &quoted.ip;
	__u32 at, covered;
	__u8 type;
	__be16 old, new;
	long failed;

	if (inner->l4 + sizeof(type) > end ||
	    bpf_skb_load_bytes(skb, inner->l4, &type, sizeof(type)))
		return DROP_SHORT_FRAME;
	if (!is_icmp_error(family, type))
		return DROP_NONE;
	if (quote + size > end ||
	    bpf_skb_load_bytes(skb, quote, ip, size))
		return DROP_SHORT_FRAME;

	if (family == 6) {
		if ((ip->v6.start & to_be32(0xf0000000)) != to_be32(0x60000000))
			return DROP_BAD_IP_HEADER;
		if (!same_address(field == SOURCE ? &ip->v6.source :
						    &ip->v6.destination, from))
			return DROP_NONE;
		failed = bpf_skb_store_bytes(skb, quote + field_offset(6, field),
					     (void *)to, sizeof(*to), 0);
		quoted.protocol = ip->v6.next;
		quoted.first = 1;
		quoted.l4 = quote + size;
		/* What is cut off, or cannot be seen through, is no checksum's. */
		if (skip_extensions(skb, &quoted) || !quoted.first)
			quoted.protocol = 0;
		covered = 0;
	} else {
		if (ip->v4.version != 4 || ip->v4.ihl < 5)
			return DROP_BAD_IP_HEADER;
		if ((field == SOURCE ? ip->v4.saddr : ip->v4.daddr) !=
		    from->word[3])
			return DROP_NONE;
		failed = bpf_l3_csum_replace(skb, quote + IPV4_CHECKSUM,
					     from->word[3], to->word[3], 4) ||
			 bpf_skb_store_bytes(skb, quote + field_offset(4, field),
					     (void *)&to->word[3],
					     sizeof(__be32), 0);
		if (!(ip->v4.frag_off & to_be16(IP_OFFSET)))
			quoted.protocol = ip->v4.protocol;
		quoted.l4 = quote + ip->v4.ihl * 4;
		covered = 1;	/* by the quoted header's own checksum */
	}
	if (failed)
		return DROP_NO_REWRITE;

	at = checksum_offset(family, quoted.protocol);
	/* Eight bytes of L4 are all that a reporter must quote. */
	if (at && quoted.l4 + at + sizeof(old) <= end) {
		at += quoted.l4;
		if (bpf_skb_load_bytes(skb, at, &old, sizeof(old)))
			return DROP_SHORT_FRAME;
		if (quoted.protocol != IPPROTO_UDP || old) {
			new = (__be16)~fold((__u64)(__u16)~old + change);
			/* 0 would say that there is none. */
			if (!new && quoted.protocol == IPPROTO_UDP)
				new = 0xffff;
			if (bpf_skb_store_bytes(skb, at, &new, sizeof(new), 0))
				return DROP_NO_REWRITE;
			if (!covered)
				return DROP_NONE;
			return bpf_l4_csum_replace(skb,
						   inner->l4 + ICMP_CHECKSUM,
						   old, new, 2) ?
				       DROP_NO_REWRITE :
				       DROP_NONE;
		}
	}
	if (!covered &&
	    bpf_l4_csum_replace(skb, inner->l4 + ICMP_CHECKSUM, 0, change, 0))
		return DROP_NO_REWRITE;
	return DROP_NONE;
}

/* Whether a packet is an ICMP error, or too short to say. */
static inline int may_quote(struct __sk_buff *skb, const struct inner *inner)
{
	__u8 type;

	return inner->first &&
	       inner->protocol == (inner->family == 6 ? IPPROTO_ICMPV6 :
							IPPROTO_ICMP) &&
	       (inner->l4 >= inner->l3 + inner->length ||
		bpf_skb_load_bytes(skb, inner->l4, &type, sizeof(type)) ||
		is_icmp_error(inner->family, type));
}

/* Put `to` where `from` is. Without `quotes` the packet is none that may_quote(). */
static inline enum drop_reason translate(struct __sk_buff *skb,
					 struct inner *inner, enum field field,
					 const struct address *from,
					 const struct address *to,
					 const int quotes)
{
	__u8 family = inner->family;
	__u32 change, at, offset = checksum_offset(family, inner->protocol);
	enum drop_reason reason;
	__u64 flags = BPF_F_PSEUDO_HDR;

	if (same_address(from, to))
		return DROP_NONE;
	change = difference(family, from, to);
	if (inner->first) {
		if (quotes &&
		    inner->protocol == (family == 6 ? IPPROTO_ICMPV6 :
						      IPPROTO_ICMP)) {
			reason = translate_quote(skb, inner,
						 field == SOURCE ? DESTINATION :
								   SOURCE,
						 from, to, change);
			if (reason)
				return reason;
		}
		if (offset) {
			at = inner->l4 + offset;
			/* behind the packet's end is padding */
			if (at + sizeof(__u16) > inner->l3 + inner->length)
				return DROP_SHORT_FRAME;
			/* A zero UDP checksum means none, and stays so. */
			if (inner->protocol == IPPROTO_UDP)
				flags |= BPF_F_MARK_MANGLED_0;
			if (bpf_l4_csum_replace(skb, at, 0, change, flags))
				return DROP_SHORT_FRAME;
		}
	}
	if (family == 6) {
		if (field == SOURCE)
			inner->ip.v6.source = *to;
		else
			inner->ip.v6.destination = *to;
		return DROP_NONE;
	}
	inner->ip.v4.check = checksum_after(inner->ip.v4.check, from->word[3],
					    to->word[3]);
	if (field == SOURCE)
		inner->ip.v4.saddr = to->word[3];
	else
		inner->ip.v4.daddr = to->word[3];
	return DROP_NONE;
}

#endif /* TRANSLATE_H */
