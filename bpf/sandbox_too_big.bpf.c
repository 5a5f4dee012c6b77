// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Where sandbox_tx goes on with a packet that is too big for its way. */
#include "lib/count.h"
#include "lib/inner.h"
#include "lib/jump.h"
#include "lib/kernel.h"
#include "lib/maps.h"
#include "lib/too_big.h"

int sandbox_too_big(struct __sk_buff *skb)
{
	__u32 zero = 0, slot = skb->cb[SANDBOX_SLOT];
	struct node_config *config;
	struct inner inner;
	struct ethhdr eth;

	config = node_config.lookup(&zero);
	if (!config || read_bytes(skb, 0, &eth, sizeof(eth)) ||
	    read_inner(skb, ETH_HLEN, skb->len, family_of(eth.h_proto), &inner))
		return drop(skb, DIRECTION_TX, DROP_TOO_BIG);
	return refuse_too_big(skb, config, slot, &inner, skb->cb[TOO_BIG_MTU]);
}
