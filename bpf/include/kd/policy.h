/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Policies: whether two ends may talk, asked at each end that is a pod of this node.
 *
 * Policies know parties by numbers, not by addresses: kd_ipcache says who is behind one, or the tunnel that a packet
 * came through. A packet that begins a talk finds at most two rules, of its peer's number and of number 0, which is
 * everybody: of each the one with the longest prefix of the port, and of the two the one of greater precedence.
 * Without a rule nothing is allowed. All that follows, in either direction, is found in kd_talks, and passes for
 * as long as the policy has the revision by which it was allowed. Otherwise it is asked again as it was at first,
 * by who had begun. A SYN always begins.
 *
 * Who sends is asked first (egress), where a packet leaves its pod: after a service has been translated to a backend,
 * and before an answer of one is. Who receives (ingress) is asked there as well, if it is a pod of this node too: the
 * packet is marked then, and its receiver's device asks no more. Else it is asked where a packet is put into a pod.
 *
 * Always allowed: a pod to itself, through a service too; neighbour discovery; errors about a talk, and those that
 * tell of smaller MTUs; what our own programs answer a pod. A pod sends under its own addresses only. Later fragments
 * follow their first. Of what is not IP only ARP passes.
 *
 * The node itself is asked as a pod is, once it has a policy, at its uplinks alone: kd_guard().
 *
 * Reads kd_endpoints, kd_ipcache, kd_networks, kd_policies and kd_rules; writes kd_talks and kd_rule_counts, and what
 * kd/dns.h writes.
 */
#ifndef KD_POLICY_H
#define KD_POLICY_H

#include <stdbool.h>
#include <linux/bpf.h>
#include <linux/in.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include <kd/addr.h>
#include <kd/config.h>
#include <kd/conntrack.h>
#include <kd/dns.h>
#include <kd/echo.h>
#include <kd/forward.h>
#include <kd/icmp.h>
#include <kd/packet.h>
#include <kd/rules.h>
#include <kd/scene.h>
#include <kd/talks.h>
#include <kd/types.h>
#include <kd/verdict.h>
#include <kd/maps/endpoints.h>
#include <kd/maps/policy.h>

KD_CONFIG(bool, enforce, "pods send and receive what policies allow") = false;

#define KD_ICMP_FRAGMENTATION_NEEDED 4
#define KD_ICMPV6_MLD_QUERY 130 /* multicast listeners to 132, neighbours to 137 */
#define KD_ICMPV6_REDIRECT 137
#define KD_ICMPV6_MLD2_REPORT 143

#define KD_IDENTITY_REMOTE_NODE 6

KD_CONFIG(bool, host_firewall, "policies are for the node itself as well") = false;

#define KD_NODE_POLICY 1 /* that of the node itself; it has none: nothing is asked */

/* In tc_index: both ends were asked, and the receiver is behind this device. It is wiped before anybody else sees it. */
static __always_inline __u16 kd_judged_for(__u32 ifindex)
{
	return 0x8000 | (ifindex & 0x7fff);
}

/*
 * What policies know the peer of an end by. Of a sender more is known than its address: that it is this node, what
 * the tunnel said, or that it cannot be this node.
 */
static __always_inline __u32 kd_number_of(struct __sk_buff *skb, struct kd_asking *ask, const struct kd_addr *addr,
					  bool sends)
{
	struct kd_party *party = kd_party_of(&ask->query, addr);
	__u32 told = 0;

	if (sends && ask->asks & KD_ASK_DEVICE && !skb->ingress_ifindex)
		return KD_IDENTITY_HOST;
	if (sends && ask->asks & KD_ASK_TUNNELLED)
		told = skb->cb[0];
	if (told == KD_IDENTITY_HOST) /* of its own node */
		told = KD_IDENTITY_REMOTE_NODE;
	if (told == KD_IDENTITY_WORLD)
		told = 0;
	if (told && (!party || party->identity != told))
		return told;
	if (!party)
		return kd_is_v4(addr) ? KD_IDENTITY_WORLD_IPV4 : KD_IDENTITY_WORLD_IPV6;
	if (sends && party->identity == KD_IDENTITY_HOST) /* its stack has not sent it */
		return KD_IDENTITY_UNKNOWN;
	return party->number;
}

/* The port of who did not begin, or of ICMP the type. */
static __always_inline __be16 kd_asked_port(const struct kd_asking *ask)
{
	if (ask->way.protocol == IPPROTO_ICMP || ask->way.protocol == IPPROTO_ICMPV6)
		return bpf_htons(ask->asks >> KD_ASK_TYPE_SHIFT);
	return ask->by_sender ? ask->way.dport : ask->way.sport;
}

/* enum kd_said, and the port. */
static __always_inline __u32 kd_end_said(const struct kd_asking *ask, const struct kd_end *end, __u32 flags)
{
	__u32 said = (ask->by_sender == end->sends ? KD_SAID_EGRESS : 0) | (end->sends ? 0 : KD_SAID_RECEIVER) |
		     (end->denies ? KD_SAID_DENIED : 0) | (flags & KD_POLICY_AUDIT ? KD_SAID_AUDITED : 0) |
		     (flags & KD_POLICY_OPEN ? KD_SAID_OPEN : 0) | (end->requests ? KD_SAID_REQUESTS : 0);

	return said | bpf_ntohs(kd_asked_port(ask)) << 16;
}

/* What the rules of one end say of its peer. */
KD_SUBPROGRAM int kd_rules_ask(struct __sk_buff *skb, struct kd_asking *ask, const struct kd_addr *peer,
			       struct kd_end *end, const struct kd_policy *policy)
{
	struct kd_rule *rule;
	__u32 number;

	ask->answers = policy->flags & KD_POLICY_ANSWER;
	if (ask->asks & KD_ASK_ALONE)
		return KD_DROP_FRAGMENT;
	number = kd_number_of(skb, ask, peer, !end->sends);
	rule = kd_rule_of(&ask->query, policy, number, kd_asked_port(ask), ask->way.protocol);
	if (!rule)
		return KD_DROP_POLICY_DENIED;
	end->counter = rule->counter;
	end->requests = rule->l7;
	kd_rule_count(skb, rule->counter);
	return rule->deny ? KD_DROP_POLICY_DENIED : KD_CONTINUE;
}

/* Whether one end lets the packet pass. */
static __always_inline int kd_end_ask(struct __sk_buff *skb, struct kd_asking *ask, const struct kd_addr *peer,
				      struct kd_end *end)
{
	__u32 index = 2 * end->policy + (ask->by_sender == end->sends ? KD_EGRESS : KD_INGRESS);
	struct kd_policy *policy;
	__u32 revision;
	int result;

	if (end->policy == KD_NO_POLICY)
		return KD_CONTINUE;
	policy = bpf_map_lookup_elem(&kd_policies, &index);
	if (!policy)
		return KD_DROP_POLICY_DENIED;
	revision = *(const volatile __u32 *)&policy->revision; /* before the rules: they may be others soon */
	if (!ask->begins && end->revision == revision) {
		if (end->counter)
			kd_rule_count(skb, end->counter);
		return KD_CONTINUE;
	}
	end->counter = 0;
	end->asked = true;
	end->requests = false;
	result = policy->flags & KD_POLICY_OPEN ? KD_CONTINUE : kd_rules_ask(skb, ask, peer, end, policy);
	end->revision = revision;
	end->denies = result != KD_CONTINUE;
	KD_TRACE(KD_STEP_POLICY, kd_end_said(ask, end, policy->flags), end->counter, &ask->way);
	return policy->flags & KD_POLICY_AUDIT ? KD_CONTINUE : result;
}

static __always_inline int kd_ends_ask(struct __sk_buff *skb, struct kd_asking *ask)
{
	int result;

	ask->sender.asked = false;
	ask->sender.denies = false;
	ask->receiver.asked = false;
	ask->receiver.denies = false;
	result = kd_end_ask(skb, ask, &ask->way.dst, &ask->sender);
	return result == KD_CONTINUE ? kd_end_ask(skb, ask, &ask->way.src, &ask->receiver) : result;
}

/* What is told of it: who was asked, and who has denied it, which is the last. */
static __always_inline void kd_scene_judge(const struct kd_asking *ask, int result)
{
	struct kd_scene *scene = events ? kd_scene_of_cpu() : NULL;

	if (!scene)
		return;
	scene->judged = true;
	scene->way = ask->way;
	scene->source_rule = ask->sender.counter;
	scene->destination_rule = ask->receiver.counter;
	if (ask->sender.asked)
		scene->flags |= KD_EVENT_SOURCE_ASKED;
	if (ask->receiver.asked)
		scene->flags |= KD_EVENT_DESTINATION_ASKED;
	if (result == KD_CONTINUE && (ask->sender.denies || ask->receiver.denies))
		scene->flags |= KD_EVENT_AUDITED;
	if (result != KD_CONTINUE)
		scene->flags |= ask->receiver.asked ? KD_EVENT_DENIED_BY_DESTINATION : KD_EVENT_DENIED_BY_SOURCE;
}

/* Whether both ends, as far as they are pods of this node, let the packet pass. */
KD_SUBPROGRAM int kd_talk_ask(struct __sk_buff *skb, const struct kd_pkt *pkt, struct kd_asking *ask)
{
	bool once = ask->asks & (KD_ASK_ONCE | KD_ASK_ALONE);
	struct kd_talk *found = NULL;
	__u32 now = kd_now();
	int result;

	ask->second = kd_talk_key(&ask->way, &ask->key);
	ask->sender.counter = 0;
	ask->receiver.counter = 0;
	if (!once)
		found = bpf_map_lookup_elem(&kd_talks, &ask->key);
	if (found && (kd_is_syn(pkt) || kd_talk_over(found, ask->way.protocol, now)))
		found = NULL;
	if (found)
		kd_talk_resume(ask, found);
	else
		kd_talk_begin(ask);
	result = kd_ends_ask(skb, ask);
	if (result != KD_CONTINUE && !ask->by_sender && !pkt->tcp_flags) {
		/* Not as an answer. Where nothing tells answers from beginnings, it may be a beginning. */
		found = NULL;
		kd_talk_begin(ask);
		result = kd_ends_ask(skb, ask);
	}
	if (result == KD_CONTINUE && !once)
		kd_talk_keep(pkt, ask, found, now);
	kd_scene_judge(ask, result);
	return result;
}

/* Whether a pod that has sent the packet can be told that it is denied. */
static __always_inline bool kd_can_be_told(const struct __sk_buff *skb, const struct kd_pkt *pkt, __u32 asks)
{
	__u8 protocol = pkt->tuple.protocol;

	return asks & KD_ASK_SENDER && (protocol == IPPROTO_TCP || protocol == IPPROTO_UDP) && !pkt->later &&
	       skb->pkt_type != PACKET_MULTICAST && skb->pkt_type != PACKET_BROADCAST;
}

/* The node is an end of the packet: it is asked, if it has a policy. */
static __always_inline void kd_ask_node(struct kd_asking *ask, __u32 asks, const struct kd_tuple *to)
{
	__u32 index = 2 * KD_NODE_POLICY;
	struct kd_policy *policy = bpf_map_lookup_elem(&kd_policies, &index);
	struct kd_party *party;

	if (!policy || !policy->table)
		return;
	if (asks & KD_ASK_FROM_NODE) {
		ask->sender.policy = KD_NODE_POLICY;
		return;
	}
	party = bpf_map_lookup_elem(&kd_ipcache, &to->dst);
	if (party && party->identity == KD_IDENTITY_HOST)
		ask->receiver.policy = KD_NODE_POLICY;
}

/*
 * Whether policies let a packet pass: KD_CONTINUE, or why not. `to` is what becomes of it, or its own tuple; of a
 * reply that is the service's address, so its source is taken as it came.
 */
KD_FUNCTION int kd_policy(struct __sk_buff *skb, const struct kd_pkt *pkt, const struct kd_tuple *to, __u32 asks)
{
	struct kd_endpoint *pod;
	struct kd_asking *ask;
	__u32 zero = 0;
	__u32 named;
	int result;

	if (!enforce)
		return KD_CONTINUE;
	ask = bpf_map_lookup_elem(&kd_asking, &zero);
	if (!pkt || !to || !ask)
		return KD_DROP_POLICY_DENIED;
	ask->sender.policy = KD_NO_POLICY;
	ask->receiver.policy = KD_NO_POLICY;
	ask->judged = 0;
	ask->answers = false;
	if (asks & KD_ASK_SENDER) {
		pod = bpf_map_lookup_elem(&kd_endpoints, &pkt->tuple.src);
		if (!pod || pod->ifindex != skb->ifindex)
			return KD_DROP_INVALID_SOURCE_IP;
		ask->sender.policy = pod->policy;
	}
	if (asks & KD_ASK_RECEIVER) {
		pod = bpf_map_lookup_elem(&kd_endpoints, &to->dst);
		if (pod && asks & KD_ASK_SENDER && pod->ifindex == skb->ifindex)
			return KD_CONTINUE; /* it meets itself behind a service */
		if (pod) {
			ask->receiver.policy = pod->policy;
			ask->judged = kd_judged_for(pod->ifindex);
		} else if (asks & KD_ASK_DEVICE) {
			return KD_DROP_POLICY_DENIED;
		}
	}
	if (host_firewall && asks & (KD_ASK_FROM_NODE | KD_ASK_TO_NODE))
		kd_ask_node(ask, asks, to);
	if (asks & KD_ASK_RELATED || (ask->sender.policy & ask->receiver.policy) == KD_NO_POLICY)
		return KD_CONTINUE;
	ask->sender.sends = true;
	ask->receiver.sends = false;
	ask->asks = asks;
	ask->way = *to;
	if (pkt->reply) {
		ask->way.src = pkt->tuple.src;
		ask->way.sport = pkt->tuple.sport;
	}
	result = kd_talk_ask(skb, pkt, ask);
	if (result == KD_CONTINUE && asks & KD_ASK_SENDER)
		skb->tc_index = ask->judged;
	if (dns && result == KD_CONTINUE) {
		named = kd_dns_is(pkt, to, ask);
		if (named)
			kd_dns_tell(skb, pkt, ask, named);
	}
	return ask->answers && kd_is_denied(result) && kd_can_be_told(skb, pkt, asks) ? KD_REJECT_DENIED : result;
}

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
	if (!pkt->tuple.protocol)
		return !skb->ingress_ifindex || !kd_is_strange(skb) ? result : KD_DROP_POLICY_DENIED;
	if (pkt->later && !kd_is_icmp(pkt) && !kd_fragment_find(pkt))
		asks |= KD_ASK_ALONE;
	return kd_let_pass(skb, pkt, &pkt->tuple, asks, result);
}

#endif /* KD_POLICY_H */
