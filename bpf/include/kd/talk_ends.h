/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The ends of a talk, for those who see no packets: whether what their policies have said holds still. Reads
 * kd_endpoints and kd_policies.
 */
#ifndef KD_TALK_ENDS_H
#define KD_TALK_ENDS_H

#include <stdbool.h>
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <kd/acceleration_types.h>
#include <kd/types.h>
#include <kd/maps/endpoints.h>
#include <kd/maps/policy.h>

/* Whether the policy of one end, a pod of this node, has allowed the talk, and would still. */
static __always_inline bool kd_talk_end_holds(const struct kd_talk *talk, const struct kd_addr *end, __u32 second,
					      struct kd_held *held)
{
	struct kd_endpoint *pod = bpf_map_lookup_elem(&kd_endpoints, end);
	struct kd_policy *policy;
	__u32 index;

	if (!pod)
		return false;
	index = 2 * pod->policy + ((talk->flags & KD_TALK_SECOND) == second ? KD_EGRESS : KD_INGRESS);
	policy = bpf_map_lookup_elem(&kd_policies, &index);
	if (!policy)
		return false;
	held->policy[second & 1] = index;
	held->revision[second & 1] = talk->revision[second & 1];
	return policy->revision == talk->revision[second & 1];
}

/* Whether both ends are pods of this node that may go on as they are, whatever they say; and what to look at for it. */
static __always_inline bool kd_talk_holds(const struct kd_tuple *key, const struct kd_talk *talk, struct kd_held *held)
{
	return kd_talk_end_holds(talk, &key->src, 0, held) && kd_talk_end_holds(talk, &key->dst, 1, held) &&
	       !(*(const volatile __u32 *)&talk->flags & KD_TALK_REQUESTS);
}

/* The same a moment later, as far as policies have changed. */
static __always_inline bool kd_held_still(const struct kd_held *held)
{
	__u32 first = held->policy[0], second = held->policy[1];
	struct kd_policy *one = bpf_map_lookup_elem(&kd_policies, &first);
	struct kd_policy *other = bpf_map_lookup_elem(&kd_policies, &second);

	return one && other && one->revision == held->revision[0] && other->revision == held->revision[1];
}

#endif /* KD_TALK_ENDS_H */
