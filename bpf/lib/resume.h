/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* How a program begins that sandbox_tx has jumped to: what that one knew is found again. */
#ifndef RESUME_H
#define RESUME_H

#include "jump.h"
#include "kernel.h"
#include "maps.h"

static inline enum drop_reason resume(struct __sk_buff *skb,
				      struct node_config **config,
				      struct binding **from, struct ethhdr *eth)
{
	__u32 zero = 0, slot = skb->cb[SANDBOX_SLOT];

	*config = node_config.lookup(&zero);
	if (!*config)
		return DROP_NO_CONFIG;
	*from = bindings.lookup(&slot);
	if (!*from)
		return DROP_NO_SLOT;
	return read_bytes(skb, 0, eth, sizeof(*eth)) ? DROP_SHORT_FRAME :
						       DROP_NONE;
}

#endif /* RESUME_H */
