/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Every byte that a program and geneve_ebpf/abi.py both touch.
 *
 * A struct here is a map key or a map value. Python keeps a mirror of each;
 * tests/packet/test_abi.py compares the two through the BTF of the loaded
 * maps, so that a moved field fails a test and not a packet.
 *
 * __be16 and __be32 are as on the wire, the rest in host order. Padding has a
 * name, so that a zeroed key holds no stray stack bytes. A change here or in
 * lib/maps.h changes the layout's hash: a node with pins of another layout is
 * refused, never half adopted.
 */
#ifndef GENEVE_ABI_H
#define GENEVE_ABI_H

#define MAX_SLOTS 16384
#define MAX_ENDPOINTS 32768	/* a slot may have one of each family */
#define MAX_ROUTES 2097152	/* per map; nothing is allocated ahead */
#define MAX_NEXTHOPS 65536
#define MAX_VTEPS 65536
#define MAX_VPCS 65536
#define SANDBOX_NAME_SIZE 64	/* 63 characters and a zero */

/* Either family: IPv4 as ::ffff:a.b.c.d (RFC 4291 section 2.5.5.2), so that a
 * table holds both and one look-up finds either.
 */
struct address {
	__be32 word[4];
};

/* One row: what holds for every packet of the node. */
struct node_config {
	struct address vtep;		/* our outer address, of the underlay's family */
	struct address guest_address6;	/* what every sandbox has on eth0 */
	struct address gateway_address6; /* link-local: it may solicit this one */
	__be32 guest_address;		/* likewise, IPv4 */
	__be32 gateway_address;		/* the one address it may ask ARP for */
	__be32 guest_netmask;		/* offered by DHCP */
	__be32 dns[2];			/* offered by DHCP; 0: none */
	struct address dns6[2];		/* by DHCPv6; all zero: none */
	__u32 fib_ifindex;	/* "received on" in underlay route look-ups */
	__be16 udp_port;	/* Geneve, both ways */
	__u8 guest_mac[6];
	__u8 gateway_mac[6];
	__u8 pad[2];
};

/* One row, mapped into user space: what the writers count, and what the programs
 * keep of path MTUs.
 */
struct node_state {
	__u64 generation;	/* the last one given to a binding */
	__u64 fold_sequence;	/* odd while counters move from slot to VPC */
	__u32 next_nexthop;	/* id for the next new next hop */
	__u32 slot_mtu;		/* bytes, of eth0 in a slot */
	__u64 path_mtu_until;	/* ns since boot: until then some VTEP's path MTU holds */
	__u32 merging;		/* 1: the kernel merges segments before uplink_rx sees them */
	__u32 relay;		/* interface by which TCP goes to host taps; 0: none */
};

/* The numbers are stored in bindings.state. */
enum slot_state {
	SLOT_ABSENT,
	SLOT_READY,		/* prepared, unbound */
	SLOT_RESERVED,		/* handed out, tenant not known yet */
	SLOT_TAKEN,		/* had a tenant: never READY again */
};

/* A spliced tap's interface index is that of eth0 and this bit. */
#define TAP_DISTANCE 65536

/* What a sandbox opens. The numbers are stored in bindings.kind. */
enum slot_kind {
	KIND_NAMESPACE,		/* eth0 in a namespace of the slot's own */
	KIND_TAP,		/* a tap in there, spliced to eth0 */
	KIND_HOST_TAP,		/* a tap in the node's namespace: it has no peer */
};

/* What a slot is and who is in it. Mapped into user space.
 *
 * Immutable while generation is not 0: the writer stores the fields first and
 * the generation last and alone, and stores 0 before it takes anything back.
 */
struct binding {
	__u64 generation;	/* 0: unbound */
	__u32 vni;
	__be32 address;		/* in the VPC; 0: none */
	__u8 mac[6];		/* in the VPC */
	__u8 native;		/* 1: the guest has its VPC addresses itself */
	__u8 pad;
	__u32 state;		/* enum slot_state */
	__u32 ifindex;		/* host-side interface */
	__u32 kind;		/* enum slot_kind */
	__u64 attached_at;	/* ns since the epoch */
	char sandbox[SANDBOX_NAME_SIZE];
	struct address address6; /* in the VPC; all zero: none */
};

struct endpoint_key {
	__u32 vni;
	struct address address;
};

/* Where an address of a VPC lives on this node. Its generation, VNI and address
 * must be the binding's, or the packet was meant for somebody who has left.
 */
struct endpoint {
	__u64 generation;
	__u32 slot;
	__u32 pad;
};

/* An IPv6 prefix may cover ::ffff:0:0/96, and is no IPv4 route for all that. */
#define ROUTE_IPV6 16777216	/* above the 24 bits of a VNI */

/* The trie compares bits from the first byte on: the VNI always whole. */
struct route_key {
	__u32 prefix_length;	/* 32 for the VNI, 96 before IPv4, and the prefix's own */
	__u32 vni;		/* for IPv6, and ROUTE_IPV6 */
	struct address address;
};

/* The same, for whole addresses: a hash, four times faster when cold. */
struct host_key {
	__u32 vni;
	struct address address;
};

enum route_kind {
	ROUTE_REMOTE = 1,
	ROUTE_LOCAL,
	ROUTE_BLACKHOLE,
};

struct route {
	__u32 kind;		/* enum route_kind */
	__u32 nexthop;		/* key of nexthops; ROUTE_REMOTE only */
};

/* A table of its own, so that a node that moves is one write. */
struct nexthop {
	struct address vtep;
	__u32 mtu;		/* bytes of an outer packet; 0: the kernel's route says */
	__u8 mac[6];		/* inner destination */
	__u8 pad[2];
};

/* Another node: the only senders whose Geneve is ours. */
struct vtep {
	__u32 mtu;		/* bytes of an outer packet; 0: the kernel's route says */
	__u32 merged;		/* kept by uplink_rx: not 0 while GSO frames come from it */
	__u32 path_mtu;		/* likewise: what a hop on the way said that it carries */
	__u32 pad;
	__u64 path_mtu_until;	/* ns since boot */
};

struct traffic {
	__u64 packets;		/* a GSO frame is one */
	__u64 bytes;		/* of inner IP */
};

/* Room to take a checksum in, or to make an answer; no state. */
#define SCRATCH_SIZE 512	/* bytes a step; a multiple of 4 */
struct scratch {
	__u8 bytes[SCRATCH_SIZE + 4];
};

/* By slot, seen from the sandbox: tx is what it sends. */
struct slot_counters {
	struct traffic tx_local;	/* to a sandbox of this node */
	struct traffic tx_remote;
	struct traffic rx_local;
	struct traffic rx_remote;
};

/* Rows of drop_counts are reason * DIRECTIONS + direction. */
enum direction {
	DIRECTION_TX,		/* from a sandbox */
	DIRECTION_RX,		/* from the wire */
	DIRECTIONS,
};

/* X(number, name, class, what the operator reads). Append, never renumber.
 * Classes: invalid (malformed), policy (refused on purpose), unreachable
 * (nobody there, or no way), resource (this node's trouble).
 */
#define DROP_REASONS(X) \
	X(0, NONE, policy, "not dropped") \
	X(1, NO_CONFIG, resource, "the node's configuration is not written yet") \
	X(2, VLAN_TAGGED, invalid, "the sandbox's frame carries a VLAN tag") \
	X(3, NO_SLOT, resource, "the interface belongs to no slot") \
	X(4, UNBOUND, policy, "no sandbox is attached to the slot") \
	X(5, SHORT_FRAME, invalid, "the frame ends inside a header it announces") \
	X(6, NOT_IP, policy, "the payload is neither IP nor ARP") \
	X(7, ARP_REFUSED, policy, "an ARP message other than a request that we answer") \
	X(8, SPOOFED_MAC, policy, "the source MAC is not the sandbox's own") \
	X(9, SPOOFED_ADDRESS, policy, "the source address is not the sandbox's own") \
	X(10, BAD_IP_HEADER, invalid, "version or a length in the inner IP header is wrong") \
	X(11, NOT_UNICAST, policy, "the destination is broadcast, multicast, loopback, IPv6 link-local or nothing") \
	X(12, NO_ROUTE, unreachable, "the VPC has no route to the destination") \
	X(13, BLACKHOLE, policy, "the VPC's route to the destination is a blackhole") \
	X(14, NO_ENDPOINT, unreachable, "no sandbox of this VPC on this node has the destination address") \
	X(15, STALE_ENDPOINT, unreachable, "the sandbox with the destination address is being attached or detached") \
	X(16, NO_NEXTHOP, resource, "the route names a next hop that does not exist") \
	X(17, NO_UNDERLAY_ROUTE, unreachable, "the kernel has no unicast route to the VTEP") \
	X(18, TOO_BIG, unreachable, "with its Geneve header the packet exceeds the underlay's MTU") \
	X(19, NO_ROOM, resource, "the kernel refused to grow or shrink the packet") \
	X(20, NO_REWRITE, resource, "the kernel refused to rewrite a header") \
	X(21, OUTER_FRAGMENT, invalid, "the outer packet is a fragment") \
	X(22, OUTER_OPTIONS, invalid, "the outer IP header has options or extension headers") \
	X(23, GENEVE_VERSION, invalid, "the Geneve version is not 0") \
	X(24, GENEVE_CONTROL, policy, "a Geneve control packet (O bit), which no sandbox may see") \
	X(25, GENEVE_CRITICAL, invalid, "a critical Geneve option, none of which we know") \
	X(26, GENEVE_PROTOCOL, invalid, "the Geneve payload is neither Ethernet nor IP") \
	X(27, INNER_LENGTH, invalid, "a merged frame holds more than one inner packet") \
	X(28, MERGED_UDP, resource, "a UDP GSO frame came through the tunnel whole, and the kernel cannot take it apart any more") \
	X(29, HOST_FRAME, policy, "a program of the host sent into a sandbox's interface") \
	X(30, ND_REFUSED, policy, "a neighbour discovery message other than one that we answer") \
	X(31, NO_ADDRESS, policy, "the sandbox has no address of this family in its VPC") \
	X(32, GENEVE_OPTIONS, invalid, "the Geneve options do not add up to the announced length") \
	X(33, OUTER_CHECKSUM, invalid, "the outer UDP or IPv4 header checksum is wrong") \
	X(34, OUTER_LENGTH, invalid, "the lengths of the outer IP and UDP headers contradict the frame or each other") \
	X(35, ECN_INVALID, invalid, "the underlay marked congestion on a packet that does not take part in ECN") \
	X(36, EXTENSION_HEADER, policy, "an inner IPv6 extension header that could hide the destination, or too many") \
	X(37, DHCP_REFUSED, policy, "a DHCP message other than one that we answer") \
	X(38, GROUP_MEMBERSHIP, policy, "IGMP or MLD from a sandbox, which nobody is there to hear") \
	X(39, NO_PROGRAM, resource, "the program that the packet was to go on in is not there") \
	X(40, DHCP6_REFUSED, policy, "a DHCPv6 message other than one that we answer")

enum drop_reason {
#define X(number, name, class, text) DROP_##name = number,
	DROP_REASONS(X)
#undef X
	DROP_REASON_COUNT,
};

/* X(number, name, what the operator reads): worth counting, and not a drop. */
#define EVENTS(X) \
	X(0, UNKNOWN_VTEP, "Geneve for our VTEP from a sender that is no known VTEP, passed on untouched") \
	X(1, ARP_ANSWERED, "a sandbox asked for its gateway's MAC and got it") \
	X(2, WIRE_ARP_ANSWERED, "a peer asked through the tunnel for a sandbox's MAC and got it") \
	X(3, ND_ANSWERED, "a sandbox solicited its gateway's MAC and got it") \
	X(4, WIRE_ND_ANSWERED, "a peer solicited a sandbox's MAC through the tunnel and got it") \
	X(5, ROUTER_ANSWERED, "a sandbox solicited a router and got its advertisement") \
	X(6, DHCP_ANSWERED, "a sandbox asked for its configuration by DHCP and got an answer") \
	X(7, TOO_BIG_SENT, "a sandbox was told that its packet was too big for the way") \
	X(8, PATH_MTU_LEARNED, "a hop of the underlay said that our packets are too big for it") \
	X(9, MSS_CLAMPED, "the segment size in a TCP handshake of a sandbox was lowered to what the way carries") \
	X(10, DHCP6_ANSWERED, "a sandbox asked for its configuration by DHCPv6 and got an answer")

enum event_kind {
#define X(number, name, text) EVENT_##name = number,
	EVENTS(X)
#undef X
	EVENT_COUNT,
};

#endif /* GENEVE_ABI_H */
