/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Addresses of either family: made, compared, and judged. */
#ifndef ADDRESS_H
#define ADDRESS_H

#include "geneve_abi.h"
#include "kernel.h"

#define MAPPED to_be32(0xffff)	/* ::ffff:0:0/96, word 2 */

static inline struct address from_ipv4(__be32 ipv4)
{
	struct address address = { .word = { 0, 0, MAPPED, ipv4 } };

	return address;
}

static inline int is_ipv4(const struct address *address)
{
	return !address->word[0] && !address->word[1] &&
	       address->word[2] == MAPPED;
}

static inline int is_set(const struct address *address)
{
	return address->word[0] || address->word[1] || address->word[2] ||
	       address->word[3];
}

static inline int same_address(const struct address *a,
			       const struct address *b)
{
	return a->word[0] == b->word[0] && a->word[1] == b->word[1] &&
	       a->word[2] == b->word[2] && a->word[3] == b->word[3];
}

/* fe80::/10 */
static inline int is_link_local(const struct address *address)
{
	return from_be32(address->word[0]) >> 22 == 0xfe80 >> 6;
}

/* What a sandbox may have and a route may lead to. */
static inline int is_unicast(const struct address *address)
{
	__u32 ipv4 = from_be32(address->word[3]);

	if (is_ipv4(address))
		return (ipv4 >> 28) < 14 && (ipv4 >> 24) != 0 &&
		       (ipv4 >> 24) != 127;
	/* Not multicast nor link-local, which no router passes on (RFC 4291
	 * section 2.5.6), and neither :: nor ::1.
	 */
	return (from_be32(address->word[0]) >> 24) != 0xff &&
	       !is_link_local(address) &&
	       (address->word[0] || address->word[1] || address->word[2] ||
		ipv4 > 1);
}

#endif /* ADDRESS_H */
