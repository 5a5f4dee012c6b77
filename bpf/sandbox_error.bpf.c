// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Where sandbox_tx goes on with an ICMP error, which quotes a packet: that one is
 * translated too. All that sandbox_tx checks is checked.
 */
#include "lib/count.h"
#include "lib/forward.h"
#include "lib/inner.h"
#include "lib/kernel.h"
#include "lib/maps.h"
#include "lib/resume.h"

int sandbox_error(struct __sk_buff *skb)
{
	__u32 slot = skb->cb[SANDBOX_SLOT];
	struct node_config *config;
	enum drop_reason reason;
	struct binding *from;
	struct inner inner;
	struct ethhdr eth;

	reason = resume(skb, &config, &from, &eth);
	if (!reason)
		reason = read_inner(skb, ETH_HLEN, skb->len,
				    family_of(eth.h_proto), &inner);
	if (reason)
		return drop(skb, DIRECTION_TX, reason);
	return forward(skb, config, slot, from, &eth, &inner, 1);
}
