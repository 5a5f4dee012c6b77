/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Rare work in programs of its own, which the hooks' programs jump to (tail calls):
 * the verifier takes each by itself, and the common way stays far from its limit.
 *
 * A packet is as it came when it jumps, and what else the next program must know
 * stands in the packet's control block. That program never comes back.
 *
 * Every version of the programs has a table of its own (JUMPS_PIN is a string that
 * the loader defines), filled before they are hung: an old program goes on in old
 * ones, however long it runs beside new ones.
 */
#ifndef JUMP_H
#define JUMP_H

#include "count.h"
#include "geneve_abi.h"
#include "kernel.h"

/* Places in the table: JUMP_ and the program's name. */
enum jump {
	JUMP_SANDBOX_LINK,
	JUMP_SANDBOX_TOO_BIG,
	JUMP_SANDBOX_ERROR,
	JUMP_UPLINK_PEER,
	JUMP_UPLINK_PATH_MTU,
	JUMP_SANDBOX_DHCP6,
	JUMPS,
};

BPF_TABLE_PINNED("prog", __u32, __u32, jumps, JUMPS, JUMPS_PIN);

/* What stands in skb->cb, by program. */
#define SANDBOX_SLOT 0
#define TOO_BIG_MTU 1		/* bytes of the largest inner packet that passes */
#define PEER_L2 0		/* as receive() has it; and in UPLINK_PATH_MTU too */
#define PEER_PAYLOAD 1		/* as struct arrival has them */
#define PEER_END 2
#define PEER_VNI 3
#define PEER_UNSUMMED 4

/* Returns only if that program is missing. */
static inline int jump_to(struct __sk_buff *skb, enum direction direction,
			  enum jump place)
{
	jumps.call(skb, place);
	return drop(skb, direction, DROP_NO_PROGRAM);
}

#endif /* JUMP_H */
