/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* ICMP of both families: the one error that says how big a packet may be. */
#ifndef ICMP_H
#define ICMP_H

#include "kernel.h"

#define ICMP_UNREACHABLE 3
#define ICMP_FRAGMENTATION_NEEDED 4
#define ICMP6_TOO_BIG 2

#define IPV6_MTU_MIN 1280		/* RFC 8200 section 5 */

struct icmp {
	__u8 type;
	__u8 code;
	__be16 checksum;
	__be32 value;		/* the MTU: all of it, ICMPv4 the lower half */
};

#endif /* ICMP_H */
