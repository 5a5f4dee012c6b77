/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* One's complement sums (RFC 1071): folded, updated (RFC 1624), and taken over
 * what a frame holds.
 */
#ifndef CHECKSUM_H
#define CHECKSUM_H

#include "address.h"
#include "kernel.h"
#include "maps.h"

static inline __u16 fold(__u64 sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return (__u16)sum;
}

/* The checksum after a change of what it covers: `from` and `to` are 16 or 32
 * bits each, as they stand in the packet.
 */
static inline __u16 checksum_after(__u16 checksum, __be32 from, __be32 to)
{
	return (__u16)~fold((__u64)(__u16)~checksum + (__u32)~from + to);
}

/* Over an IPv4 header without options. */
static inline __u16 header_sum(const struct iphdr *ip)
{
	const __u16 *words = (const __u16 *)ip;
	__u32 sum = 0;
	int i;

#pragma unroll
	for (i = 0; i < 10; i++)
		sum += words[i];
	return fold(sum);
}

/* Of TCP, UDP and ICMPv6, not folded. Of an IPv4 address as we keep it the mapped
 * prefix is added too, which is 0 in this arithmetic: all ones.
 */
static inline __u64 pseudo_sum(const struct address *a, const struct address *b,
			       __u32 length, __u8 protocol)
{
	return (__u64)a->word[0] + a->word[1] + a->word[2] + a->word[3] +
	       b->word[0] + b->word[1] + b->word[2] + b->word[3] +
	       to_be32(length) + to_be32(protocol);
}

/* Add what the frame holds from `at` on to a sum; an odd last byte counts as if
 * a zero followed. Returns a folded sum, or -1 if the frame is shorter. `most` is
 * for the verifier, which walks the loop to its end.
 */
static inline long sum_bytes(struct __sk_buff *skb, __u32 at, __u32 length,
			     __u64 start, const __u32 most)
{
	__u64 i, rest, left = length;
	__u32 zero = 0;
	struct scratch *scratch = scratch_row.lookup(&zero);
	__s64 sum = fold(start);

	if (!scratch || !length)
		return -1;
	for (i = 0; i <= most / SCRATCH_SIZE; i++) {
		/* Not to be counted in any other way: the verifier must see
		 * that this ends.
		 */
		asm volatile("" : "+r"(i));
		if (left <= SCRATCH_SIZE)
			break;
		if (bpf_skb_load_bytes(skb, at, scratch->bytes, SCRATCH_SIZE))
			return -1;
		sum = bpf_csum_diff(0, 0, (__be32 *)scratch->bytes,
				    SCRATCH_SIZE, (__u32)sum);
		at += SCRATCH_SIZE;
		left -= SCRATCH_SIZE;
	}
	/* 1 to SCRATCH_SIZE, in a form that every verifier follows. */
	rest = left - 1;
	asm volatile("" : "+r"(rest));
	rest = (rest & (SCRATCH_SIZE - 1)) + 1;
	if (bpf_skb_load_bytes(skb, at, scratch->bytes, rest))
		return -1;
	scratch->bytes[rest] = 0;
	scratch->bytes[rest + 1] = 0;
	scratch->bytes[rest + 2] = 0;
	rest = (rest + 3) & ~3ULL;
	sum = bpf_csum_diff(0, 0, (__be32 *)scratch->bytes, rest, (__u32)sum);
	return fold((__u32)sum);
}

#endif /* CHECKSUM_H */
