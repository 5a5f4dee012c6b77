/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The last step on the receiving node: from a VPC address to a sandbox's eth0. */
#ifndef DELIVER_H
#define DELIVER_H

#include "address.h"
#include "count.h"
#include "guest.h"
#include "inner.h"
#include "translate.h"

/* The slot and the binding behind an address of a VPC, if both halves agree that it
 * lives: an attach or detach that was cut short leaves them different.
 *
 * A hash gives the room of a row that was removed to the next one at once, while
 * programs still hold it: what it says may be somebody else's by now. A binding
 * is not used again before all of them have ended, so that one has the last word.
 */
static inline enum drop_reason find_endpoint(__u32 vni,
					     const struct address *address,
					     __u32 *slot,
					     struct binding **binding)
{
	struct endpoint_key key = { .vni = vni, .address = *address };
	struct endpoint *found = endpoints.lookup(&key);
	struct address own;
	struct binding *bound;

	if (!found)
		return DROP_NO_ENDPOINT;
	*slot = *(volatile __u32 *)&found->slot;
	bound = bindings.lookup(slot);
	if (!bound)
		return DROP_NO_ENDPOINT;
	own = vpc_address(bound, is_ipv4(address) ? 4 : 6);
	if (*(volatile __u64 *)&bound->generation != found->generation ||
	    bound->vni != vni || !same_address(&own, address))
		return DROP_STALE_ENDPOINT;
	*binding = bound;
	return DROP_NONE;
}

/* Into the sandbox without its queue. A tap has none to go round. */
static inline int hand_over(__u32 ifindex, __u32 kind)
{
	return kind == KIND_HOST_TAP ? bpf_redirect(ifindex, 0) :
				       bpf_redirect_peer(ifindex, 0);
}

/* What stands in front of an IPv4 packet's options or payload. */
struct head4 {
	struct ethhdr eth;
	struct iphdr ip;
} __attribute__((packed));

/* From here on the frame is Ethernet and the inner packet, nothing else:
 * make it one that the guest believes is for itself.
 */
static inline enum drop_reason address_to_guest(struct __sk_buff *skb,
						const struct node_config *config,
						const struct binding *to,
						struct inner *inner,
						const int quotes)
{
	enum drop_reason reason;
	struct address guest;
	struct head4 head;
	long failed;

	if (!to->native) {
		guest = guest_address(config, to, inner->family);
		reason = translate(skb, inner, DESTINATION,
				   &inner->destination, &guest, quotes);
		if (reason)
			return reason;
	}
	__builtin_memcpy(head.eth.h_dest, config->guest_mac, ETH_ALEN);
	__builtin_memcpy(head.eth.h_source, config->gateway_mac, ETH_ALEN);
	if (inner->family == 6) {
		head.eth.h_proto = to_be16(ETH_P_IPV6);
		failed = bpf_skb_store_bytes(skb, 0, &head.eth,
					     sizeof(head.eth), 0) ||
			 bpf_skb_store_bytes(skb, ETH_HLEN, &inner->ip.v6,
					     sizeof(inner->ip.v6),
					     BPF_F_RECOMPUTE_CSUM);
	} else {
		head.eth.h_proto = to_be16(ETH_P_IP);
		head.ip = inner->ip.v4;
		failed = bpf_skb_store_bytes(skb, 0, &head, sizeof(head), 0);
	}
	if (failed)
		return DROP_NO_REWRITE;
	clear_bookkeeping(skb);
	return DROP_NONE;
}

#endif /* DELIVER_H */
