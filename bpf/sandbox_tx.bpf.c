// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* tc ingress of every sandbox's host-side interface: what a sandbox sends.
 *
 * Hostile input. Each frame is answered, handed to another sandbox, sent to
 * another node, or dropped and counted; none ever reaches the host's stack.
 */
#include "lib/count.h"
#include "lib/forward.h"
#include "lib/inner.h"
#include "lib/jump.h"
#include "lib/kernel.h"
#include "lib/link.h"
#include "lib/maps.h"

static inline int go_on_in(struct __sk_buff *skb, enum jump place, __u32 slot)
{
	skb->cb[SANDBOX_SLOT] = slot;
	return jump_to(skb, DIRECTION_TX, place);
}

int sandbox_tx(struct __sk_buff *skb)
{
	__u32 zero = 0, ifindex = skb->ifindex, slot;
	struct node_config *config;
	struct slot_counters *row;
	struct binding *from;
	struct inner inner;
	enum drop_reason reason;
	struct ethhdr eth;
	__u32 *slot_row;
	__u8 family;

	/* The kernel keeps the tag beside the packet, so no byte read below
	 * shows it; it would leave on the outer frame.
	 */
	if (skb->vlan_present)
		return drop(skb, DIRECTION_TX, DROP_VLAN_TAGGED);
	config = node_config.lookup(&zero);
	if (!config || !is_set(&config->vtep))
		return drop(skb, DIRECTION_TX, DROP_NO_CONFIG);
	slot_row = slot_by_ifindex.lookup(&ifindex);
	if (!slot_row)
		return drop(skb, DIRECTION_TX, DROP_NO_SLOT);
	slot = *(volatile __u32 *)slot_row;
	from = bindings.lookup(&slot);
	row = slot_counters.lookup(&slot);
	/* The row may be another interface's by now, see find_endpoint(). */
	if (!from || !row || from->ifindex != ifindex)
		return drop(skb, DIRECTION_TX, DROP_NO_SLOT);
	fetch(&row->tx_remote);
	if (read_bytes(skb, 0, &eth, sizeof(eth)))
		return drop(skb, DIRECTION_TX, DROP_SHORT_FRAME);
	if (!same_mac(eth.h_source, config->guest_mac))
		return drop(skb, DIRECTION_TX, DROP_SPOOFED_MAC);
	if (eth.h_proto == to_be16(ETH_P_ARP))
		return go_on_in(skb, JUMP_SANDBOX_LINK, slot);
	family = family_of(eth.h_proto);
	reason = DROP_NOT_IP;
	if (family)
		reason = read_inner(skb, ETH_HLEN, skb->len, family, &inner);
	if (!reason) {
		switch (hearer_of(skb, config, &inner)) {
		case HEARD_BY_GATEWAY:
			return go_on_in(skb, JUMP_SANDBOX_LINK, slot);
		case HEARD_BY_DHCP6:
			return go_on_in(skb, JUMP_SANDBOX_DHCP6, slot);
		case HEARD_BY_NOBODY:
			return drop(skb, DIRECTION_TX, DROP_GROUP_MEMBERSHIP);
		case HEARD_BY_VPC:
			break;
		}
	}
	if (!*(volatile __u64 *)&from->generation)
		reason = DROP_UNBOUND;
	if (reason)
		return drop(skb, DIRECTION_TX, reason);
	if (may_quote(skb, &inner))
		return go_on_in(skb, JUMP_SANDBOX_ERROR, slot);
	return forward(skb, config, slot, from, &eth, &inner, 0);
}
