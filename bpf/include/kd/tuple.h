/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The two directions of a flow: what the other's tuple is, and which entries belong together. Touches no map. */
#ifndef KD_TUPLE_H
#define KD_TUPLE_H

#include <stdbool.h>
#include <linux/types.h>
#include <kd/addr.h>
#include <kd/types.h>

static __always_inline struct kd_tuple kd_reversed(const struct kd_tuple *tuple)
{
	struct kd_tuple reversed = {
		.src = tuple->dst,
		.dst = tuple->src,
		.sport = tuple->dport,
		.dport = tuple->sport,
		.protocol = tuple->protocol,
	};

	return reversed;
}

/* The key of a talk; true: the sender is its second end. */
static __always_inline bool kd_talk_key(const struct kd_tuple *way, struct kd_tuple *key)
{
	__be32 a = way->src.w[3], b = way->dst.w[3];

	if (a == b) {
		a = way->src.w[2];
		b = way->dst.w[2];
	}
	if (a == b) {
		a = way->src.w[1];
		b = way->dst.w[1];
	}
	if (a == b) {
		a = way->src.w[0];
		b = way->dst.w[0];
	}
	if (a > b || (a == b && way->sport > way->dport)) {
		*key = kd_reversed(way);
		return true;
	}
	*key = *way;
	return false;
}

/* Whether an entry is the other direction of the flow that `tuple` and `ct` are one direction of. */
static __always_inline bool kd_ct_answers(const struct kd_ct *other, const struct kd_tuple *tuple,
					  const struct kd_ct *ct)
{
	return kd_addr_equal(&other->to.src, &tuple->dst) && kd_addr_equal(&other->to.dst, &tuple->src) &&
	       other->to.sport == tuple->dport && other->to.dport == tuple->sport &&
	       (other->flags ^ ct->flags) & KD_CT_REPLY;
}

/* The original direction of this reply is still to be made. */
static __always_inline bool kd_ct_alone(const struct kd_ct *ct)
{
	return (ct->flags & (KD_CT_ALONE | KD_CT_SEEN_REPLY)) == KD_CT_ALONE;
}

#endif /* KD_TUPLE_H */
