/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What a sandbox says to its link and not to its VPC: questions that its gateway
 * answers, attached or not, since a guest that was restored first and attached
 * later must not have given up on them; and group memberships, which nobody is
 * there to hear.
 */
#ifndef LINK_H
#define LINK_H

#include "address.h"
#include "arp.h"
#include "count.h"
#include "dhcp.h"
#include "dhcp6.h"
#include "guest.h"
#include "inner.h"
#include "kernel.h"
#include "nd.h"

#define MLD_QUERY 130			/* RFC 2710: to 132 */
#define MLD_DONE 132
#define MLD_REPORT2 143			/* RFC 3810 */

/* The gateway's MAC, for whoever asks as the guest. */
static inline int answer_arp(struct __sk_buff *skb,
			     const struct node_config *config,
			     const struct binding *from, struct ethhdr *eth)
{
	struct arp arp;

	if (read_bytes(skb, ETH_HLEN, &arp, sizeof(arp)))
		return drop(skb, DIRECTION_TX, DROP_SHORT_FRAME);
	if (!is_question(&arp) || arp.target != config->gateway_address)
		return drop(skb, DIRECTION_TX, DROP_ARP_REFUSED);
	if (!same_mac(arp.sender_mac, config->guest_mac))
		return drop(skb, DIRECTION_TX, DROP_SPOOFED_MAC);
	if (arp.sender != guest_ipv4(config, from))
		return drop(skb, DIRECTION_TX, DROP_SPOOFED_ADDRESS);

	make_answer(&arp, config->gateway_mac);
	__builtin_memcpy(eth->h_dest, config->guest_mac, ETH_ALEN);
	__builtin_memcpy(eth->h_source, config->gateway_mac, ETH_ALEN);
	if (bpf_skb_store_bytes(skb, 0, eth, sizeof(*eth), 0) ||
	    bpf_skb_store_bytes(skb, ETH_HLEN, &arp, sizeof(arp), 0))
		return drop(skb, DIRECTION_TX, DROP_NO_REWRITE);
	count_event(skb, EVENT_ARP_ANSWERED);
	return bpf_redirect(skb->ifindex, 0);
}

/* The same by neighbour discovery, and what a router has to say of itself. */
static inline int answer_nd(struct __sk_buff *skb,
			    const struct node_config *config,
			    const struct binding *from,
			    const struct inner *inner)
{
	struct address group = { .word = { LINK_GROUP, 0, 0, ALL_ROUTERS } };
	struct question question;
	const struct address *source = &question.ip.source;
	const struct address *destination = &question.ip.destination;
	struct advertisement *answer;
	enum event_kind event = EVENT_ND_ANSWERED;
	enum drop_reason reason;
	__u32 bytes = skb->len;

	reason = read_question(skb, inner, &question);
	if (reason)
		return drop(skb, DIRECTION_TX, reason);
	if (is_set(source) && !is_link_local(source) &&
	    !same_address(source, is_native(from) ? &from->address6 :
						    &config->guest_address6))
		return drop(skb, DIRECTION_TX, DROP_SPOOFED_ADDRESS);
	if (question.nd.type == ROUTER_SOLICITATION) {
		if (!same_address(destination, &group) &&
		    !same_address(destination, &config->gateway_address6))
			return drop(skb, DIRECTION_TX, DROP_ND_REFUSED);
	} else if (!same_address(&question.nd.target,
				 &config->gateway_address6)) {
		return drop(skb, DIRECTION_TX, DROP_ND_REFUSED);
	}

	group.word[3] = ALL_NODES;
	answer = begin_advertisement(&config->gateway_address6,
				     is_set(source) ? source : &group);
	if (!answer)
		return drop(skb, DIRECTION_TX, DROP_NO_REWRITE);
	__builtin_memcpy(answer->eth.h_source, config->gateway_mac, ETH_ALEN);
	__builtin_memcpy(answer->eth.h_dest, config->guest_mac, ETH_ALEN);
	if (!is_set(source))
		__builtin_memcpy(answer->eth.h_dest, "\x33\x33\0\0\0\x01",
				 ETH_ALEN);
	answer->eth.h_proto = to_be16(ETH_P_IPV6);
	if (question.nd.type == ROUTER_SOLICITATION) {
		advertise_router(answer, config,
				 !is_native(from) || is_set(&from->address6));
		event = EVENT_ROUTER_ANSWERED;
	} else {
		advertise_neighbour(answer, &config->gateway_address6,
				    config->gateway_mac,
				    ND_ROUTER | ND_SOLICITED | ND_OVERRIDE);
	}
	if (bytes != ETH_HLEN + ND_PACKET &&
	    bpf_skb_change_tail(skb, ETH_HLEN + ND_PACKET, 0))
		return drop(skb, DIRECTION_TX, DROP_NO_ROOM);
	if (bpf_skb_store_bytes(skb, 0, &answer->eth, ETH_HLEN + ND_PACKET, 0))
		return drop_bytes(bytes, DIRECTION_TX, DROP_NO_REWRITE);
	count_event(skb, event);
	return bpf_redirect(skb->ifindex, 0);
}

/* Who is to hear a packet. */
enum hearer {
	HEARD_BY_VPC,
	HEARD_BY_GATEWAY,
	HEARD_BY_DHCP6,		/* the gateway too, in a program of its own */
	HEARD_BY_NOBODY,
};

static inline enum hearer hearer_of(struct __sk_buff *skb,
				    const struct node_config *config,
				    const struct inner *inner)
{
	__u8 type;

	if (inner->family == 4) {
		if (inner->protocol == IPPROTO_IGMP)
			return HEARD_BY_NOBODY;
		return is_dhcp(skb, config, inner) ? HEARD_BY_GATEWAY :
						     HEARD_BY_VPC;
	}
	if (is_dhcp6(skb, inner))
		return HEARD_BY_DHCP6;
	if (inner->protocol != IPPROTO_ICMPV6 || !inner->first ||
	    inner->l4 >= inner->l3 + inner->length ||
	    bpf_skb_load_bytes(skb, inner->l4, &type, sizeof(type)))
		return HEARD_BY_VPC;
	if ((type >= MLD_QUERY && type <= MLD_DONE) || type == MLD_REPORT2)
		return HEARD_BY_NOBODY;
	return is_nd(type) ? HEARD_BY_GATEWAY : HEARD_BY_VPC;
}

#endif /* LINK_H */
