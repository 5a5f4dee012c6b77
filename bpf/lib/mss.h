/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* TCP's maximum segment size (RFC 9293 section 3.7.1): what a sandbox and its peer ask
 * each other for is lowered to what the way between them carries.
 *
 * For guests that cannot be told: one restored from a snapshot has the MTU of
 * where it was taken, and would have every large segment dropped once, its own
 * and its peer's, before their senders learn.
 */
#ifndef MSS_H
#define MSS_H

#include "count.h"
#include "inner.h"
#include "translate.h"

#define TCP_HEADER 20		/* without options, as the MSS is counted */
#define TCP_FLAGS 13
#define TCP_SYN 0x02

#define TCP_OPTION_END 0
#define TCP_OPTION_NOP 1
#define TCP_OPTION_MSS 2

struct mss_option {
	__u8 kind;
	__u8 length;
	__be16 value;
};

/* Lower the option at this offset of a SYN. */
static inline enum drop_reason lower_mss(struct __sk_buff *skb,
					 const struct inner *inner, __u32 at,
					 __be16 from, __be16 to)
{
	__u32 value = at + 2;

	if (bpf_skb_store_bytes(skb, value, &to, sizeof(to), 0))
		return DROP_NO_REWRITE;
	/* At an odd offset the value lies across two of the words that the
	 * checksum adds up, which is as if its bytes were swapped.
	 */
	if ((value - inner->l4) & 1) {
		from = __builtin_bswap16(from);
		to = __builtin_bswap16(to);
	}
	if (bpf_l4_csum_replace(skb, inner->l4 + TCP_CHECKSUM, from, to,
				sizeof(to)))
		return DROP_NO_REWRITE;
	count_event(skb, EVENT_MSS_CLAMPED);
	return DROP_NONE;
}

static inline int is_syn(struct __sk_buff *skb, const struct inner *inner)
{
	__u8 flags;

	return inner->protocol == IPPROTO_TCP && inner->first &&
	       !read_bytes(skb, inner->l4 + TCP_FLAGS, &flags, sizeof(flags)) &&
	       (flags & TCP_SYN);
}

/* In a SYN, with or without ACK, no more than fits an inner packet of `mtu`
 * bytes. Never raised; where there is no option the peer keeps to 536 or 1220
 * bytes by itself, so none is added.
 */
static inline enum drop_reason clamp_mss(struct __sk_buff *skb,
					 const struct inner *inner, __u32 mtu)
{
	__u32 largest = mtu - header_size(inner) - TCP_HEADER, at, end, i;
	struct mss_option option;
	__u8 offset;

	if (bpf_skb_load_bytes(skb, inner->l4 + TCP_OFFSET, &offset,
			       sizeof(offset)))
		return DROP_NONE;
	at = inner->l4 + TCP_HEADER;
	end = inner->l4 + (offset >> 4) * 4;
	if (end > inner->l3 + inner->length)
		end = inner->l3 + inner->length;

	/* 40 bytes of options at most: 36 of one byte each, then ours. */
	for (i = 0; i <= 36; i++) {
		if (at + sizeof(option) > end ||
		    bpf_skb_load_bytes(skb, at, &option, sizeof(option)) ||
		    option.kind == TCP_OPTION_END)
			return DROP_NONE;
		if (option.kind == TCP_OPTION_NOP) {
			at++;
			continue;
		}
		if (option.kind == TCP_OPTION_MSS) {
			if (option.length != sizeof(option) ||
			    from_be16(option.value) <= largest)
				return DROP_NONE;
			return lower_mss(skb, inner, at, option.value,
					 to_be16((__u16)largest));
		}
		if (option.length < 2)
			return DROP_NONE;
		at += option.length;
	}
	return DROP_NONE;
}

#endif /* MSS_H */
