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
 * and before an answer of one is. Who receives (ingress) is asked where a packet is put into a pod, which is in several
 * places: so both know a talk by the addresses of pods, never by a service's.
 *
 * Always allowed: a pod to itself, through a service too; neighbour discovery; errors about a talk, and those that
 * tell of smaller MTUs; what our own programs answer a pod. A pod sends under its own addresses only. Later fragments
 * follow their first.
 *
 * Reads kd_endpoints, kd_ipcache, kd_networks, kd_policies and kd_rules; writes kd_talks and kd_rule_counts.
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
#include <kd/echo.h>
#include <kd/forward.h>
#include <kd/icmp.h>
#include <kd/packet.h>
#include <kd/types.h>
#include <kd/verdict.h>
#include <kd/maps/endpoints.h>
#include <kd/maps/policy.h>

KD_CONFIG(bool, enforce, "pods send and receive what policies allow") = false;

#define KD_TALK_IDLE_TCP 8000 /* seconds, as of SCTP */
#define KD_TALK_IDLE_CLOSING 120 /* TCP after FIN or RST */
#define KD_TALK_IDLE 120 /* all else */

#define KD_ICMP_FRAGMENTATION_NEEDED 4
#define KD_ICMPV6_MLD_QUERY 130 /* multicast listeners to 132, neighbours to 137 */
#define KD_ICMPV6_REDIRECT 137
#define KD_ICMPV6_MLD2_REPORT 143

#define KD_IDENTITY_REMOTE_NODE 6

enum kd_asks {
	KD_ASK_SENDER = 1, /* the packet comes from a pod's device */
	KD_ASK_RECEIVER = 2, /* its destination, if that is a pod of this node */
	KD_ASK_DEVICE = 4, /* the packet goes to a pod's device: whatever its destination is */
	KD_ASK_OUTSIDE = 8, /* it is not of this node */
	KD_ASK_RELATED = 16, /* it is about a talk that is allowed */
	KD_ASK_ONCE = 32, /* it begins no talk, and belongs to none */
	KD_ASK_TUNNELLED = 64, /* cb[0] is the identity of its sender */
	KD_ASK_ALONE = 128, /* a later fragment whose first is not known */
	KD_ASK_TYPE_SHIFT = 8, /* above: the type of ICMP */
};

/* One end of the talk. */
struct kd_end {
	__u32 policy;
	__u32 revision;
	__u32 counter;
	bool sends;
};

/* A packet, as both ends are known to policies. */
struct kd_asking {
	struct kd_tuple way;
	struct kd_tuple key; /* of the talk */
	struct kd_talk talk; /* as it becomes */
	struct kd_end sender;
	struct kd_end receiver;
	struct kd_peer_key peer;
	struct kd_rule_key rule;
	__u32 asks; /* enum kd_asks */
	__u8 second; /* 1: the sender is the second end in the key */
	bool begins;
	bool by_sender; /* began the talk */
};

/* Room for it, which there is none for on the stack. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct kd_asking);
} kd_asking SEC(".maps");

#define KD_NO_POLICY 0xffffffff /* it is no pod of this node */

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

static __always_inline bool kd_talk_over(const struct kd_talk *talk, __u8 protocol, __u32 now)
{
	__s32 idle = KD_TALK_IDLE;

	if (protocol == IPPROTO_TCP || protocol == IPPROTO_SCTP)
		idle = talk->flags & KD_CT_CLOSED ? KD_TALK_IDLE_CLOSING : KD_TALK_IDLE_TCP;
	return (__s32)(now - talk->last_seen) > idle;
}

static __always_inline struct kd_party *kd_party_of(struct kd_asking *ask, const struct kd_addr *addr)
{
	struct kd_party *party = bpf_map_lookup_elem(&kd_ipcache, addr);

	if (party)
		return party;
	ask->peer.prefixlen = 8 * sizeof(ask->peer.addr);
	ask->peer.addr = *addr;
	return bpf_map_lookup_elem(&kd_networks, &ask->peer);
}

/*
 * What policies know the peer of an end by. Of a sender more is known than its address: that it is this node, what
 * the tunnel said, or that it cannot be this node.
 */
static __always_inline __u32 kd_number_of(struct __sk_buff *skb, struct kd_asking *ask, const struct kd_addr *addr,
					  bool sends)
{
	struct kd_party *party = kd_party_of(ask, addr);
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
	if (sends && ask->asks & KD_ASK_OUTSIDE && party->identity == KD_IDENTITY_HOST)
		return KD_IDENTITY_UNKNOWN;
	return party->number;
}

/* The rule with the longest prefix of the port, of a party and a table that the key names. */
static __always_inline struct kd_rule *kd_rule_find(struct kd_rule_key *key, __be16 port, __u8 protocol,
						    __u32 lengths)
{
	struct kd_rule *rule;

	key->protocol = protocol;
	for (int bits = 16; bits >= 0; bits--) {
		if (!(lengths >> bits & 1))
			continue;
		key->bits = bits;
		key->port = port & bpf_htons(0xffff0000 >> bits);
		rule = bpf_map_lookup_elem(&kd_rules, key);
		if (rule)
			return rule;
	}
	key->protocol = 0;
	key->port = 0;
	key->bits = 0;
	return bpf_map_lookup_elem(&kd_rules, key);
}

static __always_inline void kd_rule_count(const struct __sk_buff *skb, __u32 counter)
{
	struct kd_counter *count = bpf_map_lookup_elem(&kd_rule_counts, &counter);

	if (count && !KD_EXPLAINING) {
		count->packets++;
		count->bytes += skb->len;
	}
}

/* What the rules of one end say of its peer. */
KD_SUBPROGRAM int kd_rules_ask(struct __sk_buff *skb, struct kd_asking *ask, const struct kd_addr *peer,
			       struct kd_end *end, const struct kd_policy *policy)
{
	__be16 port = ask->by_sender ? ask->way.dport : ask->way.sport;
	bool audit = policy->flags & KD_POLICY_AUDIT;
	__u32 lengths = policy->lengths;
	struct kd_rule *rule, *of_all;

	if (ask->asks & KD_ASK_ALONE)
		return KD_DROP_FRAGMENT;
	if (ask->way.protocol == IPPROTO_ICMP || ask->way.protocol == IPPROTO_ICMPV6)
		port = bpf_htons(ask->asks >> KD_ASK_TYPE_SHIFT);
	ask->rule.table = policy->table;
	ask->rule.number = 0;
	of_all = kd_rule_find(&ask->rule, port, ask->way.protocol, lengths);
	ask->rule.number = kd_number_of(skb, ask, peer, !end->sends);
	rule = ask->rule.number ? kd_rule_find(&ask->rule, port, ask->way.protocol, lengths) : NULL;
	if (!rule || (of_all && of_all->precedence > rule->precedence))
		rule = of_all;
	if (!rule)
		return KD_DROP_POLICY_DENIED;
	end->counter = rule->counter;
	kd_rule_count(skb, rule->counter);
	return rule->deny && !audit ? KD_DROP_POLICY_DENIED : KD_CONTINUE;
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
	result = policy->flags & KD_POLICY_OPEN ? KD_CONTINUE : kd_rules_ask(skb, ask, peer, end, policy);
	end->revision = revision;
	return result;
}

static __always_inline int kd_ends_ask(struct __sk_buff *skb, struct kd_asking *ask)
{
	int result = kd_end_ask(skb, ask, &ask->way.dst, &ask->sender);

	return result == KD_CONTINUE ? kd_end_ask(skb, ask, &ask->way.src, &ask->receiver) : result;
}

/* The talk begins with this packet. */
static __always_inline void kd_talk_begin(struct kd_asking *ask)
{
	ask->begins = true;
	ask->by_sender = true;
	ask->sender.revision = 0;
	ask->receiver.revision = 0;
}

/* The talk goes on, as far as it may, where it is known. */
static __always_inline void kd_talk_resume(struct kd_asking *ask, const struct kd_talk *talk)
{
	__u8 second = ask->second & 1;

	ask->begins = false;
	ask->by_sender = (talk->flags & KD_TALK_SECOND) == second;
	ask->sender.revision = talk->revision[second];
	ask->sender.counter = talk->counter[second];
	ask->receiver.revision = talk->revision[!second];
	ask->receiver.counter = talk->counter[!second];
}

static __always_inline __u32 kd_talk_closing(const struct kd_pkt *pkt)
{
	return (pkt->tcp_flags & KD_TCP_RST ? KD_CT_RST : 0) | (pkt->tcp_flags & KD_TCP_FIN ? KD_CT_FIN : 0);
}

/* What both ends have said, for the packets that follow. */
static __always_inline void kd_talk_keep(const struct kd_pkt *pkt, struct kd_asking *ask, struct kd_talk *found,
					 __u32 now)
{
	__u32 closing = kd_talk_closing(pkt);
	__u8 second = ask->second & 1;

	if (found) {
		if (found->revision[second] != ask->sender.revision)
			found->revision[second] = ask->sender.revision;
		if (found->counter[second] != ask->sender.counter)
			found->counter[second] = ask->sender.counter;
		if (found->revision[!second] != ask->receiver.revision)
			found->revision[!second] = ask->receiver.revision;
		if (found->counter[!second] != ask->receiver.counter)
			found->counter[!second] = ask->receiver.counter;
		if (closing & ~found->flags)
			found->flags |= closing;
		if (found->last_seen != now)
			found->last_seen = now;
		return;
	}
	ask->talk.revision[second] = ask->sender.revision;
	ask->talk.counter[second] = ask->sender.counter;
	ask->talk.revision[!second] = ask->receiver.revision;
	ask->talk.counter[!second] = ask->receiver.counter;
	ask->talk.last_seen = now;
	ask->talk.flags = closing | second;
	if (!KD_EXPLAINING)
		bpf_map_update_elem(&kd_talks, &ask->key, &ask->talk, BPF_ANY);
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
	return result;
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

	if (!enforce)
		return KD_CONTINUE;
	ask = bpf_map_lookup_elem(&kd_asking, &zero);
	if (!pkt || !to || !ask)
		return KD_DROP_POLICY_DENIED;
	ask->sender.policy = KD_NO_POLICY;
	ask->receiver.policy = KD_NO_POLICY;
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
		if (pod)
			ask->receiver.policy = pod->policy;
		else if (asks & KD_ASK_DEVICE)
			return KD_DROP_POLICY_DENIED;
	}
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
	return kd_talk_ask(skb, pkt, ask);
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
	if (pkt->fragment && !pkt->later)
		kd_fragment_keep(pkt);
	return result;
}

/*
 * A packet that comes in, and becomes `to`. What is left to the stack meets its receiver later, where of a tunnel
 * nothing is known any more.
 */
static __always_inline int kd_let_through(struct __sk_buff *skb, struct kd_pkt *pkt, const struct kd_tuple *to,
					  bool outside, int result)
{
	__u32 asks = KD_ASK_SENDER;

	if (!enforce || (result != KD_PASS && result != KD_CONTINUE && result != KD_TO_STACK))
		return result;
	if (outside)
		asks = KD_ASK_OUTSIDE | (pkt->tunnelled ? KD_ASK_TUNNELLED : 0);
	if (result != KD_PASS || pkt->tunnelled)
		asks |= KD_ASK_RECEIVER;
	if (asks == KD_ASK_OUTSIDE)
		return result;
	return kd_let_pass(skb, pkt, to, asks, result);
}

/* The same of what has no ports, or none that are known. */
static __always_inline int kd_let_whole(struct __sk_buff *skb, struct kd_pkt *pkt, bool outside, int result)
{
	if (!enforce || result != KD_PASS || !pkt->tuple.protocol || (outside && !pkt->tunnelled))
		return result;
	return kd_let_pass(skb, pkt, &pkt->tuple,
			   (outside ? KD_ASK_OUTSIDE | KD_ASK_TUNNELLED | KD_ASK_RECEIVER : KD_ASK_SENDER) |
				   (pkt->later ? KD_ASK_ALONE : 0),
			   result);
}

/*
 * A packet that goes to a pod's device. What came in through the same is our own answer to the pod, or what it sends
 * to itself.
 */
static __always_inline int kd_let_in(struct __sk_buff *skb, struct kd_pkt *pkt, int result)
{
	__u32 asks = KD_ASK_DEVICE | KD_ASK_RECEIVER;

	if (!enforce || result < 0 || !pkt->tuple.protocol || skb->ingress_ifindex == skb->ifindex)
		return result;
	if (pkt->later && !kd_is_icmp(pkt) && !kd_fragment_find(pkt))
		asks |= KD_ASK_ALONE;
	return kd_let_pass(skb, pkt, &pkt->tuple, asks, result);
}

#endif /* KD_POLICY_H */
