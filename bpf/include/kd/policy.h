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
 * The node itself is asked as a pod is, once it has a policy, at its uplinks alone: kd_guard() of kd/passage.h.
 *
 * Reads kd_endpoints, kd_ipcache, kd_networks, kd_identities, kd_policies and kd_rules; writes kd_talks and kd_rule_counts, and what
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
#include <kd/dns_rules.h>
#include <kd/dns_stream.h>
#include <kd/enforce.h>
#include <kd/forward.h>
#include <kd/newcomer.h>
#include <kd/packet.h>
#include <kd/rules.h>
#include <kd/scene.h>
#include <kd/talks.h>
#include <kd/types.h>
#include <kd/verdict.h>
#include <kd/maps/endpoints.h>
#include <kd/maps/policy.h>

#define KD_IDENTITY_REMOTE_NODE 6

KD_CONFIG(bool, host_firewall, "policies are for the node itself as well") = false;

#define KD_NODE_POLICY 1 /* that of the node itself; it has none: nothing is asked */

/* What was asked where a packet came in holds for this receiver. */
static __always_inline void kd_mark(struct __sk_buff *skb, __u32 asks, __u16 judged)
{
	if (asks & (KD_ASK_SENDER | KD_ASK_OUTSIDE) && !(asks & KD_ASK_TO_NODE))
		skb->tc_index = judged;
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
		return kd_number_told(&ask->query, addr, told);
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
	if (number == KD_NOBODY)
		return KD_DROP_POLICY_DENIED;
	rule = kd_rule_of(&ask->query, policy, number, kd_asked_port(ask), ask->way.protocol);
	if (!rule)
		return KD_DROP_POLICY_DENIED;
	end->counter = rule->counter;
	end->requests = rule->l7;
	end->names = rule->l7 & KD_NAMES;
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
	if (!ask->begins && revision && end->revision == revision) { /* 0: nobody has asked here, or can */
		if (end->counter)
			kd_rule_count(skb, end->counter);
		return KD_CONTINUE;
	}
	end->counter = 0;
	end->asked = true;
	end->requests = false;
	end->names = false;
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
	scene->event.source_rule = ask->sender.counter;
	scene->event.destination_rule = ask->receiver.counter;
	if (ask->sender.asked)
		scene->event.flags |= KD_EVENT_SOURCE_ASKED;
	if (ask->receiver.asked)
		scene->event.flags |= KD_EVENT_DESTINATION_ASKED;
	if (result == KD_CONTINUE && (ask->sender.denies || ask->receiver.denies))
		scene->event.flags |= KD_EVENT_AUDITED;
	if (result != KD_CONTINUE)
		scene->event.flags |= ask->receiver.asked ? KD_EVENT_DENIED_BY_DESTINATION : KD_EVENT_DENIED_BY_SOURCE;
}

/* Whether a pod may ask another end for some names only. */
KD_SUBPROGRAM int kd_is_held_to_names(struct __sk_buff *skb, struct kd_asking *ask, bool receiver)
{
	__u32 index = 2 * (receiver ? ask->receiver.policy : ask->sender.policy) + KD_EGRESS, number;
	struct kd_policy *policy;
	struct kd_rule *rule;

	if (index == 2 * KD_NO_POLICY + KD_EGRESS)
		return false;
	policy = bpf_map_lookup_elem(&kd_policies, &index);
	if (!policy || !(policy->flags & KD_POLICY_NAMES) || policy->flags & (KD_POLICY_OPEN | KD_POLICY_AUDIT))
		return false;
	number = kd_number_of(skb, ask, receiver ? &ask->way.src : &ask->way.dst, receiver);
	rule = kd_rule_of(&ask->query, policy, number, receiver ? ask->way.sport : ask->way.dport, ask->way.protocol);
	return rule && !rule->deny && rule->l7 & KD_NAMES;
}

/*
 * Whether what a server says begins a talk with a pod that may ask it for some names only: it is an answer, and nobody
 * remembers the question. Were it the server's beginning, the pod could say anything from here on.
 */
static __always_inline bool kd_answers_nobody(struct __sk_buff *skb, struct kd_asking *ask)
{
	return kd_is_held_to_names(skb, ask, true);
}

/*
 * Whether a pod sends a datagram in a talk that such a server began, before that was so: it is the pod's beginning now. Of
 * TCP the pod has to begin with a SYN, and then it is.
 */
static __always_inline bool kd_asks_by_answering(struct __sk_buff *skb, struct kd_asking *ask)
{
	return !ask->by_sender && ask->way.protocol == IPPROTO_UDP && ask->asks & KD_ASK_SENDER &&
	       kd_is_held_to_names(skb, ask, false);
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
	if (dns && found && kd_asks_by_answering(skb, ask))
		found = NULL;
	if (!found)
		kd_talk_begin(ask);
	result = kd_ends_ask(skb, ask);
	if (result != KD_CONTINUE && !ask->by_sender && !pkt->tcp_flags) {
		/* Not as an answer. Where nothing tells answers from beginnings, it may be a beginning. */
		found = NULL;
		kd_talk_begin(ask);
		result = kd_ends_ask(skb, ask);
	}
	if (dns && result == KD_CONTINUE && ask->begins && !kd_is_syn(pkt) && kd_answers_nobody(skb, ask))
		result = KD_DROP_NAME;
	if (result == KD_CONTINUE && !once)
		kd_talk_keep(pkt, ask, found, now);
	kd_scene_judge(ask, result);
	return result;
}

/*
 * What a pod sends to a name server that it may ask for some names only: whether that is one of them. The rule is looked
 * for again, since a talk goes on for as long as the server may be talked to.
 */
KD_SUBPROGRAM int kd_names_ask(struct __sk_buff *skb, const struct kd_pkt *pkt, struct kd_asking *ask)
{
	__u32 index = 2 * ask->sender.policy + KD_EGRESS;
	struct kd_policy *policy = bpf_map_lookup_elem(&kd_policies, &index);
	struct kd_scene *scene = events ? kd_scene_of_cpu() : NULL;
	bool tcp = ask->way.protocol == IPPROTO_TCP;
	struct kd_rule *rule;
	__u32 number;
	int result;

	if (tcp && kd_dns_is_silent(skb, pkt)) {
		result = kd_dns_stream_end(skb, pkt, &ask->way);
		return policy && policy->flags & KD_POLICY_AUDIT ? KD_CONTINUE : result;
	}
	if (!policy)
		return KD_DROP_POLICY_DENIED;
	number = kd_number_of(skb, ask, &ask->way.dst, false);
	rule = kd_rule_of(&ask->query, policy, number, ask->way.dport, ask->way.protocol);
	if (rule && !(rule->l7 & KD_NAMES) && !rule->deny) /* it is another one by now */
		return KD_CONTINUE;
	if (!rule || rule->deny)
		result = KD_DROP_POLICY_DENIED;
	else if (tcp)
		result = kd_dns_stream_ask(skb, pkt, &ask->way, rule->l7 & ~KD_NAMES, policy->flags & KD_POLICY_AUDIT);
	else
		result = kd_dns_ask(skb, pkt, rule->l7 & ~KD_NAMES);
	ask->names = KD_DNS_HELD;
	if (result == KD_CONTINUE)
		return result;
	ask->names |= policy->flags & KD_POLICY_AUDIT ? KD_DNS_DENIED | KD_DNS_AUDITED : KD_DNS_DENIED;
	if (scene)
		scene->event.flags |= policy->flags & KD_POLICY_AUDIT ? KD_EVENT_AUDITED : KD_EVENT_DENIED_BY_SOURCE;
	if (policy->flags & KD_POLICY_AUDIT)
		return KD_CONTINUE;
	if (result == KD_REJECT_NAME &&
	    (skb->pkt_type == PACKET_MULTICAST || skb->pkt_type == PACKET_BROADCAST))
		return KD_DROP_NAME;
	return result;
}

/* Whether it is such a thing. An explanation has no message: it says that there are rules. */
static __always_inline bool kd_asks_name(const struct kd_asking *ask)
{
	return dns && !KD_EXPLAINING && ask->asks & KD_ASK_SENDER && ask->by_sender && ask->sender.names;
}

/* Whether it is from such a server, over TCP. */
static __always_inline bool kd_answers_name(const struct kd_asking *ask)
{
	return dns && !KD_EXPLAINING && ask->asks & KD_ASK_RECEIVER && !ask->by_sender && ask->receiver.names &&
	       ask->way.protocol == IPPROTO_TCP;
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
	ask->judged = KD_JUDGED_FOR_NOBODY;
	ask->answers = false;
	ask->names = 0;
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
		} else if (asks & KD_ASK_DEVICE || kd_is_newcomer(&to->dst)) {
			return KD_DROP_POLICY_DENIED;
		}
	}
	if (host_firewall && asks & (KD_ASK_FROM_NODE | KD_ASK_TO_NODE))
		kd_ask_node(ask, asks, to);
	if (asks & KD_ASK_RELATED)
		return KD_CONTINUE;
	if ((ask->sender.policy & ask->receiver.policy) == KD_NO_POLICY) {
		kd_mark(skb, asks, ask->judged);
		return KD_CONTINUE;
	}
	ask->sender.sends = true;
	ask->receiver.sends = false;
	ask->asks = asks;
	ask->way = *to;
	if (pkt->reply) {
		ask->way.src = pkt->tuple.src;
		ask->way.sport = pkt->tuple.sport;
	}
	result = kd_talk_ask(skb, pkt, ask);
	if (result != KD_CONTINUE)
		return ask->answers && kd_is_denied(result) && kd_can_be_told(skb, pkt, asks) ? KD_REJECT_DENIED :
												result;
	if (kd_asks_name(ask))
		result = kd_names_ask(skb, pkt, ask);
	else if (kd_answers_name(ask))
		result = kd_dns_stream_reply(skb, pkt, ask);
	if (result == KD_CONTINUE)
		kd_mark(skb, asks, ask->judged);
	if (dns) {
		named = kd_dns_is(pkt, to, ask);
		if (named && ask->way.protocol == IPPROTO_TCP)
			kd_dns_tell_stream(skb, pkt, ask, named);
		else if (named)
			kd_dns_tell(skb, pkt, ask, named);
	}
	return result;
}

#endif /* KD_POLICY_H */
