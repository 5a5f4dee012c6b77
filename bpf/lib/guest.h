/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What a guest is known by: on its eth0, and in its VPC. Both are the same where
 * it is native there; else every guest of the node has the same on eth0.
 */
#ifndef GUEST_H
#define GUEST_H

#include "address.h"
#include "geneve_abi.h"

/* How long it has its address for, when it asks: for ever, but no client believes that. */
#define DHCP_LEASE 86400		/* seconds */
#define DHCP_RENEW (DHCP_LEASE / 2)	/* RFC 2131 section 4.4.5 */
#define DHCP_REBIND (DHCP_LEASE / 8 * 7)

/* In the VPC; all zero or 0.0.0.0: it has none of that family. */
static inline struct address vpc_address(const struct binding *binding,
					 __u8 family)
{
	return family == 6 ? binding->address6 : from_ipv4(binding->address);
}

/* Whether the guest has its VPC addresses itself: as long as it is attached. What an
 * attach or detach that was cut short has left means nothing.
 */
static inline int is_native(const struct binding *binding)
{
	return binding->native && *(const volatile __u64 *)&binding->generation;
}

/* On eth0, of somebody who is attached. */
static inline struct address guest_address(const struct node_config *config,
					   const struct binding *binding,
					   __u8 family)
{
	if (binding->native)
		return vpc_address(binding, family);
	return family == 6 ? config->guest_address6 :
			     from_ipv4(config->guest_address);
}

/* The same of anybody, and of IPv4 alone. */
static inline __be32 guest_ipv4(const struct node_config *config,
				const struct binding *binding)
{
	return is_native(binding) ? binding->address : config->guest_address;
}

#endif /* GUEST_H */
