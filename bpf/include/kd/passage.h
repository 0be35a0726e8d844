/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Where packets are held to policies, and how: at a pod's device and at an uplink, on the way in and out, hooks say what
 * has become of a packet so far and are told what becomes of it then. kd/policy.h judges.
 *
 * What has no ports is asked about as what it belongs to: ICMP by its type, a later fragment as its first.
 *
 * Reads kd_talks and kd_fragments; writes kd_fragments.
 */
#ifndef KD_PASSAGE_H
#define KD_PASSAGE_H

#include <stdbool.h>
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include <kd/addr.h>
#include <kd/clock.h>
#include <kd/echo.h>
#include <kd/enforce.h>
#include <kd/forward.h>
#include <kd/icmp.h>
#include <kd/newcomer.h>
#include <kd/packet.h>
#include <kd/policy.h>
#include <kd/talks.h>
#include <kd/tuple.h>
#include <kd/types.h>
#include <kd/verdict.h>
#include <kd/maps/policy.h>

#define KD_ICMP_FRAGMENTATION_NEEDED 4
#define KD_ICMPV6_MLD_QUERY 130 /* multicast listeners to 132, neighbours to 137 */
#define KD_ICMPV6_REDIRECT 137
#define KD_ICMPV6_MLD2_REPORT 143

static __always_inline bool kd_icmp_always_passes(bool ipv6, __u8 type, __u8 code)
{
	if (ipv6)
		return (type >= KD_ICMPV6_MLD_QUERY && type <= KD_ICMPV6_REDIRECT) ||
		       type == KD_ICMPV6_MLD2_REPORT || type == KD_ICMPV6_TOO_BIG;
	return type == KD_ICMP_UNREACHABLE && code == KD_ICMP_FRAGMENTATION_NEEDED;
}

/* Whether what an error quotes is of a talk. */
static __always_inline bool kd_icmp_is_of_talk(struct __sk_buff *skb, const struct kd_pkt *pkt)
{
	struct kd_tuple quoted = {}, key;
	struct kd_talk *talk;
	__be16 sequence;
	__u32 ports_off;

	if (!kd_icmp_quoted(skb, pkt->ipv6, pkt->l4_off + sizeof(struct kd_icmp), &quoted, &ports_off, &sequence) ||
	    !kd_addr_equal(&quoted.src, &pkt->tuple.dst))
		return false;
	kd_talk_key(&quoted, &key);
	talk = bpf_map_lookup_elem(&kd_talks, &key);
	return talk && !kd_talk_over(talk, quoted.protocol, kd_now());
}

/*
 * What to ask about ICMP, of which only echo is a talk: its type stands for a port. 0: nothing, it always passes; less:
 * why it does not.
 */
KD_FUNCTION int kd_icmp_asks(struct __sk_buff *skb, struct kd_pkt *pkt, __u32 asks)
{
	__u8 head[2] = {};

	if (!enforce)
		return 0;
	if (!pkt)
		return KD_DROP_POLICY_DENIED;
	if (!pkt->later && bpf_skb_load_bytes(skb, pkt->l4_off, head, sizeof(head)))
		return KD_DROP_MALFORMED;
	if (!pkt->later && kd_icmp_always_passes(pkt->ipv6, head[0], head[1]))
		return 0;
	if (kd_echo_parse(skb, pkt, true) || kd_echo_parse(skb, pkt, false)) {
		head[0] = kd_echo_type(pkt->ipv6, true);
	} else {
		asks |= pkt->later ? KD_ASK_ALONE : KD_ASK_ONCE;
		if (!pkt->fragment && kd_icmp_is_error(pkt->ipv6, head[0]) && kd_icmp_is_of_talk(skb, pkt))
			asks |= KD_ASK_RELATED;
	}
	return asks | head[0] << KD_ASK_TYPE_SHIFT;
}

/* What becomes of a packet when policies have been asked, instead of `result`. */
static __always_inline int kd_let_pass(struct __sk_buff *skb, struct kd_pkt *pkt, const struct kd_tuple *to,
				       __u32 asks, int result)
{
	bool keeps = !(asks & (KD_ASK_FROM_NODE | KD_ASK_TO_NODE));
	int allowed;

	if (kd_is_icmp(pkt)) {
		allowed = kd_icmp_asks(skb, pkt, asks);
		if (allowed <= 0)
			return allowed ? allowed : result;
		asks = allowed;
	}
	allowed = kd_policy(skb, pkt, to, asks);
	if (allowed != KD_CONTINUE)
		return allowed;
	if (keeps && pkt->fragment && !pkt->later)
		kd_fragment_keep(pkt);
	return result;
}

/* With a tag of VLAN 0, which the node strips, and takes what is under it for its own. */
static __always_inline bool kd_is_priority_tagged(const struct __sk_buff *skb)
{
	return skb->vlan_present && !(skb->vlan_tci & 0xfff);
}

/*
 * A packet of the node itself at an uplink, as its own process sends or gets it: before an answer of a backend on the
 * node is translated, and after what it answers was. Of a datagram whose first fragment is denied the others come to
 * nothing, and are not looked at.
 */
KD_SUBPROGRAM int kd_guard(struct __sk_buff *skb, struct kd_pkt *pkt, bool sends, int result)
{
	if (!sends && kd_is_priority_tagged(skb)) /* once more */
		return KD_DROP_POLICY_DENIED;
	if (!pkt->tuple.protocol || pkt->later)
		return result;
	return kd_let_pass(skb, pkt, &pkt->tuple, sends ? KD_ASK_FROM_NODE : KD_ASK_TO_NODE | KD_ASK_OUTSIDE, result);
}

/*
 * A packet that comes in, and becomes `to`. What comes from outside and is left to the stack meets its receiver later,
 * where of a tunnel nothing is known any more.
 */
static __always_inline int kd_let_through(struct __sk_buff *skb, struct kd_pkt *pkt, const struct kd_tuple *to,
					  bool outside, int result)
{
	__u32 asks = KD_ASK_SENDER | KD_ASK_RECEIVER;

	if (!enforce || (result != KD_PASS && result != KD_CONTINUE && result != KD_TO_STACK))
		return result;
	if (outside && result == KD_PASS && !pkt->tunnelled)
		return result;
	if (outside)
		asks = KD_ASK_OUTSIDE | KD_ASK_RECEIVER | (pkt->tunnelled ? KD_ASK_TUNNELLED : 0);
	return kd_let_pass(skb, pkt, to, asks, result);
}

/*
 * Frames that policies cannot judge: neither IP nor ARP, or with a tag. A tag of VLAN 0 would be stripped behind this
 * program, and what is under it delivered; a bridge would carry any other from pod to pod.
 */
static __always_inline bool kd_is_strange(const struct __sk_buff *skb)
{
	return skb->vlan_present || skb->protocol != bpf_htons(ETH_P_ARP);
}

/* The same of what has no ports, or none that are known. */
static __always_inline int kd_let_whole(struct __sk_buff *skb, struct kd_pkt *pkt, bool outside, int result)
{
	if (!enforce || result != KD_PASS || (outside && !pkt->tunnelled))
		return result;
	if (!pkt->tuple.protocol)
		return outside || !kd_is_strange(skb) ? result : KD_DROP_POLICY_DENIED;
	return kd_let_pass(skb, pkt, &pkt->tuple,
			   (outside ? KD_ASK_OUTSIDE | KD_ASK_TUNNELLED : KD_ASK_SENDER) | KD_ASK_RECEIVER |
				   (pkt->later ? KD_ASK_ALONE : 0),
			   result);
}

/* Whether all that policies have to say of a packet to a pod's device was said where it came in. */
static __always_inline bool kd_was_judged(struct __sk_buff *skb)
{
	bool judged = enforce && skb->tc_index == kd_judged_for(skb->ifindex);

	if (judged)
		skb->tc_index = 0;
	return judged;
}

/*
 * A packet that goes to a pod's device. What came in through the same is our own answer to the pod, or what it sends
 * to itself.
 */
static __always_inline int kd_let_in(struct __sk_buff *skb, struct kd_pkt *pkt, int result)
{
	__u32 asks = KD_ASK_DEVICE | KD_ASK_RECEIVER;

	if (!enforce || result < 0 || skb->ingress_ifindex == skb->ifindex)
		return result;
	if (kd_is_from_newcomer(skb, pkt))
		return KD_DROP_POLICY_DENIED;
	if (!pkt->tuple.protocol)
		return !skb->ingress_ifindex || !kd_is_strange(skb) ? result : KD_DROP_POLICY_DENIED;
	if (pkt->later && !kd_is_icmp(pkt) && !kd_fragment_find(pkt))
		asks |= KD_ASK_ALONE;
	return kd_let_pass(skb, pkt, &pkt->tuple, asks, result);
}

#endif /* KD_PASSAGE_H */
