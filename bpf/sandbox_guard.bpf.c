// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* tc egress of every sandbox's host-side interface: nothing but what our
 * programs send may enter a sandbox.
 *
 * The interface has no address, but a daemon of the host may still bind to it,
 * as those for LLDP, mDNS or DHCP do that use every interface they find.
 */
#include "lib/count.h"
#include "lib/kernel.h"
#include "lib/maps.h"

int sandbox_guard(struct __sk_buff *skb)
{
	/* What is redirected has come in somewhere; what a socket of the host
	 * sends has not.
	 */
	if (skb->ingress_ifindex)
		return PASS_ON;
	return drop(skb, DIRECTION_RX, DROP_HOST_FRAME);
}
