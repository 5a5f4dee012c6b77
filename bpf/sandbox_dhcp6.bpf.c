// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Where sandbox_tx goes on with what a sandbox asks a DHCPv6 server. */
#include "lib/count.h"
#include "lib/dhcp6.h"
#include "lib/inner.h"
#include "lib/kernel.h"
#include "lib/maps.h"
#include "lib/resume.h"

int sandbox_dhcp6(struct __sk_buff *skb)
{
	struct node_config *config;
	enum drop_reason reason;
	struct binding *from;
	struct inner inner;
	struct ethhdr eth;

	reason = resume(skb, &config, &from, &eth);
	if (!reason)
		reason = read_inner(skb, ETH_HLEN, skb->len, 6, &inner);
	if (reason)
		return drop(skb, DIRECTION_TX, reason);
	return answer_dhcp6(skb, config, from, &inner);
}
