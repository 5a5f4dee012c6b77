/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* DHCP for IPv4 (RFC 2131, 2132): the server that a guest asks, microVMs above all.
 *
 * A slot has one address to lease, the guest's, and that for ever, so there is
 * no state to keep and no daemon to run: each message is answered by what it
 * says itself. What a client may want to know is in every answer, asked for or
 * not, at the same place: an answer has one length.
 */
#ifndef DHCP_H
#define DHCP_H

#include "checksum.h"
#include "count.h"
#include "guest.h"
#include "inner.h"
#include "kernel.h"
#include "maps.h"
#include "outer.h"

#define DHCP_SERVER_PORT 67
#define DHCP_CLIENT_PORT 68
#define DHCP_MAGIC to_be32(0x63825363)
#define DHCP_BROADCAST to_be16(0x8000)	/* the client hears nothing else yet */
#define DHCP_TTL 64
#define DHCP_MAX 1536		/* bytes of UDP that we read */
#define DHCP_OPTIONS_MAX 32	/* that we read of a message, pads included */
#define DHCP_CLIENT_MAX 64	/* bytes of an identifier that we repeat */

#define EVERYBODY to_be32(0xffffffff)	/* on this link */

enum dhcp_type {
	DHCP_DISCOVER = 1,
	DHCP_OFFER,
	DHCP_REQUEST,
	DHCP_DECLINE,
	DHCP_ACK,
	DHCP_NAK,
	DHCP_RELEASE,
	DHCP_INFORM,
};

enum dhcp_option {
	DHCP_PAD = 0,
	DHCP_NETMASK = 1,
	DHCP_ROUTER = 3,
	DHCP_DNS = 6,
	DHCP_MTU = 26,
	DHCP_ADDRESS = 50,
	DHCP_LEASE_TIME = 51,
	DHCP_TYPE = 53,
	DHCP_SERVER = 54,
	DHCP_RENEWAL_TIME = 58,
	DHCP_REBINDING_TIME = 59,
	DHCP_CLIENT = 61,
	DHCP_END = 255,
};

struct bootp {
	__u8 operation;		/* 1: from a client, 2: to one */
	__u8 hardware;
	__u8 hardware_length;
	__u8 hops;
	__be32 transaction;
	__be16 seconds;
	__be16 flags;
	__be32 client;		/* its address, if it has one already */
	__be32 your;
	__be32 server;
	__be32 relay;
	__u8 mac[6];
	__u8 mac_end[10];
};

/* Zero in what we answer. */
#define DHCP_RELAY_AT (ETH_HLEN + sizeof(struct iphdr) + sizeof(struct udp) + 24)
#define DHCP_OPTIONS_AT (DHCP_RELAY_AT + 20 + 192 + 4)

struct dhcp_number {
	__u8 code;
	__u8 length;
	__be32 value;
} __attribute__((packed));

/* What an answer has no use for stays zero, which is padding. */
struct dhcp_options {
	__u8 type_code;
	__u8 type_length;
	__u8 type;
	struct dhcp_number server;
	struct dhcp_number lease;
	struct dhcp_number renewal;
	struct dhcp_number rebinding;
	struct dhcp_number netmask;
	struct dhcp_number router;
	__u8 mtu_code;
	__u8 mtu_length;
	__be16 mtu;
	__u8 dns_code;
	__u8 dns_length;
	__be32 dns[2];
	__u8 client_code;	/* as the client said it: RFC 6842 */
	__u8 client_length;
	__u8 client[DHCP_CLIENT_MAX];
	__u8 end;
} __attribute__((packed));

struct dhcp_answer {
	__u8 pad[2];		/* for the alignment of what follows Ethernet */
	struct ethhdr eth;
	struct iphdr ip;
	struct udp udp;
	struct bootp bootp;
	__u8 names[192];	/* of a server and a file to boot: none */
	__be32 magic;
	struct dhcp_options options;
};

#define DHCP_UDP (sizeof(struct udp) + sizeof(struct bootp) + 192 + \
		  sizeof(__be32) + sizeof(struct dhcp_options))
#define DHCP_FRAME (ETH_HLEN + sizeof(struct iphdr) + DHCP_UDP)

/* What of a message has one place. */
struct asked {
	struct iphdr ip;
	struct udp udp;
	struct bootp bootp;
};

/* What decides, of a message's options; 0: not there. */
struct dhcp_wish {
	__be32 address;
	__be32 server;
	__u32 client_at;	/* offset of its identifier in the frame */
	__u8 client_length;
	__u8 type;
	__u8 pad[2];
};

/* Read the options, which go on to `end`.
 *
 * The verifier walks what follows anew for every constant that may be in a
 * variable. So the loop leaves places, and what is missing is read like the rest,
 * where zeros are.
 */
static inline enum drop_reason read_wish(struct __sk_buff *skb, __u32 end,
					 struct dhcp_wish *wish)
{
	__u64 type = DHCP_RELAY_AT, address = DHCP_RELAY_AT;
	__u64 server = DHCP_RELAY_AT, client = DHCP_RELAY_AT + 1;
	__u64 at = DHCP_OPTIONS_AT;
	__u8 code, length;
	int i;

#pragma clang loop unroll(disable)
	for (i = 0; i < DHCP_OPTIONS_MAX && at < end; i++) {
		if (bpf_skb_load_bytes(skb, at++, &code, sizeof(code)))
			return DROP_SHORT_FRAME;
		if (code == DHCP_PAD)
			continue;
		if (code == DHCP_END)
			break;
		if (bpf_skb_load_bytes(skb, at++, &length, sizeof(length)))
			return DROP_DHCP_REFUSED;
		if (code == DHCP_TYPE && length == sizeof(wish->type))
			type = at;
		if (code == DHCP_ADDRESS && length == sizeof(wish->address))
			address = at;
		if (code == DHCP_SERVER && length == sizeof(wish->server))
			server = at;
		if (code == DHCP_CLIENT && length <= DHCP_CLIENT_MAX)
			client = at;
		at += length;
	}
	if (i == DHCP_OPTIONS_MAX || at > end)
		return DROP_DHCP_REFUSED;
	wish->client_at = client;
	if (bpf_skb_load_bytes(skb, type, &wish->type, sizeof(wish->type)) ||
	    bpf_skb_load_bytes(skb, address, &wish->address,
			       sizeof(wish->address)) ||
	    bpf_skb_load_bytes(skb, server, &wish->server,
			       sizeof(wish->server)) ||
	    bpf_skb_load_bytes(skb, client - 1, &wish->client_length,
			       sizeof(wish->client_length)))
		return DROP_SHORT_FRAME;
	return DROP_NONE;
}

/* The type of the answer that is due; 0: none. */
static inline __u8 answer_to(const struct node_config *config, __be32 guest,
			     const struct bootp *bootp,
			     const struct dhcp_wish *wish)
{
	__be32 address = wish->address ? wish->address : bootp->client;

	if (!guest)
		return 0;
	/* The client took another server's offer. */
	if (wish->server && wish->server != config->gateway_address)
		return 0;
	if (wish->type == DHCP_DISCOVER)
		return DHCP_OFFER;
	if (wish->type == DHCP_INFORM)
		return bootp->client == guest ? DHCP_ACK : 0;
	/* Another address is what a restored snapshot had where it was made. */
	if (wish->type == DHCP_REQUEST && address)
		return address == guest ? DHCP_ACK : DHCP_NAK;
	return 0;
}

static inline void set_number(struct dhcp_number *option, __u8 code,
			      __be32 value)
{
	option->code = code;
	option->length = sizeof(option->value);
	option->value = value;
}

static inline void fill_options(struct dhcp_options *options,
				const struct node_config *config,
				const struct binding *from, int leases)
{
	struct node_state *state;
	__u32 zero = 0;

	if (leases) {
		set_number(&options->lease, DHCP_LEASE_TIME,
			   to_be32(DHCP_LEASE));
		set_number(&options->renewal, DHCP_RENEWAL_TIME,
			   to_be32(DHCP_RENEW));
		set_number(&options->rebinding, DHCP_REBINDING_TIME,
			   to_be32(DHCP_REBIND));
	}
	set_number(&options->netmask, DHCP_NETMASK,
		   is_native(from) ? EVERYBODY : config->guest_netmask);
	set_number(&options->router, DHCP_ROUTER, config->gateway_address);
	state = node_state.lookup(&zero);
	if (state) {
		options->mtu_code = DHCP_MTU;
		options->mtu_length = sizeof(options->mtu);
		options->mtu = to_be16((__u16)state->slot_mtu);
	}
	if (config->dns[0]) {
		options->dns_code = DHCP_DNS;
		options->dns_length = config->dns[1] ? 8 : 4;
		options->dns[0] = config->dns[0];
		options->dns[1] = config->dns[1];
	}
}

/* A datagram to the same port of any other address is the VPC's. */
static inline int is_dhcp(struct __sk_buff *skb,
			  const struct node_config *config,
			  const struct inner *inner)
{
	__be16 port;

	return inner->protocol == IPPROTO_UDP && inner->first &&
	       inner->l4 + 4 <= inner->l3 + inner->length &&
	       (inner->ip.v4.daddr == EVERYBODY ||
		inner->ip.v4.daddr == config->gateway_address) &&
	       !bpf_skb_load_bytes(skb, inner->l4 + 2, &port, sizeof(port)) &&
	       port == to_be16(DHCP_SERVER_PORT);
}

/* The answer takes the question's place. */
static inline int answer_dhcp(struct __sk_buff *skb,
			      const struct node_config *config,
			      const struct binding *from,
			      const struct inner *inner)
{
	const __be32 guest = guest_ipv4(config, from);
	const __u32 udp_at = ETH_HLEN + sizeof(struct iphdr);
	__u32 length, end, bytes = skb->len, zero = 0;
	struct dhcp_answer *answer;
	enum drop_reason reason;
	struct dhcp_wish wish;
	struct asked asked;
	volatile __u8 *type;
	__u64 pseudo, client;
	__be16 unsummed;
	__be32 magic;

	if (inner->l4 != udp_at || skb->gso_size)
		return drop(skb, DIRECTION_TX, DROP_DHCP_REFUSED);
	if (bpf_skb_load_bytes(skb, ETH_HLEN, &asked, sizeof(asked)) ||
	    bpf_skb_load_bytes(skb, DHCP_OPTIONS_AT - sizeof(magic), &magic,
			       sizeof(magic)))
		return drop(skb, DIRECTION_TX, DROP_SHORT_FRAME);
	length = from_be16(asked.udp.length);
	end = udp_at + length;
	if (end < DHCP_OPTIONS_AT || length > DHCP_MAX ||
	    end > ETH_HLEN + from_be16(asked.ip.tot_len) ||
	    (asked.ip.frag_off & to_be16(IP_MF)) ||
	    header_sum(&asked.ip) != 0xffff)
		return drop(skb, DIRECTION_TX, DROP_DHCP_REFUSED);
	/* A client that sends through a socket leaves the checksum to the device,
	 * with the pseudo-header's sum in the field. The frame keeps saying so:
	 * then the answer's must be of that kind too.
	 */
	pseudo = (__u64)asked.ip.saddr + asked.ip.daddr + to_be32(IPPROTO_UDP) +
		 to_be32(length);
	unsummed = fold(pseudo);
	if (asked.udp.checksum != unsummed && asked.udp.checksum &&
	    sum_bytes(skb, udp_at, length, pseudo, DHCP_MAX) != 0xffff)
		return drop(skb, DIRECTION_TX, DROP_DHCP_REFUSED);
	if (asked.bootp.operation != 1 || asked.bootp.hardware != 1 ||
	    asked.bootp.hardware_length != ETH_ALEN || asked.bootp.relay ||
	    !same_mac(asked.bootp.mac, config->guest_mac) ||
	    magic != DHCP_MAGIC)
		return drop(skb, DIRECTION_TX, DROP_DHCP_REFUSED);
	/* Another than the guest's is what it had elsewhere, and asks for again. */
	if (asked.ip.saddr && asked.ip.saddr != guest &&
	    asked.ip.saddr != asked.bootp.client)
		return drop(skb, DIRECTION_TX, DROP_SPOOFED_ADDRESS);
	reason = read_wish(skb, end, &wish);
	if (reason)
		return drop(skb, DIRECTION_TX, reason);
	answer = (void *)scratch_row.lookup(&zero);
	if (!answer)
		return drop(skb, DIRECTION_TX, DROP_NO_REWRITE);
	__builtin_memset(answer, 0, sizeof(*answer));
	/* Read from there again: see read_wish(). */
	type = &answer->options.type;
	*type = answer_to(config, guest, &asked.bootp, &wish);
	if (!*type)
		return drop(skb, DIRECTION_TX, DROP_DHCP_REFUSED);

	__builtin_memcpy(answer->eth.h_source, config->gateway_mac, ETH_ALEN);
	answer->eth.h_proto = to_be16(ETH_P_IP);
	answer->ip.version = 4;
	answer->ip.ihl = 5;
	answer->ip.tot_len = to_be16(sizeof(answer->ip) + DHCP_UDP);
	answer->ip.frag_off = to_be16(IP_DF);
	answer->ip.ttl = DHCP_TTL;
	answer->ip.protocol = IPPROTO_UDP;
	answer->ip.saddr = config->gateway_address;
	answer->udp.source = to_be16(DHCP_SERVER_PORT);
	answer->udp.destination = to_be16(DHCP_CLIENT_PORT);
	answer->udp.length = to_be16(DHCP_UDP);
	answer->bootp.operation = 2;
	answer->bootp.hardware = 1;
	answer->bootp.hardware_length = ETH_ALEN;
	answer->bootp.transaction = asked.bootp.transaction;
	answer->bootp.flags = asked.bootp.flags;
	__builtin_memcpy(answer->bootp.mac, config->guest_mac, ETH_ALEN);
	if (*type == DHCP_ACK)
		answer->bootp.client = asked.bootp.client;
	if (*type != DHCP_NAK && wish.type != DHCP_INFORM)
		answer->bootp.your = guest;
	/* RFC 2131 section 4.1: to its address if it uses that already, to all if
	 * it asks for that, and a refusal to all in any case.
	 */
	if (*type == DHCP_NAK ||
	    (!asked.bootp.client && (asked.bootp.flags & DHCP_BROADCAST))) {
		answer->ip.daddr = EVERYBODY;
		__builtin_memset(answer->eth.h_dest, 0xff, ETH_ALEN);
	} else {
		answer->ip.daddr = guest;
		__builtin_memcpy(answer->eth.h_dest, config->guest_mac,
				 ETH_ALEN);
	}
	answer->ip.check = (__be16)~header_sum(&answer->ip);
	answer->magic = DHCP_MAGIC;
	answer->options.type_code = DHCP_TYPE;
	answer->options.type_length = sizeof(answer->options.type);
	set_number(&answer->options.server, DHCP_SERVER,
		   config->gateway_address);
	if (*type != DHCP_NAK)
		fill_options(&answer->options, config, from,
			     wish.type != DHCP_INFORM);
	client = wish.client_length;
	if (client && client <= DHCP_CLIENT_MAX) {
		answer->options.client_code = DHCP_CLIENT;
		answer->options.client_length = client;
		/* 1 to DHCP_CLIENT_MAX, in a form that every verifier follows. */
		client--;
		asm volatile("" : "+r"(client));
		client = (client & (DHCP_CLIENT_MAX - 1)) + 1;
		if (bpf_skb_load_bytes(skb, wish.client_at,
				       answer->options.client, client))
			return drop(skb, DIRECTION_TX, DROP_SHORT_FRAME);
	}
	answer->options.end = DHCP_END;
	pseudo = (__u64)answer->ip.saddr + answer->ip.daddr +
		 to_be32(IPPROTO_UDP) + to_be32(DHCP_UDP);
	if (asked.udp.checksum == unsummed) {
		answer->udp.checksum = fold(pseudo);
	} else {
		answer->udp.checksum =
			(__be16)~fold(bpf_csum_diff(0, 0, (__be32 *)&answer->udp,
						    DHCP_UDP, fold(pseudo)));
		/* 0 would mean that there is none. */
		if (!answer->udp.checksum)
			answer->udp.checksum = 0xffff;
	}
	if (bytes != DHCP_FRAME && bpf_skb_change_tail(skb, DHCP_FRAME, 0))
		return drop(skb, DIRECTION_TX, DROP_NO_ROOM);
	if (bpf_skb_store_bytes(skb, 0, &answer->eth, DHCP_FRAME, 0))
		return drop_bytes(bytes, DIRECTION_TX, DROP_NO_REWRITE);
	count_event(skb, EVENT_DHCP_ANSWERED);
	return bpf_redirect(skb->ifindex, 0);
}

#endif /* DHCP_H */
