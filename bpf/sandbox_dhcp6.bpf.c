// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Where sandbox_tx goes on with what a sandbox asks a DHCPv6 server. */
#include "lib/count.h"
#include "lib/dhcp6.h"
#include "lib/inner.h"
#include "lib/jump.h"
#include "lib/kernel.h"
#include "lib/maps.h"

int sandbox_dhcp6(struct __sk_buff *skb)
{
	__u32 zero = 0, slot = skb->cb[SANDBOX_SLOT];
	struct node_config *config;
	struct binding *from;
	enum drop_reason reason;
	struct inner inner;

	config = node_config.lookup(&zero);
	if (!config)
		return drop(skb, DIRECTION_TX, DROP_NO_CONFIG);
	from = bindings.lookup(&slot);
	if (!from)
		return drop(skb, DIRECTION_TX, DROP_NO_SLOT);
	reason = read_inner(skb, ETH_HLEN, skb->len, 6, &inner);
	if (reason)
		return drop(skb, DIRECTION_TX, reason);
	return answer_dhcp6(skb, config, from, &inner);
}
