/* SPDX-License-Identifier: Apache-2.0 */
/* A small client of the geneve-ebpf agent, for callers that attach on their hot path.
 *
 * One connection, kept, over the agent's Unix socket. Nothing is allocated: a
 * client is a struct of the caller's, with a buffer of fixed size in it. Every
 * call returns GNV_OK or why not, and after a failure `message` and `hint` of the
 * client say it in words. Not for several threads at once: give each its own.
 */
#ifndef GENEVE_EBPF_H
#define GENEVE_EBPF_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define GNV_DEFAULT_SOCKET "/run/geneve-ebpf/default/api.sock"
#define GNV_HOST_VARIABLE "GENEVE_EBPF_HOST" /* unix:///path/of/the/socket */

/* X(number, name as in the API's answers, may the same call succeed later?)
 * The agent's codes, all of them; a code of a newer agent shows as GNV_INTERNAL.
 */
#define GNV_CODES(X) \
	X(1, BAD_REQUEST, bad_request, 0) \
	X(2, BAD_NAME, bad_name, 0) \
	X(3, BAD_ADDRESS, bad_address, 0) \
	X(4, BAD_PREFIX, bad_prefix, 0) \
	X(5, BAD_VNI, bad_vni, 0) \
	X(6, BAD_MAC, bad_mac, 0) \
	X(7, BAD_MTU, bad_mtu, 0) \
	X(8, BAD_CONFIG, bad_config, 0) \
	X(9, ADDRESS_OUTSIDE_VPC, address_outside_vpc, 0) \
	X(10, ADDRESS_RESERVED, address_reserved, 0) \
	X(11, PREFIX_OVERLAPS_GUEST, prefix_overlaps_guest, 0) \
	X(12, VTEP_FAMILY, vtep_family, 0) \
	X(13, PATH_UNKNOWN, path_unknown, 0) \
	X(14, METHOD_NOT_ALLOWED, method_not_allowed, 0) \
	X(15, TOO_LARGE, too_large, 0) \
	X(16, VPC_NOT_FOUND, vpc_not_found, 0) \
	X(17, VTEP_NOT_FOUND, vtep_not_found, 0) \
	X(18, ROUTE_NOT_FOUND, route_not_found, 0) \
	X(19, SANDBOX_NOT_FOUND, sandbox_not_found, 0) \
	X(20, SLOT_NOT_FOUND, slot_not_found, 0) \
	X(21, VPC_EXISTS, vpc_exists, 0) \
	X(22, VNI_TAKEN, vni_taken, 0) \
	X(23, PREFIX_OVERLAP, prefix_overlap, 0) \
	X(24, VPC_IN_USE, vpc_in_use, 0) \
	X(25, VTEP_IN_USE, vtep_in_use, 0) \
	X(26, ROUTE_EXISTS, route_exists, 0) \
	X(27, SANDBOX_EXISTS, sandbox_exists, 0) \
	X(28, ADDRESS_IN_USE, address_in_use, 0) \
	X(29, ADDRESS_RESTING, address_resting, 1) \
	X(30, SLOT_TAKEN, slot_taken, 0) \
	X(31, NODE_IN_USE, node_in_use, 0) \
	X(32, GENERATION_MISMATCH, generation_mismatch, 0) \
	X(33, BUSY, busy, 1) \
	X(34, NO_SLOT, no_slot, 1) \
	X(35, NO_ADDRESS, no_address, 1) \
	X(36, MAP_FULL, map_full, 0) \
	X(37, DEGRADED, degraded, 1) \
	X(38, NOT_PERMITTED, not_permitted, 0) \
	X(39, AGENT_UNREACHABLE, agent_unreachable, 1) \
	X(40, AGENT_RUNNING, agent_running, 0) \
	X(41, KERNEL_UNSUPPORTED, kernel_unsupported, 0) \
	X(42, LOAD_FAILED, load_failed, 0) \
	X(43, LAYOUT_MISMATCH, layout_mismatch, 0) \
	X(44, MOUNT_NAMESPACE, mount_namespace, 0) \
	X(45, NODE_SETUP, node_setup, 0) \
	X(46, STATE_STORE, state_store, 0) \
	X(47, INTERNAL, internal, 0) \
	X(48, OPERATION_NOT_FOUND, operation_not_found, 0) \
	X(49, EVENTS_GONE, events_gone, 0) \
	X(50, OPERATION_STATE, operation_state, 0) \
	X(51, KEY_IN_USE, key_in_use, 1) \
	X(52, KEY_REUSED, key_reused, 0) \
	X(53, NODE_CORDONED, node_cordoned, 1) \
	X(54, DEADLINE_EXCEEDED, deadline_exceeded, 1) \
	X(55, TAP_BUSY, tap_busy, 1) \
	X(56, BAD_NETNS, bad_netns, 0) \
	X(57, INTERFACE_EXISTS, interface_exists, 0) \
	X(58, BAD_INTERFACE, bad_interface, 0)

enum gnv_code {
	GNV_OK = 0,
#define X(number, name, slug, retryable) GNV_##name = number,
	GNV_CODES(X)
#undef X
};

/* A client. Use the functions; read `message` and `hint` after a failure, and
 * `retry_after`, the seconds after which the agent would like to be asked again
 * (0: it did not say).
 */
struct gnv_client {
	int fd; /* -1: not connected */
	int timeout_ms;
	int retry_after;
	int passed; /* the descriptor that came with an answer; -1: none */
	char path[108]; /* of the socket */
	char message[256];
	char hint[256];
	int sleeps, sleep_next; /* answers to sleep for, from now on and after a miss */
	long long answered; /* when the last answer came, in nanoseconds */
	size_t used; /* bytes in `buffer` */
	char buffer[8192]; /* a request, then its answer */
};

/* What a sandbox sees on eth0, the same in every slot. */
struct gnv_guest {
	char address[16], address6[46];
	char gateway[16], gateway6[46];
	char mac[18], gateway_mac[18];
	uint32_t mtu; /* bytes */
};

struct gnv_slot {
	char id[16]; /* "slot-3": what attach and release take */
	char kind[24];
	char netns[256]; /* path; "" for a kind that has none */
	char tap[16]; /* "" for a kind that has none */
	char host_interface[16];
	uint32_t host_ifindex;
};

struct gnv_sandbox {
	char address[16], address6[46]; /* in its VPC; "" where it has none */
	char mac[18];
	uint32_t vni;
	uint64_t generation; /* for gnv_detach */
	uint64_t agent_ns; /* what the agent took; 0 if it was attached already */
	int existed; /* it was attached so already */
	struct gnv_slot slot;
	struct gnv_guest guest;
};

/* What a reservation may say; NULL is the node's default. */
struct gnv_reserve_options {
	const char *kind; /* "namespace", "tap", "host-tap" */
	const uint32_t *owner; /* the uid that may open the tap */
};

/* What an attach may say beyond sandbox and VPC; NULL is "choose for me". */
struct gnv_attach_options {
	const char *address; /* IPv4 */
	const char *address6;
	const char *slot; /* a reserved one */
};

/* Prepare a client for the agent that `host` names ("unix:///path"); NULL: the one
 * that GENEVE_EBPF_HOST names, else node `default`. timeout_ms: how long the agent
 * may stay silent. Connects at the first call.
 */
int gnv_open(struct gnv_client *client, const char *host, int timeout_ms);

/* Drop the connection; the next call opens a new one. */
void gnv_close(struct gnv_client *client);

/* Take a ready slot before its tenant is known. options and guest may be NULL. */
int gnv_reserve(struct gnv_client *client, const struct gnv_reserve_options *options,
		struct gnv_slot *slot, struct gnv_guest *guest);

/* Make a reserved slot in a network namespace of the caller's, at that path. interface: what it
 * is called in there; NULL is eth0. Safe to repeat: *existed then says that it was there before,
 * and it may be attached. guest and existed may be NULL.
 */
int gnv_add_slot(struct gnv_client *client, const char *netns, const char *interface,
		 struct gnv_slot *slot, struct gnv_guest *guest, int *existed);

/* Give a reserved slot back; it is destroyed. */
int gnv_release(struct gnv_client *client, const char *slot);

/* Open the tap of a slot that is reserved or attached: *tap is a descriptor, the caller's to
 * close, and not inherited by what is executed. For whoever may not open /dev/net/tun. Frames
 * have virtio's header before them, of 10 bytes until it is changed (TUNSETVNETHDRSZ), and
 * offloads are off. GNV_TAP_BUSY if somebody has the tap open.
 */
int gnv_open_tap(struct gnv_client *client, const char *slot, int *tap);

/* Attach; when this returns GNV_OK, packets pass. Safe to repeat: whoever is
 * attached so already stays so. options and sandbox may be NULL.
 */
int gnv_attach(struct gnv_client *client, const char *name, const char *vpc,
	       const struct gnv_attach_options *options, struct gnv_sandbox *sandbox);

/* Detach. generation: as attach told it, so that a successor of the same name stays;
 * 0: whoever it is. GNV_OK too if nobody of that name is attached.
 */
int gnv_detach(struct gnv_client *client, const char *name, uint64_t generation);

/* A code's name as in the API: "no_slot". "ok" for GNV_OK, "internal" for no code. */
const char *gnv_code_name(int code);

/* May the same call succeed later, unchanged? */
int gnv_is_retryable(int code);

#ifdef __cplusplus
}
#endif
#endif
