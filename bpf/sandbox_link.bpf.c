// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Where sandbox_tx goes on with what a sandbox asks its gateway: ARP, neighbour and
 * router discovery, DHCP.
 */
#include "lib/count.h"
#include "lib/inner.h"
#include "lib/jump.h"
#include "lib/kernel.h"
#include "lib/link.h"
#include "lib/maps.h"

int sandbox_link(struct __sk_buff *skb)
{
	__u32 zero = 0, slot = skb->cb[SANDBOX_SLOT];
	struct node_config *config;
	struct binding *from;
	enum drop_reason reason;
	struct inner inner;
	struct ethhdr eth;

	config = node_config.lookup(&zero);
	if (!config)
		return drop(skb, DIRECTION_TX, DROP_NO_CONFIG);
	from = bindings.lookup(&slot);
	if (!from)
		return drop(skb, DIRECTION_TX, DROP_NO_SLOT);
	if (read_bytes(skb, 0, &eth, sizeof(eth)))
		return drop(skb, DIRECTION_TX, DROP_SHORT_FRAME);
	if (eth.h_proto == to_be16(ETH_P_ARP))
		return answer_arp(skb, config, from, &eth);
	reason = read_inner(skb, ETH_HLEN, skb->len, family_of(eth.h_proto),
			    &inner);
	if (reason)
		return drop(skb, DIRECTION_TX, reason);
	if (inner.family == 6)
		return answer_nd(skb, config, from, &inner);
	return answer_dhcp(skb, config, from, &inner);
}
