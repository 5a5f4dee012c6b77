/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What a sandbox is told when its packet is too big for the way: ICMPv4
 * "fragmentation needed" (RFC 792, RFC 1191), ICMPv6 "packet too big" (RFC 4443,
 * RFC 8201). The packet itself becomes the answer.
 */
#ifndef TOO_BIG_H
#define TOO_BIG_H

#include "checksum.h"
#include "count.h"
#include "icmp.h"
#include "inner.h"
#include "maps.h"
#include "translate.h"

/* A slot gets ten answers at once, then one every 10 ms: a guest needs one for
 * each peer, and asking for more must not cost the others their CPU.
 */
#define TOO_BIG_INTERVAL 10000000ULL	/* ns */
#define TOO_BIG_BURST 10

#define INTERNETWORK_CONTROL 0xc0	/* RFC 1812 section 4.3.2.5 */
#define ERROR_TTL 64

struct error4 {
	struct ethhdr eth;
	struct iphdr ip;
	struct icmp icmp;
} __attribute__((packed));

struct error6 {
	struct ethhdr eth;
	struct ipv6 ip;
	struct icmp icmp;
} __attribute__((packed));

/* How much is quoted, as much as RFC 1812 section 4.3.2.3 and RFC 4443 section 3.2
 * let an error have in all.
 */
#define QUOTE_MAX4 (576 - (sizeof(struct error4) - ETH_HLEN))
#define QUOTE_MAX6 (IPV6_MTU_MIN - (sizeof(struct error6) - ETH_HLEN))

/* RFC 1122 section 3.2.2, RFC 4443 section 2.4 (e): not in answer to an error, and not
 * to a later fragment. IPv4 without DF is answered as well: nobody here would
 * fragment it, and a sender that is told does so itself.
 */
static inline int may_be_told(struct __sk_buff *skb, const struct inner *inner,
			      __u32 mtu)
{
	__u8 type;

	if (!inner->first)
		return 0;
	/* Only its padding is too long, which no MTU would change. */
	if (!skb->gso_size && inner->length <= mtu)
		return 0;
	/* RFC 8201 section 4: a host heeds nothing less. */
	if (inner->family == 6 && mtu < IPV6_MTU_MIN)
		return 0;
	if (inner->protocol !=
	    (inner->family == 6 ? IPPROTO_ICMPV6 : IPPROTO_ICMP))
		return 1;
	return inner->l4 < inner->l3 + inner->length &&
	       !bpf_skb_load_bytes(skb, inner->l4, &type, sizeof(type)) &&
	       !is_icmp_error(inner->family, type);
}

/* The generic cell rate algorithm: a row says when the next answer would be due
 * if all were evenly apart. CPUs that race for one slot send one too many.
 */
static inline int within_rate(__u32 slot)
{
	volatile __u64 *row = too_big_limits.lookup(&slot);
	__u64 now = bpf_ktime_get_ns(), due;

	if (!row)
		return 0;
	due = *row;
	if (due < now)
		due = now;
	if (due - now > (TOO_BIG_BURST - 1) * TOO_BIG_INTERVAL)
		return 0;
	*row = due + TOO_BIG_INTERVAL;
	return 1;
}

/* What added to itself gives this sum. */
static inline __u16 halved(__u16 sum)
{
	return (sum & 1 ? sum + 0xffffU : sum) >> 1;
}

/* Cut the frame down to what is quoted, and take its sum; negative: it cannot be.
 *
 * A TCP or UDP checksum that the kernel still owes (CHECKSUM_PARTIAL) has only
 * the pseudo-header's sum in its field. Towards a tap without offload the kernel
 * writes what is missing, over what is left of the packet, and the ICMP checksum
 * must be right then; towards others nobody ever does, and it must be right as
 * well. So the field gets the one value with which both are the same: let S be
 * the sum of the rest from the L4 header on, and f the field. Left alone the
 * sum is S + f, completed it is S + ~(S + f) = -f, and they agree for f = -S / 2,
 * which always exists as the sums are modulo 65535.
 */
static inline long cut_to_quote(struct __sk_buff *skb,
				const struct inner *inner, __u32 size)
{
	__u32 headers = inner->l4 - inner->l3;
	__u32 at = inner->l4 + (inner->protocol == IPPROTO_TCP ? TCP_CHECKSUM :
								 UDP_CHECKSUM);
	struct address source = source_of(inner);
	long sum, rest;
	__u16 field;

	/* No GSO frame any more after this, and all in one piece. */
	if (bpf_skb_change_tail(skb, inner->l3 + size, 0))
		return -1;
	if ((inner->protocol != IPPROTO_TCP && inner->protocol != IPPROTO_UDP) ||
	    bpf_skb_load_bytes(skb, at, &field, sizeof(field)) ||
	    field != fold(pseudo_sum(&source, &inner->destination,
				     inner->length - headers,
				     inner->protocol)))
		return sum_bytes(skb, inner->l3, size, 0, QUOTE_MAX6);

	sum = sum_bytes(skb, inner->l3, headers, 0, QUOTE_MAX6);
	rest = sum_bytes(skb, inner->l4, size - headers, (__u16)~field,
			 QUOTE_MAX6);
	if (sum < 0 || rest < 0)
		return -1;
	field = halved((__u16)~rest);
	if (bpf_skb_store_bytes(skb, at, &field, sizeof(field), 0))
		return -1;
	return fold(sum + rest + field);
}

/* Both write the answer's headers into the space for them: not on the stack, which
 * has no room left.
 */
static inline void make_error4(struct error4 *error,
			       const struct node_config *config,
			       const struct inner *inner, __u32 size, __u64 sum,
			       __u32 mtu)
{
	__builtin_memset(error, 0, sizeof(*error));
	error->eth.h_proto = to_be16(ETH_P_IP);
	error->ip.version = 4;
	error->ip.ihl = sizeof(error->ip) / 4;
	error->ip.tos = INTERNETWORK_CONTROL;
	error->ip.tot_len = to_be16((__u16)(sizeof(*error) - ETH_HLEN + size));
	error->ip.frag_off = to_be16(IP_DF);
	error->ip.ttl = ERROR_TTL;
	error->ip.protocol = IPPROTO_ICMP;
	error->ip.saddr = config->gateway_address;
	error->ip.daddr = inner->ip.v4.saddr;
	error->ip.check = (__be16)~header_sum(&error->ip);
	error->icmp.type = ICMP_UNREACHABLE;
	error->icmp.code = ICMP_FRAGMENTATION_NEEDED;
	error->icmp.value = to_be32(mtu & 0xffff);
	sum += to_be16(ICMP_UNREACHABLE << 8 | ICMP_FRAGMENTATION_NEEDED);
	error->icmp.checksum = (__be16)~fold(sum + error->icmp.value);
}

static inline void make_error6(struct error6 *error,
			       const struct node_config *config,
			       const struct inner *inner, __u32 size, __u64 sum,
			       __u32 mtu)
{
	__u32 length = sizeof(struct icmp) + size;

	__builtin_memset(error, 0, sizeof(*error));
	error->eth.h_proto = to_be16(ETH_P_IPV6);
	error->ip.start = to_be32(6U << 28);
	error->ip.payload = to_be16((__u16)length);
	error->ip.next = IPPROTO_ICMPV6;
	error->ip.hop_limit = ERROR_TTL;
	error->ip.source = config->gateway_address6;
	error->ip.destination = inner->ip.v6.source;
	error->icmp.type = ICMP6_TOO_BIG;
	error->icmp.value = to_be32(mtu);
	sum += to_be16(ICMP6_TOO_BIG << 8) + (__u64)error->icmp.value;
	sum += pseudo_sum(&error->ip.source, &error->ip.destination, length,
			  IPPROTO_ICMPV6);
	error->icmp.checksum = (__be16)~fold(sum);
}

/* Refuse a packet, which must be as the sandbox sent it, and tell its sender
 * that those of `mtu` bytes pass. Counted as dropped, told or not.
 */
static inline int refuse_too_big(struct __sk_buff *skb,
				 const struct node_config *config, __u32 slot,
				 const struct inner *inner, __u32 mtu)
{
	int refused = drop(skb, DIRECTION_TX, DROP_TOO_BIG);
	__u32 zero = 0, size, most, headers;
	struct scratch *scratch;
	struct ethhdr *eth;
	long sum;

	if (!may_be_told(skb, inner, mtu) || !within_rate(slot))
		return refused;
	if (inner->family == 6) {
		most = QUOTE_MAX6;
		headers = sizeof(struct error6);
	} else {
		most = QUOTE_MAX4;
		headers = sizeof(struct error4);
	}
	size = inner->length < most ? inner->length : most;
	sum = cut_to_quote(skb, inner, size);
	scratch = scratch_row.lookup(&zero);
	if (sum < 0 || !scratch ||
	    bpf_skb_adjust_room(skb, headers - ETH_HLEN, BPF_ADJ_ROOM_MAC, 0))
		return refused;
	if (inner->family == 6)
		make_error6((struct error6 *)scratch->bytes, config, inner,
			    size, sum, mtu);
	else
		make_error4((struct error4 *)scratch->bytes, config, inner,
			    size, sum, mtu);
	eth = (struct ethhdr *)scratch->bytes;
	__builtin_memcpy(eth->h_dest, config->guest_mac, ETH_ALEN);
	__builtin_memcpy(eth->h_source, config->gateway_mac, ETH_ALEN);
	if (bpf_skb_store_bytes(skb, 0, scratch->bytes, headers, 0))
		return refused;
	clear_bookkeeping(skb);
	count_event(skb, EVENT_TOO_BIG_SENT);
	return bpf_redirect(skb->ifindex, 0);
}

#endif /* TOO_BIG_H */
