// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* tc ingress of the relay's far end: what uplink_rx has sent through, merged, goes on to
 * its tap. Nothing ever reaches the host's stack.
 */
#include "lib/count.h"
#include "lib/kernel.h"
#include "lib/maps.h"
#include "lib/relay.h"

int relay_rx(struct __sk_buff *skb)
{
	struct node_config *config;
	struct relay_label label;
	__u32 zero = 0, slot;
	struct ethhdr eth;
	struct binding *to;

	config = node_config.lookup(&zero);
	if (!config)
		return drop(skb, DIRECTION_RX, DROP_NO_CONFIG);
	if (read_bytes(skb, 0, &label, sizeof(label)))
		return drop(skb, DIRECTION_RX, DROP_SHORT_FRAME);
	slot = label.slot;
	to = bindings.lookup(&slot);
	if (label.mark != RELAY_MARK || !to)
		return drop(skb, DIRECTION_RX, DROP_NO_SLOT);
	/* Somebody may have left while it was on its way. */
	if (to->kind != KIND_HOST_TAP || !label.generation ||
	    *(volatile __u64 *)&to->generation != label.generation)
		return drop(skb, DIRECTION_RX, DROP_STALE_ENDPOINT);
	__builtin_memcpy(eth.h_dest, config->guest_mac, ETH_ALEN);
	__builtin_memcpy(eth.h_source, config->gateway_mac, ETH_ALEN);
	if (bpf_skb_store_bytes(skb, 0, &eth, 2 * ETH_ALEN, 0))
		return drop(skb, DIRECTION_RX, DROP_NO_REWRITE);
	return bpf_redirect(to->ifindex, 0);
}
