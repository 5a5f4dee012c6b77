/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Addresses of either family: made, compared, and judged. */
#ifndef ADDRESS_H
#define ADDRESS_H

#include "geneve_abi.h"
#include "kernel.h"

#define MAPPED_PREFIX to_be32(0xffff)	/* ::ffff:0:0/96 */

static inline struct address from_ipv4(__be32 address)
{
	struct address mapped = { .word = { 0, 0, MAPPED_PREFIX, address } };

	return mapped;
}

#endif /* ADDRESS_H */
