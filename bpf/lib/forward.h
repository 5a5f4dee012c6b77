/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What a sandbox sends to its VPC: to another sandbox of the node, or into the tunnel. */
#ifndef FORWARD_H
#define FORWARD_H

#include "address.h"
#include "count.h"
#include "deliver.h"
#include "ecn.h"
#include "guest.h"
#include "inner.h"
#include "jump.h"
#include "kernel.h"
#include "maps.h"
#include "mss.h"
#include "outer.h"
#include "path_mtu.h"
#include "translate.h"

/* The most specific route: whole addresses first, they are cheapest to find. */
static inline struct route *find_route(__u32 vni, const struct address *address)
{
	struct host_key host = { .vni = vni, .address = *address };
	struct route_key key = {
		.prefix_length = 32 + 128,
		/* ::/0 covers ::ffff:0:0/96 too, and is no way for IPv4 */
		.vni = is_ipv4(address) ? vni : vni | ROUTE_IPV6,
		.address = *address,
	};
	struct route *route = routes_exact.lookup(&host);

	return route ? route : routes_lpm.lookup(&key);
}

/* The addresses are made anew where they are needed: kept in the meantime, they
 * would be so on the stack.
 */
static inline enum drop_reason translate_source(struct __sk_buff *skb,
						const struct node_config *config,
						const struct binding *from,
						struct inner *inner,
						const int quotes)
{
	struct address guest, own;

	if (from->native)
		return DROP_NONE;
	guest = guest_address(config, from, inner->family);
	own = vpc_address(from, inner->family);
	return translate(skb, inner, SOURCE, &guest, &own, quotes);
}

/* Both ends on this node: no tunnel, the same checks as from the wire. */
static inline int send_local(struct __sk_buff *skb,
			     const struct node_config *config, __u32 slot,
			     const struct binding *from, __u32 to_slot,
			     const struct binding *to, struct inner *inner,
			     const int quotes)
{
	__u32 ifindex = to->ifindex, kind = to->kind;
	enum drop_reason reason;
	struct slot_counters *row;

	reason = translate_source(skb, config, from, inner, quotes);
	if (!reason)
		reason = address_to_guest(skb, config, to, inner, quotes);
	if (reason)
		return drop(skb, DIRECTION_TX, reason);
	/* It was sent to the gateway's MAC, which is not the interface's. */
	bpf_skb_change_type(skb, PACKET_HOST);
	row = slot_counters.lookup(&slot);
	if (row)
		add(&row->tx_local, inner->length);
	row = slot_counters.lookup(&to_slot);
	if (row)
		add(&row->rx_local, inner->length);
	return hand_over(ifindex, kind);
}

/* Into the tunnel, unless it does not fit. */
static inline int send_remote(struct __sk_buff *skb,
			      const struct node_config *config, __u32 slot,
			      const struct binding *from,
			      const struct nexthop *to, struct inner *inner,
			      const int quotes)
{
	/* Before anything changes that the hash is made of. */
	struct envelope envelope = { .flow_hash = bpf_get_hash_recalc(skb) };
	__u32 bytes = skb->len, more = overhead(config), mtu;
	__u32 length = segment_length(skb, inner) + more;
	struct slot_counters *row;
	enum drop_reason reason;
	struct path path = {};
	__u64 flags;

	reason = find_path(skb, config, &to->vtep, envelope.flow_hash, length,
			   &path);
	if (reason)
		return drop(skb, DIRECTION_TX, reason);
	mtu = least(least(path.mtu, to->mtu), path_mtu(&to->vtep));
	if (length > mtu) {
		skb->cb[SANDBOX_SLOT] = slot;
		skb->cb[TOO_BIG_MTU] = mtu - more;
		return jump_to(skb, DIRECTION_TX, JUMP_SANDBOX_TOO_BIG);
	}
	if (!quotes && is_syn(skb, inner))
		reason = clamp_mss(skb, inner, mtu - more);
	if (!reason)
		reason = translate_source(skb, config, from, inner, quotes);
	if (reason)
		return drop(skb, DIRECTION_TX, reason);

	/* ENCAP_L2 is the inner Ethernet header alone, 14 bytes: counting the
	 * Geneve header in makes the kernel drop every GSO frame, and no other.
	 */
	flags = BPF_F_ADJ_ROOM_FIXED_GSO | BPF_F_ADJ_ROOM_ENCAP_L4_UDP |
		BPF_F_ADJ_ROOM_ENCAP_L2(ETH_HLEN) | BPF_F_ADJ_ROOM_ENCAP_L2_ETH;
	flags |= is_ipv4(&config->vtep) ? BPF_F_ADJ_ROOM_ENCAP_L3_IPV4 :
					  BPF_F_ADJ_ROOM_ENCAP_L3_IPV6;
	if (bpf_skb_adjust_room(skb, more, BPF_ADJ_ROOM_MAC, flags))
		return drop(skb, DIRECTION_TX, DROP_NO_ROOM);
	envelope.vtep = &to->vtep;
	envelope.source_mac = from->mac;
	envelope.destination_mac = to->mac;
	envelope.vni = from->vni;
	envelope.inner_protocol = inner->family == 6 ? to_be16(ETH_P_IPV6) :
						       to_be16(ETH_P_IP);
	envelope.ecn = ecn_of(inner);
	if (write_front(skb, config, &envelope, inner))
		return drop_bytes(bytes, DIRECTION_TX, DROP_NO_REWRITE);
	clear_bookkeeping(skb);
	row = slot_counters.lookup(&slot);
	if (row)
		add(&row->tx_remote, inner->length);
	return redirect_neigh(path.ifindex, &path.nexthop, sizeof(path.nexthop),
			      0);
}

/* A packet that leaves its sandbox: as whom, and to where. `quotes`: it may be an ICMP
 * error, and quote another.
 */
static inline int forward(struct __sk_buff *skb,
			  const struct node_config *config, __u32 slot,
			  const struct binding *from, const struct ethhdr *eth,
			  struct inner *inner, const int quotes)
{
	struct address guest = guest_address(config, from, inner->family), own;
	enum drop_reason reason;
	struct nexthop *nexthop;
	struct binding *to = 0;
	struct route *route;
	__u32 to_slot = 0;

	own = source_of(inner);
	if (!same_address(&own, &guest))
		return drop(skb, DIRECTION_TX, DROP_SPOOFED_ADDRESS);
	if ((eth->h_dest[0] & 1) || !is_unicast(&inner->destination))
		return drop(skb, DIRECTION_TX, DROP_NOT_UNICAST);
	own = vpc_address(from, inner->family);
	if (inner->family == 6 ? !is_set(&own) : !from->address)
		return drop(skb, DIRECTION_TX, DROP_NO_ADDRESS);

	reason = find_endpoint(from->vni, &inner->destination, &to_slot, &to);
	if (!reason)
		return send_local(skb, config, slot, from, to_slot, to, inner,
				  quotes);
	if (reason == DROP_STALE_ENDPOINT)
		return drop(skb, DIRECTION_TX, reason);
	route = find_route(from->vni, &inner->destination);
	if (!route)
		return drop(skb, DIRECTION_TX, DROP_NO_ROUTE);
	if (route->kind == ROUTE_BLACKHOLE)
		return drop(skb, DIRECTION_TX, DROP_BLACKHOLE);
	if (route->kind != ROUTE_REMOTE)
		return drop(skb, DIRECTION_TX, DROP_NO_ENDPOINT);
	nexthop = nexthops.lookup(&route->nexthop);
	if (!nexthop)
		return drop(skb, DIRECTION_TX, DROP_NO_NEXTHOP);
	return send_remote(skb, config, slot, from, nexthop, inner, quotes);
}

#endif /* FORWARD_H */
