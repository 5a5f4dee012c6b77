/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The last step on the receiving node: from a VPC address to a sandbox's eth0. */
#ifndef DELIVER_H
#define DELIVER_H

#include "address.h"
#include "count.h"
#include "inner.h"

/* The binding behind an address of a VPC, if both halves agree that it lives:
 * an attach or detach that was cut short leaves them different.
 */
static inline enum drop_reason find_endpoint(__u32 vni, __be32 address,
					     struct endpoint **endpoint,
					     struct binding **binding)
{
	struct endpoint_key key = { .vni = vni, .address = from_ipv4(address) };
	struct endpoint *found = endpoints.lookup(&key);
	struct binding *bound;

	if (!found)
		return DROP_NO_ENDPOINT;
	bound = bindings.lookup(&found->slot);
	if (!bound)
		return DROP_NO_ENDPOINT;
	if (*(volatile __u64 *)&bound->generation != found->generation)
		return DROP_STALE_ENDPOINT;
	*endpoint = found;
	*binding = bound;
	return DROP_NONE;
}

/* What stands in front of an IP packet's options or payload. */
struct head {
	struct ethhdr eth;
	struct iphdr ip;
} __attribute__((packed));

/* From here on the frame is Ethernet and the inner packet, nothing else:
 * make it one that the guest believes is for itself.
 */
static inline enum drop_reason address_to_guest(struct __sk_buff *skb,
						const struct node_config *config,
						struct inner *inner)
{
	enum drop_reason reason;
	struct head head;

	reason = translate(skb, inner, IP_DESTINATION, inner->ip.daddr,
			   config->guest_address);
	if (reason)
		return reason;
	__builtin_memcpy(head.eth.h_dest, config->guest_mac, ETH_ALEN);
	__builtin_memcpy(head.eth.h_source, config->gateway_mac, ETH_ALEN);
	head.eth.h_proto = to_be16(ETH_P_IP);
	head.ip = inner->ip;
	if (bpf_skb_store_bytes(skb, 0, &head, sizeof(head), 0))
		return DROP_NO_REWRITE;
	clear_bookkeeping(skb);
	return DROP_NONE;
}

#endif /* DELIVER_H */
