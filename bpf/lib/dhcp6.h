/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* DHCP for IPv6 (RFC 8415): a guest that asks for its address gets it, as by DHCP for
 * IPv4. Nothing is remembered: each message is answered by what it says itself.
 *
 * There is one address, so one association (IA_NA) is answered, and of several the
 * last; a prefix is delegated to nobody. The router and the MTU are in the router's
 * advertisement, as DHCPv6 has no words for them.
 */
#ifndef DHCP6_H
#define DHCP6_H

#include "address.h"
#include "checksum.h"
#include "count.h"
#include "guest.h"
#include "inner.h"
#include "kernel.h"
#include "maps.h"
#include "outer.h"

#define DHCP6_SERVER_PORT 547
#define DHCP6_CLIENT_PORT 546
#define DHCP6_HOP_LIMIT 64
#define DHCP6_MAX 1536		/* bytes of UDP that we read */
#define DHCP6_OPTIONS_MAX 32	/* that we read of a message, those inside others too */
#define DHCP6_CLIENT_MAX 130	/* bytes of a DUID: section 11.1 */

#define DHCP6_SERVERS_FIRST to_be32(0xff020000)	/* ff02::1:2 */
#define DHCP6_SERVERS_LAST to_be32(0x00010002)

enum dhcp6_type {
	DHCP6_SOLICIT = 1,
	DHCP6_ADVERTISE,
	DHCP6_REQUEST,
	DHCP6_CONFIRM,
	DHCP6_RENEW,
	DHCP6_REBIND,
	DHCP6_REPLY,
	DHCP6_RELEASE,
	DHCP6_DECLINE,
	DHCP6_RECONFIGURE,
	DHCP6_INFORMATION,
};

enum dhcp6_option_code {
	DHCP6_CLIENT = 1,
	DHCP6_SERVER = 2,
	DHCP6_IA = 3,
	DHCP6_ADDRESS = 5,
	DHCP6_PREFERENCE = 7,
	DHCP6_STATUS = 13,
	DHCP6_RAPID = 14,
	DHCP6_DNS = 23,
};

#define DHCP6_NOT_ON_LINK to_be16(4)	/* a status; success is 0 */

/* Whose answer it is: the same server on every node, so that a guest that was restored
 * elsewhere goes on with it. A DUID of type 4 (RFC 6355).
 */
#define DUID_UUID to_be16(4)
#define DUID_WORD0 to_be32(0x74c36e29)
#define DUID_WORD1 to_be32(0x44c24e8b)
#define DUID_WORD2 to_be32(0xa41d64da)
#define DUID_WORD3 to_be32(0x842c435b)

struct dhcp6_option {
	__be16 code;
	__be16 length;		/* bytes of what follows */
};

struct dhcp6_server {
	struct dhcp6_option option;
	__be16 type;
	__be32 uuid[4];
} __attribute__((packed));

struct dhcp6_ia {
	struct dhcp6_option option;
	__be32 id;
	__be32 renew;		/* seconds */
	__be32 rebind;
};

struct dhcp6_address {
	struct dhcp6_option option;
	struct address address;
	__be32 preferred;	/* seconds */
	__be32 valid;
};

struct dhcp6_status {
	struct dhcp6_option option;
	__be16 status;
};

struct dhcp6_preference {
	struct dhcp6_option option;
	__u8 value;
} __attribute__((packed));

struct dhcp6_dns {
	struct dhcp6_option option;
	struct address servers[2];
};

/* What every answer begins with. */
struct dhcp6_front {
	__u8 pad[2];		/* for the alignment of what follows Ethernet */
	struct ethhdr eth;
	struct ipv6 ip;
	struct udp udp;
	__u8 type;
	__u8 transaction[3];
	struct dhcp6_server server;
};

#define DHCP6_FRONT (DHCP6_OPTIONS_AT + sizeof(struct dhcp6_server))

/* What an answer is made by. Kept where the verifier forgets it: see read_wish() in
 * dhcp.h.
 */
struct dhcp6_plan {
	__u32 length;		/* bytes of UDP */
	__u8 type;		/* of the question */
	__u8 leases;		/* 1: the guest gets its address, */
	__u8 another;		/* 1: and has or asks for a different one */
	__u8 pad;
};

/* The parts of an answer, of which those that it has are put one behind the other. */
struct dhcp6_parts {
	struct dhcp6_plan plan;
	struct dhcp6_front front;
	struct dhcp6_ia ia;
	struct dhcp6_address own;
	struct dhcp6_address other;
	struct dhcp6_dns dns;
	struct dhcp6_status status;
	struct dhcp6_option rapid;
	struct dhcp6_preference preference;
	__u8 client[256];	/* a mask's room; DHCP6_CLIENT_MAX and an option's 4 are used */
};

_Static_assert(sizeof(struct dhcp6_parts) <= SCRATCH_SIZE, "room for an answer");

#define DHCP6_ANSWER_MAX 384	/* bytes of a frame */

/* What of a message has one place. */
struct asked6 {
	struct ipv6 ip;
	struct udp udp;
	__u8 type;
	__u8 transaction[3];
};

#define DHCP6_UDP_AT (ETH_HLEN + sizeof(struct ipv6))
#define DHCP6_OPTIONS_AT (ETH_HLEN + sizeof(struct asked6))

/* Where the options that decide are in the frame; `none`: not there. */
struct dhcp6_places {
	__u64 none;
	__u64 client;
	__u64 server;
	__u64 rapid;
	__u64 ia;
	__u64 address;		/* in that IA: an option's body */
};

/* To every DHCPv6 server of the link. Nothing else is for one: section 16. */
static inline int is_dhcp6(struct __sk_buff *skb, const struct inner *inner)
{
	const struct address *to = &inner->destination;
	__be16 port;

	return inner->protocol == IPPROTO_UDP && inner->first &&
	       to->word[0] == DHCP6_SERVERS_FIRST && !to->word[1] &&
	       !to->word[2] && to->word[3] == DHCP6_SERVERS_LAST &&
	       inner->l4 + 4 <= inner->l3 + inner->length &&
	       !bpf_skb_load_bytes(skb, inner->l4 + 2, &port, sizeof(port)) &&
	       port == to_be16(DHCP6_SERVER_PORT);
}

/* Find the options, which go on to `end`. What is in an IA is read like the rest, as
 * long as it stays in there. Places alone are kept: see read_wish() in dhcp.h.
 */
static inline enum drop_reason find_options(struct __sk_buff *skb, __u64 end,
					    struct dhcp6_places *found)
{
	__u64 none = skb->len, client = none, server = none, rapid = none;
	__u64 ia = none, address = none, ia_end = 0, next;
	__u64 at = DHCP6_OPTIONS_AT;
	struct dhcp6_option option;
	__u32 length;
	int i;

#pragma clang loop unroll(disable)
	for (i = 0; i < DHCP6_OPTIONS_MAX && at < end; i++) {
		if (bpf_skb_load_bytes(skb, at, &option, sizeof(option)))
			return DROP_DHCP6_REFUSED;
		length = from_be16(option.length);
		next = at + sizeof(option) + length;
		if (at < ia_end) {
			if (next > ia_end)
				return DROP_DHCP6_REFUSED;
			if (option.code == to_be16(DHCP6_ADDRESS) &&
			    length >= sizeof(struct dhcp6_address) -
					      sizeof(option))
				address = at + sizeof(option);
			at = next;
			continue;
		}
		if (next > end)
			return DROP_DHCP6_REFUSED;
		if (option.code == to_be16(DHCP6_CLIENT))
			client = at;
		if (option.code == to_be16(DHCP6_SERVER))
			server = at;
		if (option.code == to_be16(DHCP6_RAPID))
			rapid = at;
		if (option.code == to_be16(DHCP6_IA)) {
			if (length < sizeof(struct dhcp6_ia) - sizeof(option))
				return DROP_DHCP6_REFUSED;
			ia = at;
			address = none;
			ia_end = next;
			next = at + sizeof(struct dhcp6_ia);
		}
		at = next;
	}
	if (at != end)
		return DROP_DHCP6_REFUSED;
	found->none = none;
	found->client = client;
	found->server = server;
	found->rapid = rapid;
	found->ia = ia;
	found->address = address;
	return DROP_NONE;
}

/* Whether a message names us as its server. */
static inline int is_to_us(struct __sk_buff *skb, __u64 at)
{
	struct dhcp6_server server;

	return !bpf_skb_load_bytes(skb, at, &server, sizeof(server)) &&
	       server.option.length ==
		       to_be16(sizeof(server) - sizeof(server.option)) &&
	       server.type == DUID_UUID && server.uuid[0] == DUID_WORD0 &&
	       server.uuid[1] == DUID_WORD1 && server.uuid[2] == DUID_WORD2 &&
	       server.uuid[3] == DUID_WORD3;
}

/* Sections 16.2 to 16.12: whether a message of this type must be heard. Who lets an
 * address go needs no more than a word; who declines one is heard by the counter.
 */
static inline int is_valid(struct __sk_buff *skb, __u8 type,
			   const struct dhcp6_places *found)
{
	int names = found->server != found->none;

	if (type == DHCP6_INFORMATION)
		return found->ia == found->none &&
		       (!names || is_to_us(skb, found->server));
	if (found->client == found->none)
		return 0;
	if (type == DHCP6_SOLICIT || type == DHCP6_REBIND)
		return !names && found->ia != found->none;
	if (type == DHCP6_CONFIRM)
		return !names && found->address != found->none;
	if (type == DHCP6_REQUEST || type == DHCP6_RENEW)
		return names && found->ia != found->none &&
		       is_to_us(skb, found->server);
	return type == DHCP6_RELEASE && names && is_to_us(skb, found->server);
}

static inline void set_option(struct dhcp6_option *option, __u16 code,
			      __u16 length)
{
	option->code = to_be16(code);
	option->length = to_be16(length);
}

static inline void set_address(struct dhcp6_address *option, __u32 seconds)
{
	set_option(&option->option, DHCP6_ADDRESS,
		   sizeof(*option) - sizeof(option->option));
	option->preferred = to_be32(seconds);
	option->valid = to_be32(seconds);
}

/* Put a part behind what is there; not 0 if that failed. */
static inline long append(struct __sk_buff *skb, __u64 *at, const void *part,
			  const __u32 size)
{
	long failed = bpf_skb_store_bytes(skb, *at, part, size, 0);

	*at += size;
	return failed;
}

/* The answer takes the question's place. */
static inline int answer_dhcp6(struct __sk_buff *skb,
			       const struct node_config *config,
			       const struct binding *from,
			       const struct inner *inner)
{
	struct address own = config->guest_address6, other = {};
	__u32 length, bytes = skb->len, zero = 0;
	struct dhcp6_places found;
	volatile struct dhcp6_plan *plan;
	struct dhcp6_parts *parts;
	enum drop_reason reason;
	struct asked6 asked;
	__u64 at, client = 0, pseudo;
	__be16 field, unsummed;
	long failed, sum;

	if (inner->l4 != DHCP6_UDP_AT || skb->gso_size)
		return drop(skb, DIRECTION_TX, DROP_DHCP6_REFUSED);
	if (bpf_skb_load_bytes(skb, ETH_HLEN, &asked, sizeof(asked)))
		return drop(skb, DIRECTION_TX, DROP_SHORT_FRAME);
	length = from_be16(asked.udp.length);
	if (length < DHCP6_OPTIONS_AT - DHCP6_UDP_AT || length > DHCP6_MAX ||
	    length > from_be16(asked.ip.payload))
		return drop(skb, DIRECTION_TX, DROP_DHCP6_REFUSED);
	/* Over IPv6 there is no datagram without a checksum; as for one that a
	 * device is to make, see answer_dhcp().
	 */
	pseudo = pseudo_sum(&asked.ip.source, &asked.ip.destination, length,
			    IPPROTO_UDP);
	unsummed = fold(pseudo);
	if (!asked.udp.checksum ||
	    (asked.udp.checksum != unsummed &&
	     sum_bytes(skb, DHCP6_UDP_AT, length, pseudo, DHCP6_MAX) != 0xffff))
		return drop(skb, DIRECTION_TX, DROP_DHCP6_REFUSED);
	if (is_native(from))
		own = from->address6;
	if (!is_link_local(&asked.ip.source) &&
	    (!is_set(&own) || !same_address(&asked.ip.source, &own)))
		return drop(skb, DIRECTION_TX, DROP_SPOOFED_ADDRESS);
	reason = find_options(skb, DHCP6_UDP_AT + length, &found);
	if (reason)
		return drop(skb, DIRECTION_TX, reason);
	if (!is_valid(skb, asked.type, &found))
		return drop(skb, DIRECTION_TX, DROP_DHCP6_REFUSED);

	parts = (void *)scratch_row.lookup(&zero);
	if (!parts)
		return drop(skb, DIRECTION_TX, DROP_NO_REWRITE);
	__builtin_memset(parts, 0, sizeof(*parts));
	plan = &parts->plan;
	plan->type = asked.type;
	if (found.address != found.none) {
		if (bpf_skb_load_bytes(skb, found.address, &other,
				       sizeof(other)))
			return drop(skb, DIRECTION_TX, DROP_SHORT_FRAME);
		plan->another = !is_set(&own) || !same_address(&other, &own);
	}
	if (found.client != found.none) {
		if (bpf_skb_load_bytes(skb, found.client + 2, &field,
				       sizeof(field)))
			return drop(skb, DIRECTION_TX, DROP_SHORT_FRAME);
		client = from_be16(field);
		if (!client || client > DHCP6_CLIENT_MAX)
			return drop(skb, DIRECTION_TX, DROP_DHCP6_REFUSED);
		/* With the option's four bytes, in a form that every verifier
		 * follows.
		 */
		client += sizeof(struct dhcp6_option) - 1;
		asm volatile("" : "+r"(client));
		client = (client & 0xff) + 1;
		if (bpf_skb_load_bytes(skb, found.client, parts->client,
				       client))
			return drop(skb, DIRECTION_TX, DROP_SHORT_FRAME);
	}
	if (found.ia != found.none) {
		if (bpf_skb_load_bytes(skb, found.ia, &parts->ia,
				       sizeof(parts->ia)))
			return drop(skb, DIRECTION_TX, DROP_SHORT_FRAME);
		plan->leases = asked.type != DHCP6_CONFIRM &&
			       asked.type != DHCP6_RELEASE;
	}
	if (plan->leases && !is_set(&own))
		return drop(skb, DIRECTION_TX, DROP_DHCP6_REFUSED);
	if (bpf_skb_change_tail(skb, DHCP6_ANSWER_MAX, 0))
		return drop(skb, DIRECTION_TX, DROP_NO_ROOM);

	at = bytes;	/* something that the verifier does not know */
	asm volatile("" : "+r"(at));
	at -= bytes;
	at += DHCP6_FRONT;
	failed = 0;
	if (plan->leases && plan->type == DHCP6_REQUEST && plan->another) {
		set_option(&parts->ia.option, DHCP6_IA,
			   sizeof(parts->ia) - sizeof(parts->ia.option) +
				   sizeof(parts->status));
		parts->ia.renew = 0;
		parts->ia.rebind = 0;
		set_option(&parts->status.option, DHCP6_STATUS, 2);
		parts->status.status = DHCP6_NOT_ON_LINK;
		failed |= append(skb, &at, &parts->ia, sizeof(parts->ia));
		failed |= append(skb, &at, &parts->status,
				 sizeof(parts->status));
	} else if (plan->leases) {
		/* Another that it has is to be used no more. */
		if (plan->type == DHCP6_SOLICIT)
			plan->another = 0;
		set_option(&parts->ia.option, DHCP6_IA,
			   sizeof(parts->ia) - sizeof(parts->ia.option) +
				   sizeof(parts->own) +
				   (plan->another ? sizeof(parts->other) : 0));
		parts->ia.renew = to_be32(DHCP_RENEW);
		parts->ia.rebind = to_be32(DHCP_REBIND);
		set_address(&parts->own, DHCP_LEASE);
		parts->own.address = own;
		failed |= append(skb, &at, &parts->ia, sizeof(parts->ia));
		failed |= append(skb, &at, &parts->own, sizeof(parts->own));
		if (plan->another) {
			set_address(&parts->other, 0);
			parts->other.address = other;
			failed |= append(skb, &at, &parts->other,
					 sizeof(parts->other));
		}
	} else if (plan->type != DHCP6_INFORMATION) {
		set_option(&parts->status.option, DHCP6_STATUS, 2);
		if (plan->type == DHCP6_CONFIRM && plan->another)
			parts->status.status = DHCP6_NOT_ON_LINK;
		failed |= append(skb, &at, &parts->status,
				 sizeof(parts->status));
	}
	parts->front.type = DHCP6_REPLY;
	if (plan->type == DHCP6_SOLICIT && found.rapid != found.none) {
		set_option(&parts->rapid, DHCP6_RAPID, 0);
		failed |= append(skb, &at, &parts->rapid, sizeof(parts->rapid));
	} else if (plan->type == DHCP6_SOLICIT) {
		/* There is no other: do not wait for one (section 18.2.1). */
		parts->front.type = DHCP6_ADVERTISE;
		set_option(&parts->preference.option, DHCP6_PREFERENCE, 1);
		parts->preference.value = 255;
		failed |= append(skb, &at, &parts->preference,
				 sizeof(parts->preference));
	}
	if (is_set(&config->dns6[0]) && plan->type != DHCP6_CONFIRM &&
	    plan->type != DHCP6_RELEASE) {
		parts->dns.servers[0] = config->dns6[0];
		parts->dns.servers[1] = config->dns6[1];
		if (is_set(&config->dns6[1])) {
			set_option(&parts->dns.option, DHCP6_DNS, 32);
			failed |= append(skb, &at, &parts->dns,
					 sizeof(parts->dns));
		} else {
			set_option(&parts->dns.option, DHCP6_DNS, 16);
			failed |= append(skb, &at, &parts->dns,
					 sizeof(parts->dns) -
						 sizeof(struct address));
		}
	}
	if (client) {
		failed |= bpf_skb_store_bytes(skb, at, parts->client, client, 0);
		at += client;
	}

	plan->length = (__u32)at - DHCP6_UDP_AT;
	length = plan->length;
	__builtin_memcpy(parts->front.eth.h_source, config->gateway_mac,
			 ETH_ALEN);
	__builtin_memcpy(parts->front.eth.h_dest, config->guest_mac, ETH_ALEN);
	parts->front.eth.h_proto = to_be16(ETH_P_IPV6);
	parts->front.ip.start = to_be32(6U << 28);
	parts->front.ip.payload = to_be16((__u16)length);
	parts->front.ip.next = IPPROTO_UDP;
	parts->front.ip.hop_limit = DHCP6_HOP_LIMIT;
	parts->front.ip.source = config->gateway_address6;
	parts->front.ip.destination = asked.ip.source;
	parts->front.udp.source = to_be16(DHCP6_SERVER_PORT);
	parts->front.udp.destination = to_be16(DHCP6_CLIENT_PORT);
	parts->front.udp.length = to_be16((__u16)length);
	__builtin_memcpy(parts->front.transaction, asked.transaction,
			 sizeof(asked.transaction));
	set_option(&parts->front.server.option, DHCP6_SERVER,
		   sizeof(parts->front.server) -
			   sizeof(parts->front.server.option));
	parts->front.server.type = DUID_UUID;
	parts->front.server.uuid[0] = DUID_WORD0;
	parts->front.server.uuid[1] = DUID_WORD1;
	parts->front.server.uuid[2] = DUID_WORD2;
	parts->front.server.uuid[3] = DUID_WORD3;
	pseudo = pseudo_sum(&config->gateway_address6, &asked.ip.source, length,
			    IPPROTO_UDP);
	failed |= bpf_skb_store_bytes(skb, 0, &parts->front.eth, DHCP6_FRONT,
				      0) |
		  bpf_skb_change_tail(skb, (__u32)at, 0);
	field = fold(pseudo);
	if (asked.udp.checksum != unsummed) {
		sum = sum_bytes(skb, DHCP6_UDP_AT, length, pseudo,
				DHCP6_ANSWER_MAX);
		failed |= sum < 0;
		field = (__be16)~sum;
		/* 0 would mean that there is none. */
		if (!field)
			field = 0xffff;
	}
	if (failed ||
	    bpf_skb_store_bytes(skb, DHCP6_UDP_AT + 6, &field, sizeof(field), 0))
		return drop_bytes(bytes, DIRECTION_TX, DROP_NO_REWRITE);
	count_event(skb, EVENT_DHCP6_ANSWERED);
	return bpf_redirect(skb->ifindex, 0);
}

#endif /* DHCP6_H */
