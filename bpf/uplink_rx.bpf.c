// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Ingress of every uplink: what comes from the wire.
 *
 * Geneve to our VTEP and port from a known VTEP is ours, to deliver or to drop
 * and count. Everything else is somebody else's and passed on untouched, so
 * that other users of the interface, other tunnels too, keep working.
 */
#include "lib/arp.h"
#include "lib/count.h"
#include "lib/deliver.h"
#include "lib/geneve.h"
#include "lib/inner.h"
#include "lib/kernel.h"
#include "lib/maps.h"

#define UDP_AT (ETH_HLEN + sizeof(struct iphdr))
#define GENEVE_AT (UDP_AT + sizeof(struct udp))
#define OPTIONS_AT (GENEVE_AT + sizeof(struct geneve))

#define MERGED_PATIENCE 1024	/* frames */
#define MERGED_LARGE 1000	/* bytes: no acknowledgement */

/* A peer that thinks of the VPC as one Ethernet asks through the tunnel. The
 * question becomes its answer in place, and goes back to the VTEP it came from.
 */
static inline int answer_wire_arp(struct __sk_buff *skb,
				  const struct node_config *config, __u32 vni,
				  __be32 vtep, __u32 options)
{
	struct bpf_redir_neigh path = {};
	struct endpoint *endpoint = 0;
	struct binding *binding = 0;
	__u32 ifindex = 0, bytes = skb->len;
	enum drop_reason reason;
	struct outer outer;
	struct arp arp;
	__be16 port;

	if (read_bytes(skb, OPTIONS_AT + options + ETH_HLEN, &arp, sizeof(arp)))
		return drop(skb, DIRECTION_RX, DROP_SHORT_FRAME);
	if (!is_question(&arp))
		return drop(skb, DIRECTION_RX, DROP_ARP_REFUSED);
	reason = find_endpoint(vni, arp.target, &endpoint, &binding);
	if (reason)
		return drop(skb, DIRECTION_RX, reason);

	port = source_port(bpf_get_hash_recalc(skb));
	reason = find_path(skb, config, vtep, port, bytes - ETH_HLEN - options,
			   &ifindex, &path);
	if (reason)
		return drop(skb, DIRECTION_RX, reason);
	/* The options were the sender's: an answer carries none. */
	if (options &&
	    bpf_skb_adjust_room(skb, -(__s32)options, BPF_ADJ_ROOM_MAC,
				BPF_F_ADJ_ROOM_FIXED_GSO))
		return drop(skb, DIRECTION_RX, DROP_NO_ROOM);
	make_answer(&arp, binding->mac);
	make_outer(skb, &outer, config, vtep, port, vni, to_be16(ETH_P_ARP),
		   binding->mac, arp.target_mac);
	if (bpf_skb_store_bytes(skb, 0, &outer, sizeof(outer), 0) ||
	    bpf_skb_store_bytes(skb, sizeof(outer), &arp, sizeof(arp), 0))
		return drop_bytes(bytes, DIRECTION_RX, DROP_NO_REWRITE);
	clear_bookkeeping(skb);
	count_event(skb, EVENT_WIRE_ARP_ANSWERED);
	return redirect_neigh(ifindex, &path, sizeof(path), 0);
}

/* Whether this VTEP's frames reach us whole (a veth underlay, some virtual NICs)
 * or through GRO on the uplink. One GSO frame shows it; that it is over shows in
 * as many large frames that are none. CPUs may race here: a count gets lost.
 */
static inline int comes_merged(struct __sk_buff *skb, struct vtep *from,
			       const struct inner *inner)
{
	__u32 left = from->merged;

	if (skb->gso_size) {
		if (left != MERGED_PATIENCE)
			from->merged = MERGED_PATIENCE;
		return 1;
	}
	if (left && inner->length >= MERGED_LARGE)
		from->merged = left - 1;
	return left != 0;
}

int uplink_rx(struct __sk_buff *skb)
{
	struct endpoint *endpoint = 0;
	struct binding *binding = 0;
	struct node_config *config;
	struct slot_counters *row;
	struct inner inner = {};
	enum drop_reason reason;
	struct address sender;
	struct vtep *from;
	struct geneve geneve;
	struct ethhdr eth;
	struct iphdr ip;
	struct udp udp;
	__u32 zero = 0, vni, options, slot, ifindex, bytes;

	/* A tag is kept beside the packet: this one belongs to a VLAN
	 * interface, not to this one.
	 */
	if (skb->vlan_present || skb->pkt_type != PACKET_HOST ||
	    skb->protocol != to_be16(ETH_P_IP))
		return PASS_ON;
	config = node_config.lookup(&zero);
	if (!config || !config->vtep.word[3])
		return PASS_ON;
	if (read_bytes(skb, ETH_HLEN, &ip, sizeof(ip)))
		return PASS_ON;
	if (ip.daddr != config->vtep.word[3] || ip.protocol != IPPROTO_UDP ||
	    ip.version != 4 || (ip.frag_off & to_be16(IP_OFFSET)))
		return PASS_ON;
	if (read_bytes(skb, ETH_HLEN + ip.ihl * 4, &udp, sizeof(udp)))
		return PASS_ON;
	if (udp.destination != config->udp_port)
		return PASS_ON;
	sender = from_ipv4(ip.saddr);
	from = vteps.lookup(&sender);
	if (!from) {
		count_event(skb, EVENT_UNKNOWN_VTEP);
		return PASS_ON;
	}

	/* From here on it is ours. */
	if (ip.frag_off & to_be16(IP_MF))
		return drop(skb, DIRECTION_RX, DROP_OUTER_FRAGMENT);
	if (ip.ihl != 5)
		return drop(skb, DIRECTION_RX, DROP_OUTER_OPTIONS);
	if (read_bytes(skb, GENEVE_AT, &geneve, sizeof(geneve)))
		return drop(skb, DIRECTION_RX, DROP_SHORT_FRAME);
	if (geneve.version_options & GENEVE_VERSION_MASK)
		return drop(skb, DIRECTION_RX, DROP_GENEVE_VERSION);
	if (geneve.flags & GENEVE_CONTROL)
		return drop(skb, DIRECTION_RX, DROP_GENEVE_CONTROL);
	/* RFC 8926 section 3.5: what is not critical may be skipped unread. */
	if (geneve.flags & GENEVE_CRITICAL)
		return drop(skb, DIRECTION_RX, DROP_GENEVE_CRITICAL);
	if (geneve.protocol != to_be16(GENEVE_ETHERNET))
		return drop(skb, DIRECTION_RX, DROP_GENEVE_PROTOCOL);
	vni = from_be32(geneve.vni) >> 8;
	options = (geneve.version_options & GENEVE_OPTIONS_MASK) * 4;

	if (read_bytes(skb, OPTIONS_AT + options, &eth, sizeof(eth)))
		return drop(skb, DIRECTION_RX, DROP_SHORT_FRAME);
	if (eth.h_proto == to_be16(ETH_P_ARP))
		return answer_wire_arp(skb, config, vni, ip.saddr, options);
	if (eth.h_proto != to_be16(ETH_P_IP))
		return drop(skb, DIRECTION_RX, DROP_NOT_IP);
	reason = read_inner(skb, OPTIONS_AT + options + ETH_HLEN, &inner);
	if (reason)
		return drop(skb, DIRECTION_RX, reason);
	/* GRO that merges by outer UDP alone glues inner packets together. */
	if (skb->gso_size && inner.l3 + inner.length != skb->len)
		return drop(skb, DIRECTION_RX, DROP_INNER_LENGTH);
	/* After decapsulation it is still marked as a tunnel's, which no
	 * released kernel lets us clear; cutting it up would then fail unseen.
	 */
	if (skb->gso_size && inner.ip.protocol == IPPROTO_UDP)
		return drop(skb, DIRECTION_RX, DROP_MERGED_UDP);
	reason = find_endpoint(vni, inner.ip.daddr, &endpoint, &binding);
	if (reason)
		return drop(skb, DIRECTION_RX, reason);
	slot = endpoint->slot;
	ifindex = endpoint->ifindex;
	bytes = skb->len;

	if (bpf_skb_adjust_room(skb, -(__s32)(OVERHEAD + options),
				BPF_ADJ_ROOM_MAC,
				BPF_F_ADJ_ROOM_FIXED_GSO |
				BPF_F_ADJ_ROOM_NO_CSUM_RESET))
		return drop(skb, DIRECTION_RX, DROP_NO_ROOM);
	/* What the NIC verified was the outer checksum, not the inner one. */
	bpf_csum_level(skb, BPF_CSUM_LEVEL_DEC);
	inner.l4 -= inner.l3 - ETH_HLEN;
	inner.l3 = ETH_HLEN;
	reason = address_to_guest(skb, config, &inner);
	if (reason)
		return drop_bytes(bytes, DIRECTION_RX, reason);
	row = slot_counters.lookup(&slot);
	if (row)
		add(&row->rx_remote, inner.length);

	/* Through the veth the sandbox's own GRO merges TCP segments; past it
	 * goes what that does not help, without the detour: other protocols, and
	 * TCP from a VTEP whose frames come merged. By protocol and VTEP, so that
	 * no flow takes both ways at once and overtakes itself.
	 */
	if (inner.ip.protocol == IPPROTO_TCP && !comes_merged(skb, from, &inner))
		return bpf_redirect(ifindex, 0);
	return bpf_redirect_peer(ifindex, 0);
}
