/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* A peer that thinks of the VPC as one Ethernet asks for a sandbox's MAC through
 * the tunnel. The question is made its answer in place, and goes back.
 */
#ifndef PEER_H
#define PEER_H

#include "address.h"
#include "arp.h"
#include "arrival.h"
#include "count.h"
#include "deliver.h"
#include "inner.h"
#include "kernel.h"
#include "maps.h"
#include "nd.h"
#include "outer.h"

/* The question came with a UDP checksum that was still the device's to make, and
 * the kernel keeps saying so: then it needs the pseudo-header's sum.
 */
static inline long leave_to_device(struct __sk_buff *skb,
				   const struct node_config *config,
				   const struct arrival *arrival)
{
	__u32 at = ETH_HLEN + overhead(config) - sizeof(struct tunnel);
	__be16 sum = fold(pseudo_sum(&config->vtep, &arrival->sender,
				     skb->len - at, IPPROTO_UDP));

	return bpf_skb_store_bytes(skb, at + 6, &sum, sizeof(sum), 0);
}

/* Send back what was rewritten in place behind the headers, to the VTEP that it
 * came from. The options were the sender's: an answer carries none. `bytes`: as
 * the question came.
 */
static inline int answer_sender(struct __sk_buff *skb, __u32 l2,
				const struct node_config *config,
				const struct arrival *arrival,
				const struct envelope *envelope,
				enum event_kind event, __u32 bytes)
{
	__u32 options = arrival->payload - l2 - overhead(config);
	__u32 length = skb->len - l2 - options;
	struct path path = {};
	enum drop_reason reason;

	reason = find_path(skb, config, envelope->vtep, envelope->flow_hash,
			   length, &path);
	if (!reason && length > path.mtu)
		reason = DROP_TOO_BIG;
	if (reason)
		return drop_bytes(bytes, DIRECTION_RX, reason);
	/* The kernel knows where the question's checksum was to go: nothing may
	 * be taken out in front of that place.
	 */
	if ((options && arrival->unsummed) ||
	    (!l2 && bpf_skb_change_head(skb, ETH_HLEN, 0)) ||
	    (options &&
	     bpf_skb_adjust_room(skb, -(__s32)options, BPF_ADJ_ROOM_MAC,
				 BPF_F_ADJ_ROOM_FIXED_GSO)))
		return drop_bytes(bytes, DIRECTION_RX, DROP_NO_ROOM);
	if (write_front(skb, config, envelope, 0) ||
	    (arrival->unsummed && leave_to_device(skb, config, arrival)))
		return drop_bytes(bytes, DIRECTION_RX, DROP_NO_REWRITE);
	clear_bookkeeping(skb);
	count_event(skb, event);
	return redirect_neigh(path.ifindex, &path.nexthop, sizeof(path.nexthop),
			      0);
}

static inline int answer_wire_arp(struct __sk_buff *skb, __u32 l2,
				  const struct node_config *config,
				  const struct arrival *arrival)
{
	struct binding *binding = 0;
	enum drop_reason reason;
	struct address target;
	struct arp arp;
	__u32 slot;

	if (arrival->payload + sizeof(arp) > arrival->end ||
	    read_bytes(skb, arrival->payload, &arp, sizeof(arp)))
		return drop(skb, DIRECTION_RX, DROP_SHORT_FRAME);
	if (!is_question(&arp))
		return drop(skb, DIRECTION_RX, DROP_ARP_REFUSED);
	target = from_ipv4(arp.target);
	reason = find_endpoint(arrival->vni, &target, &slot, &binding);
	if (reason)
		return drop(skb, DIRECTION_RX, reason);
	make_answer(&arp, binding->mac);
	struct envelope envelope = {
		.vtep = &arrival->sender,
		.source_mac = binding->mac,
		.destination_mac = arp.target_mac,
		.vni = arrival->vni,
		.flow_hash = bpf_get_hash_recalc(skb),
		.inner_protocol = to_be16(ETH_P_ARP),
	};
	if (bpf_skb_store_bytes(skb, arrival->payload, &arp, sizeof(arp), 0))
		return drop(skb, DIRECTION_RX, DROP_NO_REWRITE);
	return answer_sender(skb, l2, config, arrival, &envelope,
			     EVENT_WIRE_ARP_ANSWERED, skb->len);
}

/* The same by neighbour discovery; `asker` is the inner source MAC. */
static inline int answer_wire_nd(struct __sk_buff *skb, __u32 l2,
				 const struct node_config *config,
				 const struct arrival *arrival,
				 const struct inner *inner, const __u8 *asker)
{
	__u32 at = inner->l3, bytes = skb->len, slot;
	struct advertisement *answer;
	struct binding *binding = 0;
	struct question question;
	enum drop_reason reason;

	reason = read_question(skb, inner, &question);
	/* A mapped address would be found as the IPv4 address that it is not. */
	if (!reason && (question.nd.type != NEIGHBOUR_SOLICITATION ||
			is_ipv4(&question.nd.target)))
		reason = DROP_ND_REFUSED;
	if (!reason)
		reason = find_endpoint(arrival->vni, &question.nd.target,
				       &slot, &binding);
	if (reason)
		return drop(skb, DIRECTION_RX, reason);
	struct envelope envelope = {
		.vtep = &arrival->sender,
		.source_mac = binding->mac,
		.destination_mac = asker,
		.vni = arrival->vni,
		.flow_hash = bpf_get_hash_recalc(skb),
		.inner_protocol = to_be16(ETH_P_IPV6),
	};
	answer = begin_advertisement(&question.nd.target, &question.ip.source);
	if (!answer)
		return drop(skb, DIRECTION_RX, DROP_NO_REWRITE);
	advertise_neighbour(answer, &question.nd.target, binding->mac,
			    ND_SOLICITED | ND_OVERRIDE);
	if (bytes != at + ND_PACKET &&
	    bpf_skb_change_tail(skb, at + ND_PACKET, 0))
		return drop(skb, DIRECTION_RX, DROP_NO_ROOM);
	if (bpf_skb_store_bytes(skb, at, &answer->ip, ND_PACKET, 0))
		return drop_bytes(bytes, DIRECTION_RX, DROP_NO_REWRITE);
	return answer_sender(skb, l2, config, arrival, &envelope,
			     EVENT_WIRE_ND_ANSWERED, bytes);
}

#endif /* PEER_H */
