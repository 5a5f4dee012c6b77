/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Congestion marks through the tunnel: RFC 6040, normal mode.
 *
 * Linux's own tunnels are no model: they follow RFC 3168 and turn CE into
 * ECT(0) on the way in.
 */
#ifndef ECN_H
#define ECN_H

#include "inner.h"

#define ECN_MASK 3
#define NOT_ECT 0
#define ECT_1 1
#define ECT_0 2
#define CE 3

/* Section 4.1: all four codepoints go into the outer header as they are. */
static inline __u8 ecn_of(const struct inner *inner)
{
	if (inner->family == 6)
		return (from_be32(inner->ip.v6.start) >> 20) & ECN_MASK;
	return inner->ip.v4.tos & ECN_MASK;
}

/* Section 4.2, figure 4: the mark that leaves the tunnel, written into the copy
 * of the inner header.
 */
static inline enum drop_reason merge_ecn(struct inner *inner, __u8 outer)
{
	__u8 ecn = ecn_of(inner);
	struct iphdr *ip = &inner->ip.v4;
	__be16 before;

	if (outer == CE && ecn == NOT_ECT)
		return DROP_ECN_INVALID;
	if (outer == CE ? ecn == CE : !(outer == ECT_1 && ecn == ECT_0))
		return DROP_NONE;
	if (inner->family == 6) {
		inner->ip.v6.start &= ~to_be32(ECN_MASK << 20);
		inner->ip.v6.start |= to_be32((__u32)outer << 20);
		return DROP_NONE;
	}
	before = *(__be16 *)ip;
	ip->tos = (ip->tos & ~ECN_MASK) | outer;
	ip->check = checksum_after(ip->check, before, *(__be16 *)ip);
	return DROP_NONE;
}

#endif /* ECN_H */
