// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Where uplink_rx and uplink_rx_l3 go on with ICMP for our VTEP, which may say that a
 * packet of ours was too big. The frame stays as it is and is passed on.
 */
#include "lib/jump.h"
#include "lib/kernel.h"
#include "lib/maps.h"
#include "lib/path_mtu.h"

int uplink_path_mtu(struct __sk_buff *skb)
{
	struct node_config *config;
	__u32 zero = 0;

	config = node_config.lookup(&zero);
	if (config)
		learn_path_mtu(skb, skb->cb[PEER_L2], config);
	return PASS_ON;
}
