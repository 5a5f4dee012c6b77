/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The inner IPv4 packet: what is read of its header, and the translation of
 * one address with every checksum that covers it.
 *
 * The header is read once, changed here, and stored once by whoever writes the
 * headers around it.
 */
#ifndef INNER_H
#define INNER_H

#include "geneve_abi.h"
#include "kernel.h"

#define IP_SOURCE 12		/* offsets in the IPv4 header */
#define IP_DESTINATION 16
#define IP_CHECKSUM 10
#define TCP_OFFSET 12
#define TCP_CHECKSUM 16
#define UDP_CHECKSUM 6
#define ICMP_CHECKSUM 2
#define ICMP_HEADER 8

struct inner {
	struct iphdr ip;	/* as it came; then as it is to be stored */
	__u32 l3;		/* offset of the IP header in the frame */
	__u32 l4;		/* offset behind the IP header */
	__u32 length;		/* bytes of the packet */
	__u32 first;		/* not a later fragment: the L4 header is here */
};

/* Addresses that no sandbox can have and no route may lead to. */
static inline int is_unicast(__be32 address)
{
	__u32 a = from_be32(address);

	return (a >> 28) < 14 && (a >> 24) != 0 && (a >> 24) != 127;
}

static inline enum drop_reason read_inner(struct __sk_buff *skb, __u32 l3,
					  struct inner *inner)
{
	__u32 header;

	if (read_bytes(skb, l3, &inner->ip, sizeof(inner->ip)))
		return DROP_SHORT_FRAME;
	header = inner->ip.ihl * 4;
	inner->l3 = l3;
	inner->l4 = l3 + header;
	inner->length = from_be16(inner->ip.tot_len);
	inner->first = !(inner->ip.frag_off & to_be16(IP_OFFSET));

	if (inner->ip.version != 4 || header < sizeof(inner->ip))
		return DROP_BAD_IP_HEADER;
	/* Beyond 64 KB the field can't say it; the kernel then writes 0. */
	if (!inner->length && skb->gso_size)
		inner->length = skb->len - l3;
	if (inner->length < header)
		return DROP_BAD_IP_HEADER;
	/* Less may be padding, more is a lie. */
	if (l3 + inner->length > skb->len)
		return DROP_SHORT_FRAME;
	return DROP_NONE;
}

/* One's complement: the checksum after two 16-bit words behind it changed. */
static inline __u16 checksum_after(__u16 checksum, __be32 from, __be32 to)
{
	__u32 sum = (__u16)~checksum;

	sum += (__u16)~(__u16)from;
	sum += (__u16)~(__u16)(from >> 16);
	sum += (__u16)to;
	sum += (__u16)(to >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return (__u16)~sum;
}

/* An ICMP error quotes the packet it is about, as the reporter saw it; the
 * other side must find its own address in there. The quoted IP header's own
 * checksum makes up for the address, so that ICMP's checksum changes only by
 * what the quoted L4 checksum does.
 */
static inline enum drop_reason
translate_quote(struct __sk_buff *skb, const struct inner *inner, __u32 field,
		__be32 from, __be32 to)
{
	__u32 quote = inner->l4 + ICMP_HEADER;
	__u32 end = inner->l3 + inner->length;
	__u32 at, header;
	__u16 old, new;
	struct iphdr ip;
	__u8 type;

	if (bpf_skb_load_bytes(skb, inner->l4, &type, sizeof(type)))
		return DROP_SHORT_FRAME;
	/* unreachable, quench, redirect, time exceeded, parameter problem */
	if (type != 3 && type != 4 && type != 5 && type != 11 && type != 12)
		return DROP_NONE;
	if (quote + sizeof(ip) > end ||
	    bpf_skb_load_bytes(skb, quote, &ip, sizeof(ip)))
		return DROP_SHORT_FRAME;
	header = ip.ihl * 4;
	if (ip.version != 4 || header < sizeof(ip))
		return DROP_BAD_IP_HEADER;
	if ((field == IP_SOURCE ? ip.saddr : ip.daddr) != from)
		return DROP_NONE;

	if (bpf_l3_csum_replace(skb, quote + IP_CHECKSUM, from, to, 4) ||
	    bpf_skb_store_bytes(skb, quote + field, &to, sizeof(to), 0))
		return DROP_NO_REWRITE;

	if (ip.frag_off & to_be16(IP_OFFSET))
		return DROP_NONE;
	if (ip.protocol == IPPROTO_TCP)
		at = quote + header + TCP_CHECKSUM;
	else if (ip.protocol == IPPROTO_UDP)
		at = quote + header + UDP_CHECKSUM;
	else
		return DROP_NONE;
	/* Eight bytes of L4 are all that a reporter must quote. */
	if (at + sizeof(old) > end ||
	    bpf_skb_load_bytes(skb, at, &old, sizeof(old)))
		return DROP_NONE;
	if (ip.protocol == IPPROTO_UDP && !old)
		return DROP_NONE;
	new = checksum_after(old, from, to);
	if (bpf_skb_store_bytes(skb, at, &new, sizeof(new), 0) ||
	    bpf_l4_csum_replace(skb, inner->l4 + ICMP_CHECKSUM, old, new, 2))
		return DROP_NO_REWRITE;
	return DROP_NONE;
}

/* Replace one address (field is IP_SOURCE or IP_DESTINATION), stateless: in the
 * packet every checksum but the IP header's, in inner->ip the rest.
 *
 * What the packet quotes was going the other way, so there the same address
 * stands in the other field.
 */
static inline enum drop_reason translate(struct __sk_buff *skb,
					 struct inner *inner, __u32 field,
					 __be32 from, __be32 to)
{
	__u32 at, end = inner->l3 + inner->length; /* behind it is padding */
	enum drop_reason reason;
	long failed = 0;

	if (from == to)
		return DROP_NONE;
	if (inner->first) {
		if (inner->ip.protocol == IPPROTO_TCP) {
			at = inner->l4 + TCP_CHECKSUM;
			if (at + sizeof(__u16) > end)
				return DROP_SHORT_FRAME;
			failed = bpf_l4_csum_replace(skb, at, from, to,
						     BPF_F_PSEUDO_HDR | 4);
		} else if (inner->ip.protocol == IPPROTO_UDP) {
			at = inner->l4 + UDP_CHECKSUM;
			if (at + sizeof(__u16) > end)
				return DROP_SHORT_FRAME;
			/* A zero checksum means none, and stays so. */
			failed = bpf_l4_csum_replace(skb, at, from, to,
						     BPF_F_PSEUDO_HDR |
						     BPF_F_MARK_MANGLED_0 | 4);
		} else if (inner->ip.protocol == IPPROTO_ICMP) {
			reason = translate_quote(skb, inner,
						 field == IP_SOURCE ?
						 IP_DESTINATION : IP_SOURCE,
						 from, to);
			if (reason)
				return reason;
		}
		if (failed)
			return DROP_SHORT_FRAME;
	}
	/* The header's checksum makes up for the address, so the checksum of
	 * the frame as a NIC may have taken it stays true.
	 */
	inner->ip.check = checksum_after(inner->ip.check, from, to);
	if (field == IP_SOURCE)
		inner->ip.saddr = to;
	else
		inner->ip.daddr = to;
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
	if (inner->ip.protocol == IPPROTO_TCP) {
		bpf_skb_load_bytes(skb, inner->l4 + TCP_OFFSET, &offset,
				   sizeof(offset));
		headers += (offset >> 4) * 4;
	} else {
		headers += 8;
	}
	return headers + skb->gso_size;
}

#endif /* INNER_H */
