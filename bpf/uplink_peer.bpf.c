// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Where uplink_rx and uplink_rx_l3 go on with what a peer asks through the tunnel: ARP and
 * neighbour discovery.
 */
#include "lib/arrival.h"
#include "lib/count.h"
#include "lib/inner.h"
#include "lib/jump.h"
#include "lib/kernel.h"
#include "lib/maps.h"
#include "lib/peer.h"

int uplink_peer(struct __sk_buff *skb)
{
	__u32 zero = 0, l2 = skb->cb[PEER_L2];
	struct arrival arrival = {
		.payload = skb->cb[PEER_PAYLOAD],
		.end = skb->cb[PEER_END],
		.vni = skb->cb[PEER_VNI],
		.unsummed = (__u8)skb->cb[PEER_UNSUMMED],
	};
	struct node_config *config;
	enum drop_reason reason;
	struct inner inner;
	struct ethhdr eth;

	config = node_config.lookup(&zero);
	if (!config)
		return drop(skb, DIRECTION_RX, DROP_NO_CONFIG);
	if (read_sender(skb, l2, config, &arrival) ||
	    read_bytes(skb, arrival.payload - sizeof(eth), &eth, sizeof(eth)))
		return drop(skb, DIRECTION_RX, DROP_SHORT_FRAME);
	if (eth.h_proto == to_be16(ETH_P_ARP))
		return answer_wire_arp(skb, l2, config, &arrival);
	reason = read_inner(skb, arrival.payload, arrival.end, 6, &inner);
	if (reason)
		return drop(skb, DIRECTION_RX, reason);
	return answer_wire_nd(skb, l2, config, &arrival, &inner, eth.h_source);
}
