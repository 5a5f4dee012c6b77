/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Neighbour discovery (RFC 4861): which solicitations get an answer, and what it
 * is.
 *
 * A solicitation from :: is how hosts look for duplicates, and so is a question
 * for the asker's own address: answering one makes a guest give up its address.
 */
#ifndef ND_H
#define ND_H

#include "address.h"
#include "checksum.h"
#include "inner.h"
#include "kernel.h"
#include "maps.h"

#define ROUTER_SOLICITATION 133
#define ROUTER_ADVERTISEMENT 134
#define NEIGHBOUR_SOLICITATION 135
#define NEIGHBOUR_ADVERTISEMENT 136
#define REDIRECT 137

#define ND_SOURCE_MAC 1			/* options */
#define ND_TARGET_MAC 2
#define ND_MTU 5
#define ND_OPTIONS_MAX 32		/* in a message that we answer, */
#define ND_MAX 1024			/* and bytes of it */

#define ND_HOP_LIMIT 255		/* no router let it through */
#define ND_ROUTER to_be32(0x80000000)	/* flags of a neighbour advertisement */
#define ND_SOLICITED to_be32(0x40000000)
#define ND_OVERRIDE to_be32(0x20000000)

#define LINK_GROUP to_be32(0xff020000)	/* the first word of ff02::/16 */
#define ALL_NODES to_be32(1)		/* the last of ff02::1 */
#define ALL_ROUTERS to_be32(2)

#define ROUTER_LIFETIME 1800		/* seconds: section 6.2.1 */
#define ROUTER_HOP_LIMIT 64		/* for what the guest sends */
#define ROUTER_MANAGED 0x80		/* flags: DHCPv6 has its address, */
#define ROUTER_OTHER 0x40		/* or other things alone */

struct nd {
	__u8 type;
	__u8 code;
	__be16 checksum;
	__be32 flags;		/* of an advertisement; reserved in a question */
	struct address target;
};

#define ROUTER_SOLICITATION_SIZE 8	/* that has no target */

struct nd_mac {
	__u8 kind;
	__u8 words;		/* of 8 bytes */
	__u8 mac[6];
};

struct router {
	__u8 type;
	__u8 code;
	__be16 checksum;
	__u8 hop_limit;
	__u8 flags;
	__be16 lifetime;
	__be32 reachable;	/* 0: not said */
	__be32 retransmit;
	struct nd_mac mac;
	__u8 mtu_kind;
	__u8 mtu_words;
	__be16 mtu_pad;
	__be32 mtu;
};

struct neighbour {
	struct nd nd;
	struct nd_mac mac;
};

/* Both answers are of one length. */
struct advertisement {
	__u8 pad[2];		/* for the alignment of what follows Ethernet */
	struct ethhdr eth;
	struct ipv6 ip;
	union {
		struct neighbour neighbour;
		struct router router;
	};
};

#define ND_BODY sizeof(struct neighbour)
#define ND_PACKET (sizeof(struct ipv6) + ND_BODY)

static inline int is_nd(__u8 type)
{
	return type >= ROUTER_SOLICITATION && type <= REDIRECT;
}

static inline int says_nd(struct __sk_buff *skb, const struct inner *inner)
{
	__u8 type;

	return inner->family == 6 && inner->protocol == IPPROTO_ICMPV6 &&
	       inner->first && inner->l4 < inner->l3 + inner->length &&
	       !bpf_skb_load_bytes(skb, inner->l4, &type, sizeof(type)) &&
	       is_nd(type);
}

/* Whether a solicitation for `target` may go there: to itself, or to its group
 * (RFC 4291 section 2.7.1).
 */
static inline int reaches(const struct address *destination,
			  const struct address *target)
{
	if (same_address(destination, target))
		return 1;
	return destination->word[0] == LINK_GROUP && !destination->word[1] &&
	       destination->word[2] == to_be32(1) &&
	       destination->word[3] == (target->word[3] | to_be32(0xff000000));
}

/* A solicitation as it came; of a router's, all but the target. */
struct question {
	struct ipv6 ip;
	struct nd nd;
};

/* Read a message of which is_nd() holds, or refuse it: it is no solicitation, or
 * not a valid one by sections 6.1.1 and 7.1.1, or one that nobody may answer.
 *
 * The headers are read anew, by helper, and the sum comes first: what is tried
 * before a loop, and on what the verifier has seen made, it takes for so many
 * more ways into it.
 */
static inline enum drop_reason read_question(struct __sk_buff *skb,
					     const struct inner *inner,
					     struct question *question)
{
	const struct ipv6 *ip = &question->ip;
	__u32 end, length, none = skb->len;
	__u64 at = inner->l4, source_mac = none;
	__s64 sum;
	struct {
		__u8 kind;
		__u8 words;
	} option;
	int i;

	/* Straight behind the IPv6 header: nobody needs more for this. */
	if (inner->l4 != inner->l3 + sizeof(*ip))
		return DROP_ND_REFUSED;
	if (inner->length < sizeof(*ip) + ROUTER_SOLICITATION_SIZE ||
	    bpf_skb_load_bytes(skb, inner->l3, question,
			       sizeof(*ip) + ROUTER_SOLICITATION_SIZE))
		return DROP_SHORT_FRAME;
	length = from_be16(ip->payload);
	end = at + length;
	/* Whole options alone make it longer than its fixed part. */
	if (length % 8 || length > ND_MAX || question->nd.code ||
	    ip->hop_limit != ND_HOP_LIMIT)
		return DROP_ND_REFUSED;
	/* pseudo_sum(), by a helper that needs none of our stack, which is full. */
	sum = bpf_csum_diff(0, 0, (__be32 *)&ip->source, 32,
			    to_be32(length) + to_be32(IPPROTO_ICMPV6));
	if (sum_bytes(skb, at, length, (__u32)sum, ND_MAX) != 0xffff)
		return DROP_ND_REFUSED;
	if (question->nd.type == NEIGHBOUR_SOLICITATION) {
		at += ROUTER_SOLICITATION_SIZE;
		if (length < sizeof(question->nd) ||
		    bpf_skb_load_bytes(skb, at, &question->nd.target,
				       sizeof(question->nd.target)))
			return DROP_SHORT_FRAME;
		at += sizeof(question->nd.target);
	} else if (question->nd.type == ROUTER_SOLICITATION) {
		at += ROUTER_SOLICITATION_SIZE;
	} else {
		return DROP_ND_REFUSED;
	}
#pragma clang loop unroll(disable)
	for (i = 0; i < ND_OPTIONS_MAX && at < end; i++) {
		if (bpf_skb_load_bytes(skb, at, &option, sizeof(option)))
			return DROP_SHORT_FRAME;
		if (!option.words)
			return DROP_ND_REFUSED;
		if (option.kind == ND_SOURCE_MAC)
			source_mac = at;
		at += option.words * 8;
	}
	if (at != end)
		return DROP_ND_REFUSED;
	if (question->nd.type == ROUTER_SOLICITATION)
		/* Nobody has no MAC. */
		return is_set(&ip->source) || source_mac == none ?
			       DROP_NONE :
			       DROP_ND_REFUSED;
	return is_set(&ip->source) &&
			       !same_address(&ip->source,
					     &question->nd.target) &&
			       reaches(&ip->destination, &question->nd.target) ?
		       DROP_NONE :
		       DROP_ND_REFUSED;
}

/* An answer's place, or 0. What sums were taken in is free again. */
static inline struct advertisement *
begin_advertisement(const struct address *source,
		    const struct address *destination)
{
	struct advertisement *answer;
	__u32 zero = 0;

	answer = (void *)scratch_row.lookup(&zero);
	if (!answer)
		return 0;
	__builtin_memset(answer, 0, sizeof(*answer));
	answer->ip.start = to_be32(6U << 28);
	answer->ip.payload = to_be16(ND_BODY);
	answer->ip.next = IPPROTO_ICMPV6;
	answer->ip.hop_limit = ND_HOP_LIMIT;
	answer->ip.source = *source;
	answer->ip.destination = *destination;
	return answer;
}

static inline void end_advertisement(struct advertisement *answer)
{
	__u64 sum = pseudo_sum(&answer->ip.source, &answer->ip.destination,
			       ND_BODY, IPPROTO_ICMPV6);

	answer->neighbour.nd.checksum =
		(__be16)~fold(bpf_csum_diff(0, 0, (__be32 *)&answer->neighbour,
					    ND_BODY, fold(sum)));
}

/* `target` has this MAC. */
static inline void advertise_neighbour(struct advertisement *answer,
				       const struct address *target,
				       const __u8 *mac, __be32 flags)
{
	answer->neighbour.nd.type = NEIGHBOUR_ADVERTISEMENT;
	answer->neighbour.nd.flags = flags;
	answer->neighbour.nd.target = *target;
	answer->neighbour.mac.kind = ND_TARGET_MAC;
	answer->neighbour.mac.words = 1;
	__builtin_memcpy(answer->neighbour.mac.mac, mac, ETH_ALEN);
	end_advertisement(answer);
}

/* The gateway is a router, and so much fits through it. No prefix: the guest's
 * address is given, or asked for by DHCPv6 (`managed`). No delay and no limit of
 * section 6.2.6: this link has one host.
 */
static inline void advertise_router(struct advertisement *answer,
				    const struct node_config *config,
				    int managed)
{
	struct node_state *state;
	__u32 zero = 0;

	answer->router.type = ROUTER_ADVERTISEMENT;
	answer->router.hop_limit = ROUTER_HOP_LIMIT;
	answer->router.flags = managed ? ROUTER_MANAGED : ROUTER_OTHER;
	answer->router.lifetime = to_be16(ROUTER_LIFETIME);
	answer->router.mac.kind = ND_SOURCE_MAC;
	answer->router.mac.words = 1;
	__builtin_memcpy(answer->router.mac.mac, config->gateway_mac, ETH_ALEN);
	answer->router.mtu_kind = ND_MTU;
	answer->router.mtu_words = 1;
	state = node_state.lookup(&zero);
	if (state)
		answer->router.mtu = to_be32(state->slot_mtu);
	end_advertisement(answer);
}

#endif /* ND_H */
