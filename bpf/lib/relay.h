/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The relay: a veth pair by which TCP goes to the taps of the node's namespace.
 *
 * Its near end cuts up what is marked as a tunnel's, and its far end merges the segments
 * anew, without that mark. GRO merges only what has the same Ethernet header, so on the
 * way that header says whom the frame is for: clones have one address, and may have the
 * same ports and sequence numbers, but no two sandboxes one slot and generation.
 */
#ifndef RELAY_H
#define RELAY_H

#include "kernel.h"
#include "maps.h"

/* A unicast address that is locally administered, and neither end's: no stack that the
 * frame might fall into takes it for its own.
 */
#define RELAY_MARK to_be16(0x0647)

/* In place of the two Ethernet addresses. It never leaves the pair: the fields have the
 * machine's byte order.
 */
struct relay_label {
	__be16 mark;
	__u16 slot;
	__u64 generation;
} __attribute__((packed));

/* The relay's near end, for those that go by it; 0: as before there was one. */
static inline __u32 relay_for(__u32 kind, __u32 protocol)
{
	struct node_state *state;
	__u32 zero = 0;

	/* All TCP, or a flow would go two ways, and overtake itself. */
	if (kind != KIND_HOST_TAP || protocol != IPPROTO_TCP)
		return 0;
	state = node_state.lookup(&zero);
	return state ? *(volatile __u32 *)&state->relay : 0;
}

/* Whoever has left meanwhile has generation 0, and relay_rx drops it. */
static inline enum drop_reason label_frame(struct __sk_buff *skb, __u32 slot,
					   const struct binding *to)
{
	struct relay_label label = {
		.mark = RELAY_MARK,
		.slot = (__u16)slot,
		.generation = *(const volatile __u64 *)&to->generation,
	};

	return bpf_skb_store_bytes(skb, 0, &label, sizeof(label), 0) ?
		       DROP_NO_REWRITE :
		       DROP_NONE;
}

#endif /* RELAY_H */
