/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* ARP for IPv4 over Ethernet: which requests get an answer, and what it is.
 *
 * A probe (sender 0.0.0.0) and a question for the asker's own address are how
 * hosts look for duplicates: answering one makes a guest give up its address.
 */
#ifndef ARP_H
#define ARP_H

#include "kernel.h"

#define ARP_REQUEST 1
#define ARP_REPLY 2

struct arp {
	__be16 hardware;
	__be16 protocol;
	__u8 hardware_length;
	__u8 protocol_length;
	__be16 operation;
	__u8 sender_mac[6];
	__be32 sender;
	__u8 target_mac[6];
	__be32 target;
} __attribute__((packed));

static inline int is_question(const struct arp *arp)
{
	return arp->hardware == to_be16(1) &&
	       arp->protocol == to_be16(ETH_P_IP) &&
	       arp->hardware_length == 6 && arp->protocol_length == 4 &&
	       arp->operation == to_be16(ARP_REQUEST) &&
	       arp->sender && arp->sender != arp->target;
}

/* Turn a request into its own answer: the target has this MAC. */
static inline void make_answer(struct arp *arp, const __u8 *mac)
{
	__be32 asked = arp->target;

	arp->operation = to_be16(ARP_REPLY);
	__builtin_memcpy(arp->target_mac, arp->sender_mac, 6);
	arp->target = arp->sender;
	__builtin_memcpy(arp->sender_mac, mac, 6);
	arp->sender = asked;
}

#endif /* ARP_H */
