/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What BCC's headers leave out or get wrong, and byte order. */
#ifndef KERNEL_H
#define KERNEL_H

#include <uapi/linux/bpf.h>
#include <uapi/linux/if_ether.h>
#include <uapi/linux/in.h>
#include <uapi/linux/in6.h>
#include <uapi/linux/ip.h>
#include <uapi/linux/pkt_cls.h>

#include "geneve_abi.h"

/* Little-endian machines only, as x86-64 and arm64 are. */
#define to_be16(x) ((__be16)__builtin_bswap16(x))
#define to_be32(x) ((__be32)__builtin_bswap32(x))
#define from_be16(x) __builtin_bswap16(x)
#define from_be32(x) __builtin_bswap32(x)

#define PACKET_HOST 0
#define FAMILY_IPV4 2
#define FAMILY_IPV6 10

/* The compiler's own header has this one's struct in6_addr in the way. */
struct ipv6 {
	__be32 start;		/* version, traffic class, flow label */
	__be16 payload;		/* bytes behind this header */
	__u8 next;
	__u8 hop_limit;
	struct address source;
	struct address destination;
};

#define IP_DF 0x4000
#define IP_MF 0x2000
#define IP_OFFSET 0x1fff

#define HEADERS_MAX 0x3fff	/* all headers of a frame lie before this */

/* In tc's direct-action mode and under TCX: let the next program look. */
#define PASS_ON (-1)

/* BCC 0.26 declares this helper without the length of the next hop. */
static long (*redirect_neigh)(__u32 ifindex, struct bpf_redir_neigh *nexthop,
			      int size, __u64 flags) =
	(void *)BPF_FUNC_redirect_neigh;

/* clang merges stores to adjacent context fields into one, which the verifier
 * refuses: keep them apart.
 */
#define keep_apart() asm volatile("" ::: "memory")

/* Nothing of one device's bookkeeping may reach another: a mark, a queue and a
 * priority mean something to the host's own rules.
 */
static inline void clear_bookkeeping(struct __sk_buff *skb)
{
	skb->mark = 0;
	keep_apart();
	skb->queue_mapping = 0;
	keep_apart();
	skb->priority = 0;
}

/* Bytes of the frame, where they lie if they lie together, else by helper (an
 * AF_PACKET ring makes frames in fragments of memory). Calls are dear: where
 * the CPU needs it, each return from one is slowed down against speculation.
 */
static inline long read_bytes(struct __sk_buff *skb, __u32 at, void *to,
			      const __u32 size)
{
	void *data;

	/* The verifier takes no pointer to a field of the context, which the
	 * compiler would keep if it knew that this is the same one each time.
	 */
	asm volatile("" : "+r"(skb));
	data = (void *)(long)skb->data;
	/* The compiler may know how far `at` can go from what the verifier has
	 * forgotten by now: make it compare.
	 */
	asm volatile("" : "+r"(at));
	if (at <= HEADERS_MAX &&
	    data + at + size <= (void *)(long)skb->data_end) {
		/* Not true, but x86-64 and arm64 don't mind, and the verifier
		 * knows; else it would be copied byte by byte.
		 */
		__builtin_memcpy(to, __builtin_assume_aligned(data + at, 4),
				 size);
		return 0;
	}
	return bpf_skb_load_bytes(skb, at, to, size);
}

static inline int same_mac(const __u8 *a, const __u8 *b)
{
	return a[0] == b[0] && a[1] == b[1] && a[2] == b[2] &&
	       a[3] == b[3] && a[4] == b[4] && a[5] == b[5];
}

#endif /* KERNEL_H */
