// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Where sandbox_tx goes on with what a sandbox asks its gateway: ARP, neighbour and
 * router discovery, DHCP.
 */
#include "lib/count.h"
#include "lib/inner.h"
#include "lib/kernel.h"
#include "lib/link.h"
#include "lib/maps.h"
#include "lib/resume.h"

int sandbox_link(struct __sk_buff *skb)
{
	struct node_config *config;
	enum drop_reason reason;
	struct binding *from;
	struct inner inner;
	struct ethhdr eth;

	reason = resume(skb, &config, &from, &eth);
	if (reason)
		return drop(skb, DIRECTION_TX, reason);
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
