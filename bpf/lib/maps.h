/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Every map, with who writes it. PIN_DIR is a string that the loader defines.
 *
 * BCC takes an existing pin without looking at it; the layout's hash in
 * PIN_DIR is what makes that safe.
 */
#ifndef MAPS_H
#define MAPS_H

#include "geneve_abi.h"

/* Written once, before any hook is attached. */
BPF_TABLE_PINNED("array", __u32, struct node_config, node_config, 1,
		 PIN_DIR "/node_config");

/* Mapped by the agent and the slot process. The programs read slot_mtu and keep
 * path_mtu_until, each with one store.
 */
BPF_TABLE_PINNED("array", __u32, struct node_state, node_state, 1,
		 PIN_DIR "/node_state", BPF_F_MMAPABLE);

/* By host-side interface. Slot process: last when it makes a slot, last when it
 * destroys one.
 */
BPF_TABLE_PINNED("hash", __u32, __u32, slot_by_ifindex, MAX_SLOTS,
		 PIN_DIR "/slot_by_ifindex", BPF_F_NO_PREALLOC);

/* By slot. Slot process while the slot is made or destroyed, agent between. */
BPF_TABLE_PINNED("array", __u32, struct binding, bindings, MAX_SLOTS,
		 PIN_DIR "/bindings", BPF_F_MMAPABLE);

/* Agent, at attach and detach. */
BPF_TABLE_PINNED("hash", struct endpoint_key, struct endpoint, endpoints,
		 MAX_ENDPOINTS, PIN_DIR "/endpoints");

/* Agent, as desired state changes. */
BPF_TABLE_PINNED("hash", struct host_key, struct route, routes_exact,
		 MAX_ROUTES, PIN_DIR "/routes_exact", BPF_F_NO_PREALLOC);
BPF_TABLE_PINNED("lpm_trie", struct route_key, struct route, routes_lpm,
		 MAX_ROUTES, PIN_DIR "/routes_lpm", BPF_F_NO_PREALLOC);
BPF_TABLE_PINNED("hash", __u32, struct nexthop, nexthops, MAX_NEXTHOPS,
		 PIN_DIR "/nexthops", BPF_F_NO_PREALLOC);
/* Agent; uplink_rx keeps `merged` and the path MTU. */
BPF_TABLE_PINNED("hash", struct address, struct vtep, vteps, MAX_VTEPS,
		 PIN_DIR "/vteps", BPF_F_NO_PREALLOC);

/* The programs. */
BPF_TABLE_PINNED("percpu_array", __u32, struct traffic, drop_counts,
		 DROP_REASON_COUNT * DIRECTIONS, PIN_DIR "/drop_counts");
BPF_TABLE_PINNED("percpu_array", __u32, struct traffic, event_counts,
		 EVENT_COUNT, PIN_DIR "/event_counts");
BPF_TABLE_PINNED("percpu_array", __u32, struct slot_counters, slot_counters,
		 MAX_SLOTS, PIN_DIR "/slot_counters");

/* By slot: when its next ICMP error is due at the earliest, as GCRA counts it, in
 * ns since boot. sandbox_tx.
 */
BPF_TABLE_PINNED("array", __u32, __u64, too_big_limits, MAX_SLOTS,
		 PIN_DIR "/too_big_limits");

/* The programs, each for as long as it runs. */
BPF_TABLE_PINNED("percpu_array", __u32, struct scratch, scratch_row, 1,
		 PIN_DIR "/scratch_row");

/* By VNI: what slots that are gone had counted. Slot process; no program. */
BPF_TABLE_PINNED("hash", __u32, struct slot_counters, vpc_counters, MAX_VPCS,
		 PIN_DIR "/vpc_counters", BPF_F_NO_PREALLOC);

#endif /* MAPS_H */
