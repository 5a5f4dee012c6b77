/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The Geneve header and its options: RFC 8926 sections 3.4 and 3.5. */
#ifndef GENEVE_H
#define GENEVE_H

#include "geneve_abi.h"
#include "kernel.h"

#define GENEVE_VERSION_MASK 0xc0
#define GENEVE_OPTIONS_MASK 0x3f	/* in units of four bytes */
#define GENEVE_CONTROL 0x80		/* O: not for a tenant */
#define GENEVE_ETHERNET 0x6558
#define OPTION_CRITICAL 0x80		/* of its type: drop if not understood */
#define OPTION_LENGTH_MASK 0x1f		/* in units of four bytes */
#define OPTIONS_MAX 63			/* of four bytes each */

struct geneve {
	__u8 version_options;
	__u8 flags;
	__be16 protocol;
	__be32 vni;		/* upper 24 bits; the last byte is reserved */
};

struct geneve_option {
	__be16 class;
	__u8 type;
	__u8 length;
};

static inline __u32 options_length(const struct geneve *geneve)
{
	return (geneve->version_options & GENEVE_OPTIONS_MASK) * 4;
}

/* Walk the options that fill `length` bytes from `at` on. We know none, so each
 * is ignored unless it must not be; the C bit would only tell beforehand that
 * one of those is there, and senders forget it. The first fault decides.
 */
static inline enum drop_reason check_options(struct __sk_buff *skb, __u32 at,
					     __u32 length)
{
	struct geneve_option option;
	__u32 passed = 0, i;

	for (i = 0; i < OPTIONS_MAX; i++) {
		if (passed >= length)
			break;
		if (bpf_skb_load_bytes(skb, at + passed, &option,
				       sizeof(option)))
			return DROP_SHORT_FRAME;
		passed += sizeof(option) +
			  (option.length & OPTION_LENGTH_MASK) * 4;
		if (passed > length)
			return DROP_GENEVE_OPTIONS;
		if (option.type & OPTION_CRITICAL)
			return DROP_GENEVE_CRITICAL;
	}
	return DROP_NONE;
}

/* What may be in a header that came: RFC 8926 section 3.4. Reserved bits are
 * ignored, as it says.
 */
static inline enum drop_reason check_geneve(struct __sk_buff *skb, __u32 at,
					    const struct geneve *geneve)
{
	if (geneve->version_options & GENEVE_VERSION_MASK)
		return DROP_GENEVE_VERSION;
	if (geneve->flags & GENEVE_CONTROL)
		return DROP_GENEVE_CONTROL;
	return check_options(skb, at + sizeof(*geneve), options_length(geneve));
}

#endif /* GENEVE_H */
