// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* tc ingress of every sandbox's host-side interface: what a sandbox sends.
 *
 * Hostile input. Each frame is answered, handed to another sandbox, sent to
 * another node, or dropped and counted; none ever reaches the host's stack.
 */
#include "lib/arp.h"
#include "lib/count.h"
#include "lib/deliver.h"
#include "lib/geneve.h"
#include "lib/inner.h"
#include "lib/kernel.h"
#include "lib/maps.h"

/* The gateway's MAC, for whoever asks as the guest, attached or not: a guest
 * that was restored first and attached later must not have given up on it.
 */
static inline int answer_arp(struct __sk_buff *skb,
			     const struct node_config *config,
			     struct ethhdr *eth)
{
	struct arp arp;

	if (read_bytes(skb, ETH_HLEN, &arp, sizeof(arp)))
		return drop(skb, DIRECTION_TX, DROP_SHORT_FRAME);
	if (!is_question(&arp) || arp.target != config->gateway_address)
		return drop(skb, DIRECTION_TX, DROP_ARP_REFUSED);
	if (!same_mac(arp.sender_mac, config->guest_mac))
		return drop(skb, DIRECTION_TX, DROP_SPOOFED_MAC);
	if (arp.sender != config->guest_address)
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

/* The most specific route: whole addresses first, they are cheapest to find. */
static inline struct route *find_route(__u32 vni, __be32 address)
{
	struct host_key host = { .vni = vni, .address = from_ipv4(address) };
	struct route_key key = {
		.prefix_length = 160,
		.vni = vni,
		.address = from_ipv4(address),
	};
	struct route *route = routes_exact.lookup(&host);

	return route ? route : routes_lpm.lookup(&key);
}

/* Both ends on this node: no tunnel, the same checks as from the wire. */
static inline int send_local(struct __sk_buff *skb,
			     const struct node_config *config, __u32 slot,
			     const struct endpoint *to,
			     struct inner *inner)
{
	__u32 to_slot = to->slot, ifindex = to->ifindex;
	enum drop_reason reason;
	struct slot_counters *row;

	reason = address_to_guest(skb, config, inner);
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
	return bpf_redirect_peer(ifindex, 0);
}

/* All that changes in a frame that goes to another node. */
struct headers {
	struct outer outer;
	struct iphdr ip;	/* inner, with the address in the VPC */
} __attribute__((packed));

static inline int send_remote(struct __sk_buff *skb,
			      const struct node_config *config, __u32 slot,
			      const struct binding *from, __u32 nexthop_id,
			      const struct inner *inner)
{
	/* Before anything changes in the packet that the hash is made of. */
	__be16 port = source_port(bpf_get_hash_recalc(skb));
	__u32 length = segment_length(skb, inner) + OVERHEAD;
	__u32 vni = from->vni, ifindex = 0, bytes = skb->len;
	struct bpf_redir_neigh path = {};
	struct slot_counters *row;
	struct headers headers;
	enum drop_reason reason;
	struct nexthop *to;

	to = nexthops.lookup(&nexthop_id);
	if (!to)
		return drop(skb, DIRECTION_TX, DROP_NO_NEXTHOP);
	if (to->mtu && length > to->mtu)
		return drop(skb, DIRECTION_TX, DROP_TOO_BIG);
	reason = find_path(skb, config, to->vtep.word[3], port, length, &ifindex, &path);
	if (reason)
		return drop(skb, DIRECTION_TX, reason);

	/* ENCAP_L2 is the inner Ethernet header alone, 14 bytes: counting the
	 * Geneve header in makes the kernel drop every GSO frame, and no other.
	 */
	if (bpf_skb_adjust_room(skb, OVERHEAD, BPF_ADJ_ROOM_MAC,
				BPF_F_ADJ_ROOM_FIXED_GSO |
				BPF_F_ADJ_ROOM_NO_CSUM_RESET |
				BPF_F_ADJ_ROOM_ENCAP_L3_IPV4 |
				BPF_F_ADJ_ROOM_ENCAP_L4_UDP |
				BPF_F_ADJ_ROOM_ENCAP_L2(ETH_HLEN) |
				BPF_F_ADJ_ROOM_ENCAP_L2_ETH))
		return drop(skb, DIRECTION_TX, DROP_NO_ROOM);
	make_outer(skb, &headers.outer, config, to->vtep.word[3], port, vni,
		   to_be16(ETH_P_IP), from->mac, to->mac);
	headers.ip = inner->ip;
	if (bpf_skb_store_bytes(skb, 0, &headers, sizeof(headers), 0))
		return drop_bytes(bytes, DIRECTION_TX, DROP_NO_REWRITE);
	clear_bookkeeping(skb);
	row = slot_counters.lookup(&slot);
	if (row)
		add(&row->tx_remote, inner->length);
	return redirect_neigh(ifindex, &path, sizeof(path), 0);
}

int sandbox_tx(struct __sk_buff *skb)
{
	__u32 zero = 0, ifindex = skb->ifindex, slot;
	struct node_config *config;
	struct endpoint *to = 0;
	struct binding *from, *to_binding = 0;
	struct inner inner = {};
	struct route *route;
	enum drop_reason reason;
	struct ethhdr eth;
	__u32 *slot_row;

	/* The kernel keeps the tag beside the packet, so no byte read below
	 * shows it; it would leave on the outer frame.
	 */
	if (skb->vlan_present)
		return drop(skb, DIRECTION_TX, DROP_VLAN_TAGGED);
	config = node_config.lookup(&zero);
	if (!config || !config->vtep.word[3])
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
		return answer_arp(skb, config, &eth);
	if (!*(volatile __u64 *)&from->generation)
		return drop(skb, DIRECTION_TX, DROP_UNBOUND);
	if (eth.h_proto != to_be16(ETH_P_IP))
		return drop(skb, DIRECTION_TX, DROP_NOT_IP);

	reason = read_inner(skb, ETH_HLEN, &inner);
	if (reason)
		return drop(skb, DIRECTION_TX, reason);
	if (inner.ip.saddr != config->guest_address)
		return drop(skb, DIRECTION_TX, DROP_SPOOFED_ADDRESS);
	if ((eth.h_dest[0] & 1) || !is_unicast(inner.ip.daddr))
		return drop(skb, DIRECTION_TX, DROP_NOT_UNICAST);

	reason = find_endpoint(from->vni, inner.ip.daddr, &to, &to_binding);
	if (reason == DROP_STALE_ENDPOINT)
		return drop(skb, DIRECTION_TX, reason);
	route = to ? 0 : find_route(from->vni, inner.ip.daddr);
	if (!to) {
		if (!route)
			return drop(skb, DIRECTION_TX, DROP_NO_ROUTE);
		if (route->kind == ROUTE_BLACKHOLE)
			return drop(skb, DIRECTION_TX, DROP_BLACKHOLE);
		if (route->kind != ROUTE_REMOTE)
			return drop(skb, DIRECTION_TX, DROP_NO_ENDPOINT);
	}

	reason = translate(skb, &inner, IP_SOURCE, config->guest_address,
			   from->address);
	if (reason)
		return drop(skb, DIRECTION_TX, reason);
	if (to)
		return send_local(skb, config, slot, to, &inner);
	return send_remote(skb, config, slot, from, route->nexthop, &inner);
}
