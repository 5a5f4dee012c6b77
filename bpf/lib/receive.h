/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What comes from the wire, whatever kind of interface it comes by.
 *
 * Geneve to our VTEP and port from a known VTEP is ours, to deliver or to drop
 * and count. Everything else is somebody else's and passed on untouched, so
 * that other users of the interface, other tunnels too, keep working.
 */
#ifndef RECEIVE_H
#define RECEIVE_H

#include "address.h"
#include "arrival.h"
#include "count.h"
#include "deliver.h"
#include "ecn.h"
#include "geneve.h"
#include "inner.h"
#include "jump.h"
#include "kernel.h"
#include "maps.h"
#include "mss.h"
#include "nd.h"
#include "path_mtu.h"
#include "relay.h"

#define MERGED_PATIENCE 1024	/* frames */
#define MERGED_LARGE 1000	/* bytes: no acknowledgement */

/* Whether this VTEP's frames reach us whole (a veth underlay, some virtual NICs)
 * or through GRO on the uplink. One GSO frame shows it; that it is over shows in
 * as many large frames that are none, and not at all while the node merges: some
 * flows have nothing to merge, and a flow that changes its way may overtake
 * itself. CPUs may race here: a count gets lost.
 */
static inline int comes_merged(struct __sk_buff *skb, struct vtep *from,
			       const struct inner *inner)
{
	__u32 left = from->merged, zero = 0;
	struct node_state *state;

	if (skb->gso_size) {
		if (left != MERGED_PATIENCE)
			from->merged = MERGED_PATIENCE;
		return 1;
	}
	if (left && inner->length >= MERGED_LARGE) {
		state = node_state.lookup(&zero);
		if (state && !*(volatile __u32 *)&state->merging)
			from->merged = left - 1;
	}
	return left != 0;
}

/* A SYN of the peer asks for no more than a sandbox can send back to this VTEP. What
 * the route there is like shows only when it does.
 */
static inline enum drop_reason clamp_arriving(struct __sk_buff *skb,
					      const struct node_config *config,
					      const struct address *sender,
					      const struct vtep *from,
					      const struct inner *inner)
{
	__u32 zero = 0, more = overhead(config), mtu;
	struct node_state *state = node_state.lookup(&zero);

	if (!state || !state->slot_mtu)
		return DROP_NONE;
	mtu = least(state->slot_mtu + more, from->mtu);
	return clamp_mss(skb, inner, least(mtu, path_mtu(sender)) - more);
}

/* Take everything in front of the inner packet off, and leave room for an
 * Ethernet header. The kernel keeps the family of a packet beside it, and a
 * change of family moves by the 20 bytes that the IP headers differ in.
 */
static inline long decapsulate(struct __sk_buff *skb, const __u32 l2,
			       const struct arrival *arrival,
			       const struct inner *inner)
{
	__u64 flags = BPF_F_ADJ_ROOM_FIXED_GSO | BPF_F_ADJ_ROOM_NO_CSUM_RESET;
	__s32 more = sizeof(struct ipv6) - sizeof(struct iphdr);
	__s32 off = inner->l3 - l2;
	long failed = 0;

	if (inner->family == 6 && arrival->family == 4) {
		failed = bpf_skb_change_proto(skb, to_be16(ETH_P_IPV6), 0);
		off += more;
	} else if (inner->family == 4 && arrival->family == 6) {
		off -= more;
	}
	if (!failed)
		failed = bpf_skb_adjust_room(skb, -off, BPF_ADJ_ROOM_MAC, flags);
	if (!failed && inner->family == 4 && arrival->family == 6)
		failed = bpf_skb_change_proto(skb, to_be16(ETH_P_IP), 0);
	if (!failed && !l2)
		failed = bpf_skb_change_head(skb, ETH_HLEN, 0);
	return failed;
}

/* For what a peer that thinks of the VPC as one Ethernet asks. */
static inline int jump_to_peer(struct __sk_buff *skb, const __u32 l2,
			       const struct arrival *arrival)
{
	skb->cb[PEER_L2] = l2;
	skb->cb[PEER_PAYLOAD] = arrival->payload;
	skb->cb[PEER_END] = arrival->end;
	skb->cb[PEER_VNI] = arrival->vni;
	skb->cb[PEER_UNSUMMED] = arrival->unsummed;
	return jump_to(skb, DIRECTION_RX, JUMP_UPLINK_PEER);
}

/* `l2`: bytes of the interface's link-layer header, 14 or 0. */
static inline int receive(struct __sk_buff *skb, const __u32 l2)
{
	struct arrival arrival = {};
	struct binding *binding = 0;
	struct node_config *config;
	struct slot_counters *row;
	enum drop_reason reason;
	struct inner inner;
	struct vtep *from;
	struct ethhdr eth;
	struct udp udp;
	__u32 zero = 0, slot, ifindex, kind, bytes, end, relay;
	__u64 sum;
	__be16 protocol;
	__u8 family;

	/* A tag is kept beside the packet: this one belongs to a VLAN
	 * interface, not to this one.
	 */
	if (skb->vlan_present || skb->pkt_type != PACKET_HOST)
		return PASS_ON;
	config = node_config.lookup(&zero);
	if (!config || !is_set(&config->vtep))
		return PASS_ON;
	if (!read_outer(skb, l2, config, &arrival, &udp)) {
		/* It is the host's whatever becomes of the jump. */
		if (find_icmp(skb, l2, config, &end, &sum)) {
			skb->cb[PEER_L2] = l2;
			jumps.call(skb, JUMP_UPLINK_PATH_MTU);
		}
		return PASS_ON;
	}
	from = vteps.lookup(&arrival.sender);
	if (!from) {
		count_event(skb, EVENT_UNKNOWN_VTEP);
		return PASS_ON;
	}

	/* From here on it is ours. */
	reason = check_outer(skb, config, &arrival, &udp);
	if (reason)
		return drop(skb, DIRECTION_RX, reason);
	protocol = arrival.protocol;
	if (protocol == to_be16(GENEVE_ETHERNET)) {
		if (arrival.payload + sizeof(eth) > arrival.end ||
		    read_bytes(skb, arrival.payload, &eth, sizeof(eth)))
			return drop(skb, DIRECTION_RX, DROP_SHORT_FRAME);
		arrival.payload += sizeof(eth);
		protocol = eth.h_proto;
		if (protocol == to_be16(ETH_P_ARP))
			return jump_to_peer(skb, l2, &arrival);
		reason = DROP_NOT_IP;
	} else {
		reason = DROP_GENEVE_PROTOCOL;
	}
	family = family_of(protocol);
	if (family)
		reason = read_inner(skb, arrival.payload, arrival.end, family,
				    &inner);
	if (reason)
		return drop(skb, DIRECTION_RX, reason);
	if (says_nd(skb, &inner)) {
		if (arrival.protocol != to_be16(GENEVE_ETHERNET))
			return drop(skb, DIRECTION_RX, DROP_ND_REFUSED);
		return jump_to_peer(skb, l2, &arrival);
	}
	/* GRO that merges by outer UDP alone glues inner packets together. */
	if (skb->gso_size && inner.l3 + inner.length != skb->len)
		return drop(skb, DIRECTION_RX, DROP_INNER_LENGTH);
	/* After decapsulation it is still marked as a tunnel's, which no
	 * released kernel lets us clear; cutting it up would then fail unseen.
	 */
	if (skb->gso_size && inner.protocol == IPPROTO_UDP)
		return drop(skb, DIRECTION_RX, DROP_MERGED_UDP);
	reason = find_endpoint(arrival.vni, &inner.destination, &slot,
			       &binding);
	if (reason)
		return drop(skb, DIRECTION_RX, reason);
	row = slot_counters.lookup(&slot);
	if (!row)
		return drop(skb, DIRECTION_RX, DROP_NO_ENDPOINT);
	fetch(&row->rx_remote);
	reason = merge_ecn(&inner, arrival.ecn);
	if (!reason && is_syn(skb, &inner))
		reason = clamp_arriving(skb, config, &arrival.sender, from,
					&inner);
	if (reason)
		return drop(skb, DIRECTION_RX, reason);
	ifindex = binding->ifindex;
	kind = binding->kind;
	bytes = skb->len;

	if (decapsulate(skb, l2, &arrival, &inner))
		return drop_bytes(bytes, DIRECTION_RX, DROP_NO_ROOM);
	/* What the NIC verified was the outer checksum, not the inner one. */
	bpf_csum_level(skb, BPF_CSUM_LEVEL_DEC);
	inner.l4 -= inner.l3 - ETH_HLEN;
	inner.l3 = ETH_HLEN;
	reason = address_to_guest(skb, config, binding, &inner, 1);
	relay = relay_for(kind, inner.protocol);
	if (!reason && relay)
		reason = label_frame(skb, slot, binding);
	if (reason)
		return drop_bytes(bytes, DIRECTION_RX, reason);
	add(&row->rx_remote, inner.length);
	if (relay)
		return bpf_redirect(relay, 0);

	/* Through the veth the sandbox's own GRO merges TCP segments; past it
	 * goes what that does not help, without the detour: other protocols, and
	 * TCP from a VTEP whose frames come merged. By protocol and VTEP, so that
	 * no flow takes both ways at once and overtakes itself. A spliced tap takes
	 * no frame that is marked as a tunnel's: cut up and merged again on the veth
	 * it is one like any other, while the tap itself would only cut it up.
	 */
	if (inner.protocol == IPPROTO_TCP &&
	    (kind == KIND_TAP || !comes_merged(skb, from, &inner)))
		return bpf_redirect(ifindex, 0);
	return hand_over(ifindex, kind);
}

#endif /* RECEIVE_H */
