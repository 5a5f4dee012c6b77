// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* tc ingress of eth0 and of the tap in a slot's namespace: what comes in by one
 * goes out by the other.
 *
 * The kernel's stack in there sees nothing of it. A frame is whole, and so is what
 * its checksum and segmentation are left to.
 */
#include "lib/kernel.h"

int tap_splice(struct __sk_buff *skb)
{
	return bpf_redirect(skb->ifindex ^ TAP_DISTANCE, 0);
}
