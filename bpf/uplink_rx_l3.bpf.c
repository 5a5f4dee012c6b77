// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* tc ingress of an uplink without a link-layer header, such as WireGuard's. */
#include "lib/receive.h"

int uplink_rx_l3(struct __sk_buff *skb)
{
	return receive(skb, 0);
}
