/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Path MTU discovery of the tunnel itself (RFC 1191, RFC 8201): a hop of the underlay
 * says that a packet of ours was too big for it.
 *
 * The kernel has no UDP socket that such a message could be about and forgets it
 * (__udp4_lib_err). So it is read here; the VTEP behind that hop then gets
 * smaller packets for a while, and sandboxes are told (too_big.h).
 */
#ifndef PATH_MTU_H
#define PATH_MTU_H

#include "address.h"
#include "checksum.h"
#include "count.h"
#include "geneve.h"
#include "icmp.h"
#include "inner.h"
#include "maps.h"
#include "outer.h"

#define PATH_MTU_LIFE 600000000000ULL	/* ns; as Linux's net.ipv4.route.mtu_expires */
#define PATH_MTU_MIN4 552		/* as Linux's net.ipv4.route.min_pmtu */

/* RFC 1191 section 7: the next smaller MTU in use. A router older than that RFC does
 * not say its own.
 */
static inline __u32 plateau_below(__u32 length)
{
	return length > 8166 ? 8166 : length > 4352 ? 4352 :
	       length > 2002 ? 2002 : length > 1492 ? 1492 :
	       length > 1006 ? 1006 : PATH_MTU_MIN4;
}

/* Bytes of a message that ends at `end`; behind it is padding. */
static inline long read_quote(struct __sk_buff *skb, __u32 at, __u32 end,
			      void *to, const __u32 size)
{
	return at + size > end ? -1 : bpf_skb_load_bytes(skb, at, to, size);
}

/* Whether a quoted packet is one of ours: a forger must know a pair of VTEPs. What
 * is behind the UDP header need not be quoted (RFC 792 asks for eight bytes), but
 * is Geneve of ours if it is. Says where it was going, and how long it was.
 */
static inline int is_our_tunnel(struct __sk_buff *skb,
				const struct node_config *config, __u32 at,
				__u32 end, struct address *to, __u32 *length)
{
	int ipv4 = is_ipv4(&config->vtep);
	struct geneve geneve;
	union ip_header ip;
	struct udp udp;

	if (ipv4) {
		if (read_quote(skb, at, end, &ip.v4, sizeof(ip.v4)) ||
		    ip.v4.version != 4 || ip.v4.ihl != 5 ||
		    ip.v4.frag_off != to_be16(IP_DF) ||
		    ip.v4.protocol != IPPROTO_UDP ||
		    ip.v4.saddr != config->vtep.word[3])
			return 0;
		*to = from_ipv4(ip.v4.daddr);
		*length = from_be16(ip.v4.tot_len);
		at += sizeof(ip.v4);
	} else {
		if (read_quote(skb, at, end, &ip.v6, sizeof(ip.v6)) ||
		    (ip.v6.start & to_be32(0xf0000000)) != to_be32(0x60000000) ||
		    ip.v6.next != IPPROTO_UDP ||
		    !same_address(&ip.v6.source, &config->vtep))
			return 0;
		*to = ip.v6.destination;
		*length = from_be16(ip.v6.payload) + sizeof(ip.v6);
		at += sizeof(ip.v6);
	}
	if (read_quote(skb, at, end, &udp, sizeof(udp)) ||
	    udp.destination != config->udp_port ||
	    !(udp.source & to_be16(FIRST_SOURCE_PORT)))
		return 0;
	if (read_quote(skb, at + sizeof(udp), end, &geneve, sizeof(geneve)))
		return 1;
	return !(geneve.version_options & GENEVE_VERSION_MASK) &&
	       geneve.protocol == to_be16(GENEVE_ETHERNET) &&
	       !(geneve.vni & to_be32(0xff));
}

/* Never raised while it holds: a smaller hop may be behind the one that speaks. */
static inline void hold_path_mtu(struct __sk_buff *skb,
				 struct address *to, __u32 mtu)
{
	struct vtep *vtep = vteps.lookup(to);
	__u64 now = bpf_ktime_get_ns();
	struct node_state *state;
	__u32 zero = 0;

	if (!vtep)
		return;
	if (vtep->path_mtu_until <= now || mtu < vtep->path_mtu) {
		/* In this order, or an old MTU could be found with the new time. */
		*(volatile __u32 *)&vtep->path_mtu = mtu;
		*(volatile __u64 *)&vtep->path_mtu_until = now + PATH_MTU_LIFE;
		count_event(skb, EVENT_PATH_MTU_LEARNED);
	}
	state = node_state.lookup(&zero);
	if (state && state->path_mtu_until < vtep->path_mtu_until)
		*(volatile __u64 *)&state->path_mtu_until = vtep->path_mtu_until;
}

/* Where the ICMP message in a frame for our VTEP begins and ends, and what its
 * checksum starts from. 0: the frame has none.
 */
static inline __u32 find_icmp(struct __sk_buff *skb, __u32 l2,
			      const struct node_config *config, __u32 *end,
			      __u64 *sum)
{
	union ip_header ip;
	__u32 at, length;

	if (is_ipv4(&config->vtep)) {
		if (skb->protocol != to_be16(ETH_P_IP) ||
		    read_bytes(skb, l2, &ip.v4, sizeof(ip.v4)) ||
		    ip.v4.daddr != config->vtep.word[3] ||
		    ip.v4.protocol != IPPROTO_ICMP || ip.v4.version != 4 ||
		    ip.v4.ihl < 5 ||
		    (ip.v4.frag_off & to_be16(IP_MF | IP_OFFSET)))
			return 0;
		at = l2 + ip.v4.ihl * 4;
		length = l2 + from_be16(ip.v4.tot_len) - at;
	} else {
		if (skb->protocol != to_be16(ETH_P_IPV6) ||
		    read_bytes(skb, l2, &ip.v6, sizeof(ip.v6)) ||
		    !same_address(&ip.v6.destination, &config->vtep) ||
		    ip.v6.next != IPPROTO_ICMPV6)
			return 0;
		at = l2 + sizeof(ip.v6);
		length = from_be16(ip.v6.payload);
		*sum = pseudo_sum(&ip.v6.source, &ip.v6.destination, length,
				  IPPROTO_ICMPV6);
	}
	*end = at + length;
	return at;
}

/* What a frame that is none of our tunnel's may tell us. It stays as it is. */
static inline void learn_path_mtu(struct __sk_buff *skb, __u32 l2,
				  const struct node_config *config)
{
	int ipv4 = is_ipv4(&config->vtep);
	__u32 mtu, at, end = 0, sent = 0;
	struct address to;
	struct icmp icmp;
	__u64 sum = 0;

	at = find_icmp(skb, l2, config, &end, &sum);
	if (!at || read_quote(skb, at, end, &icmp, sizeof(icmp)))
		return;
	if (ipv4 ? icmp.type != ICMP_UNREACHABLE ||
			   icmp.code != ICMP_FRAGMENTATION_NEEDED :
		   icmp.type != ICMP6_TOO_BIG)
		return;
	if (!is_our_tunnel(skb, config, at + sizeof(icmp), end, &to, &sent))
		return;
	mtu = from_be32(icmp.value);
	if (ipv4) {
		mtu &= 0xffff;
		if (!mtu)
			mtu = plateau_below(sent);
	}
	/* Linux heeds no less either; and what fits is never too big. */
	if (mtu < (ipv4 ? PATH_MTU_MIN4 : IPV6_MTU_MIN) || mtu >= sent)
		return;
	/* At last, as it is dear: whether it came as it was sent, and whole. */
	if (sum_bytes(skb, at, end - at, sum, 65535) != 0xffff)
		return;
	hold_path_mtu(skb, &to, mtu);
}

/* What the way to this VTEP was said to carry, in bytes of an outer packet; 0: nothing
 * holds. While nothing ever did, a look at an array is all it costs.
 */
static inline __u32 path_mtu(const struct address *to)
{
	struct node_state *state;
	struct vtep *vtep;
	__u32 zero = 0;
	__u64 now;

	state = node_state.lookup(&zero);
	if (!state || !state->path_mtu_until)
		return 0;
	now = bpf_ktime_get_ns();
	if (state->path_mtu_until <= now) {
		/* uplink_rx may write a new time this instant, and lose it to
		 * this: the next report from that hop writes it again.
		 */
		*(volatile __u64 *)&state->path_mtu_until = 0;
		return 0;
	}
	vtep = vteps.lookup((struct address *)to);
	if (!vtep || *(volatile __u64 *)&vtep->path_mtu_until <= now)
		return 0;
	return vtep->path_mtu;
}

/* Of two MTUs, where 0 means that nothing is known. */
static inline __u32 least(__u32 mtu, __u32 other)
{
	return other && other < mtu ? other : mtu;
}

#endif /* PATH_MTU_H */
