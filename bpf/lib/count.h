/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Counting: drops, events and each slot's traffic.
 *
 * Rows are per CPU and tc runs with softirqs off, so no addition is atomic.
 */
#ifndef COUNT_H
#define COUNT_H

#include "kernel.h"
#include "maps.h"

static inline void add(struct traffic *row, __u64 bytes)
{
	row->packets += 1;
	row->bytes += bytes;
}

/* The row of a slot's counters, which `row` is in, is asked of memory as soon as the
 * slot is known: among thousands of sandboxes it is in no cache, and neither is the
 * binding that was asked for just before. The CPU then waits for both at once.
 */
static inline void fetch(const struct traffic *row)
{
	(void)*(volatile __u64 *)&row->packets;
}

/* The only place that returns TC_ACT_SHOT: what does not get through is
 * counted exactly once, with the bytes it came with.
 */
static inline int drop_bytes(__u32 bytes, enum direction direction,
			     enum drop_reason reason)
{
	__u32 index = reason * DIRECTIONS + direction;
	struct traffic *row = drop_counts.lookup(&index);

	if (row)
		add(row, bytes);
	return TC_ACT_SHOT;
}

/* As long as the frame has not grown or shrunk. */
static inline int drop(struct __sk_buff *skb, enum direction direction,
		       enum drop_reason reason)
{
	return drop_bytes(skb->len, direction, reason);
}

static inline void count_event(struct __sk_buff *skb, enum event_kind event)
{
	__u32 index = event;
	struct traffic *row = event_counts.lookup(&index);

	if (row)
		add(row, skb->len);
}

#endif /* COUNT_H */
