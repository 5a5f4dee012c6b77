// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* tc ingress of every sandbox's host-side interface: what a sandbox sends.
 *
 * Hostile input. Each frame is answered, handed to another sandbox, sent to
 * another node, or dropped and counted; none ever reaches the host's stack.
 */
#include "lib/address.h"
#include "lib/count.h"
#include "lib/deliver.h"
#include "lib/ecn.h"
#include "lib/guest.h"
#include "lib/inner.h"
#include "lib/jump.h"
#include "lib/kernel.h"
#include "lib/link.h"
#include "lib/maps.h"
#include "lib/mss.h"
#include "lib/outer.h"
#include "lib/path_mtu.h"
#include "lib/translate.h"

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
						struct inner *inner)
{
	struct address guest, own;

	if (from->native)
		return DROP_NONE;
	guest = guest_address(config, from, inner->family);
	own = vpc_address(from, inner->family);
	return translate(skb, inner, SOURCE, &guest, &own);
}

/* Both ends on this node: no tunnel, the same checks as from the wire. */
static inline int send_local(struct __sk_buff *skb,
			     const struct node_config *config, __u32 slot,
			     const struct binding *from,
			     const struct endpoint *to,
			     const struct binding *to_binding,
			     struct inner *inner)
{
	__u32 to_slot = to->slot, ifindex = to->ifindex;
	__u32 kind = to_binding->kind;
	enum drop_reason reason;
	struct slot_counters *row;

	reason = translate_source(skb, config, from, inner);
	if (!reason)
		reason = address_to_guest(skb, config, to_binding, inner);
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
			      const struct nexthop *to, struct inner *inner)
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
	if (is_syn(skb, inner))
		reason = clamp_mss(skb, inner, mtu - more);
	if (!reason)
		reason = translate_source(skb, config, from, inner);
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

/* A packet that leaves its sandbox: as whom, and to where. */
static inline int forward(struct __sk_buff *skb,
			  const struct node_config *config, __u32 slot,
			  const struct binding *from, const struct ethhdr *eth,
			  struct inner *inner)
{
	struct address guest = guest_address(config, from, inner->family), own;
	struct binding *to_binding = 0;
	struct endpoint *to = 0;
	enum drop_reason reason;
	struct nexthop *nexthop;
	struct route *route;

	own = source_of(inner);
	if (!same_address(&own, &guest))
		return drop(skb, DIRECTION_TX, DROP_SPOOFED_ADDRESS);
	if ((eth->h_dest[0] & 1) || !is_unicast(&inner->destination))
		return drop(skb, DIRECTION_TX, DROP_NOT_UNICAST);
	own = vpc_address(from, inner->family);
	if (inner->family == 6 ? !is_set(&own) : !from->address)
		return drop(skb, DIRECTION_TX, DROP_NO_ADDRESS);

	reason = find_endpoint(from->vni, &inner->destination, &to, &to_binding);
	if (!reason)
		return send_local(skb, config, slot, from, to, to_binding,
				  inner);
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
	return send_remote(skb, config, slot, from, nexthop, inner);
}

/* For what the gateway answers. */
static inline int jump_to_link(struct __sk_buff *skb, __u32 slot)
{
	skb->cb[SANDBOX_SLOT] = slot;
	return jump_to(skb, DIRECTION_TX, JUMP_SANDBOX_LINK);
}

int sandbox_tx(struct __sk_buff *skb)
{
	__u32 zero = 0, ifindex = skb->ifindex, slot;
	struct node_config *config;
	struct binding *from;
	struct inner inner;
	enum drop_reason reason;
	struct ethhdr eth;
	__u32 *slot_row;
	__u8 family;

	/* The kernel keeps the tag beside the packet, so no byte read below
	 * shows it; it would leave on the outer frame.
	 */
	if (skb->vlan_present)
		return drop(skb, DIRECTION_TX, DROP_VLAN_TAGGED);
	config = node_config.lookup(&zero);
	if (!config || !is_set(&config->vtep))
		return drop(skb, DIRECTION_TX, DROP_NO_CONFIG);
	slot_row = slot_by_ifindex.lookup(&ifindex);
	if (!slot_row)
		return drop(skb, DIRECTION_TX, DROP_NO_SLOT);
	slot = *slot_row;
	from = bindings.lookup(&slot);
	if (!from)
		return drop(skb, DIRECTION_TX, DROP_NO_SLOT);
	if (read_bytes(skb, 0, &eth, sizeof(eth)))
		return drop(skb, DIRECTION_TX, DROP_SHORT_FRAME);
	if (!same_mac(eth.h_source, config->guest_mac))
		return drop(skb, DIRECTION_TX, DROP_SPOOFED_MAC);
	if (eth.h_proto == to_be16(ETH_P_ARP))
		return jump_to_link(skb, slot);
	family = family_of(eth.h_proto);
	reason = DROP_NOT_IP;
	if (family)
		reason = read_inner(skb, ETH_HLEN, skb->len, family, &inner);
	if (!reason) {
		switch (hearer_of(skb, config, &inner)) {
		case HEARD_BY_GATEWAY:
			return jump_to_link(skb, slot);
		case HEARD_BY_NOBODY:
			return drop(skb, DIRECTION_TX, DROP_GROUP_MEMBERSHIP);
		case HEARD_BY_VPC:
			break;
		}
	}
	if (!*(volatile __u64 *)&from->generation)
		reason = DROP_UNBOUND;
	if (reason)
		return drop(skb, DIRECTION_TX, reason);
	return forward(skb, config, slot, from, &eth, &inner);
}
