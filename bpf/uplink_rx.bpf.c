// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* tc ingress of an uplink with Ethernet: what comes from the wire. */
#include "lib/receive.h"

int uplink_rx(struct __sk_buff *skb)
{
	return receive(skb, ETH_HLEN);
}
