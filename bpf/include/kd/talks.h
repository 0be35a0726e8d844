/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Talks: packets between two ends that policies have let begin. All that follow, in either direction, pass for as long
 * as the policy of each end that is a pod of this node has the revision by which it has let them.
 *
 * An end is known by its own address, never by a service's: a packet belongs to the same talk wherever on its way it
 * is looked at. Reads and writes kd_talks.
 */
#ifndef KD_TALKS_H
#define KD_TALKS_H

#include <stdbool.h>
#include <linux/bpf.h>
#include <linux/in.h>
#include <bpf/bpf_helpers.h>
#include <kd/packet.h>
#include <kd/rules.h>
#include <kd/trace.h>
#include <kd/tuple.h>
#include <kd/types.h>
#include <kd/maps/policy.h>

#define KD_TALK_IDLE_TCP 8000 /* seconds, as of SCTP */
#define KD_TALK_IDLE_CLOSING 120 /* TCP after FIN or RST */
#define KD_TALK_IDLE 120 /* all else */

enum kd_asks {
	KD_ASK_SENDER = 1, /* the packet comes from a pod's device */
	KD_ASK_RECEIVER = 2, /* its destination, if that is a pod of this node */
	KD_ASK_DEVICE = 4, /* the packet goes to a pod's device: whatever its destination is */
	KD_ASK_OUTSIDE = 8, /* it is not of this node */
	KD_ASK_RELATED = 16, /* it is about a talk that is allowed */
	KD_ASK_ONCE = 32, /* it begins no talk, and belongs to none */
	KD_ASK_TUNNELLED = 64, /* cb[0] is the identity of its sender */
	KD_ASK_ALONE = 128, /* a later fragment whose first is not known */
	KD_ASK_FROM_NODE = 256, /* the node itself sends it */
	KD_ASK_TO_NODE = 512, /* its destination, if that is the node itself */
	KD_ASK_TYPE_SHIFT = 16, /* above: the type of ICMP */
};

#define KD_NO_POLICY 0xffffffff /* it is no pod of this node */

/* One end of the talk. */
struct kd_end {
	__u32 policy;
	__u32 revision;
	__u32 counter;
	bool sends;
	bool asked; /* its rules, for this packet */
	bool denies; /* though it may only look on */
	bool requests : 1; /* the policy has more to say than that the talk may be */
	bool names : 1; /* and it is which names may be asked for */
};

/* A packet, as both ends are known to policies. */
struct kd_asking {
	struct kd_tuple way;
	struct kd_tuple key; /* of the talk */
	struct kd_talk talk; /* as it becomes */
	struct kd_end sender;
	struct kd_end receiver;
	struct kd_query query;
	__u32 asks; /* enum kd_asks */
	__u16 judged; /* see kd_judged_for() */
	__u8 second; /* 1: the sender is the second end in the key */
	bool begins;
	bool by_sender; /* began the talk */
	bool answers; /* a denial */
	__u8 names; /* enum kd_dns_flags: what rules about names have said */
};

/* Room for it, which there is none for on the stack. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct kd_asking);
} kd_asking SEC(".maps");

static __always_inline bool kd_talk_over(const struct kd_talk *talk, __u8 protocol, __u32 now)
{
	__s32 idle = KD_TALK_IDLE;

	if (protocol == IPPROTO_TCP || protocol == IPPROTO_SCTP)
		idle = talk->flags & KD_CT_CLOSED ? KD_TALK_IDLE_CLOSING : KD_TALK_IDLE_TCP;
	return (__s32)(now - talk->last_seen) > idle;
}

/* The talk begins with this packet. */
static __always_inline void kd_talk_begin(struct kd_asking *ask)
{
	ask->begins = true;
	ask->by_sender = true;
	ask->sender.revision = 0;
	ask->sender.requests = false;
	ask->sender.names = false;
	ask->receiver.revision = 0;
	ask->receiver.requests = false;
	ask->receiver.names = false;
}

/* The talk goes on, as far as it may, where it is known. */
static __always_inline void kd_talk_resume(struct kd_asking *ask, const struct kd_talk *talk)
{
	__u8 second = ask->second & 1;

	ask->begins = false;
	ask->by_sender = (talk->flags & KD_TALK_SECOND) == second;
	ask->sender.revision = talk->revision[second];
	ask->sender.counter = talk->counter[second];
	ask->sender.requests = talk->flags & KD_TALK_REQUESTS_OF(second);
	ask->sender.names = talk->flags & KD_TALK_NAMES_OF(second);
	ask->receiver.revision = talk->revision[!second];
	ask->receiver.counter = talk->counter[!second];
	ask->receiver.requests = talk->flags & KD_TALK_REQUESTS_OF(!second);
	ask->receiver.names = talk->flags & KD_TALK_NAMES_OF(!second);
}

static __always_inline __u32 kd_talk_closing(const struct kd_pkt *pkt)
{
	return (pkt->tcp_flags & KD_TCP_RST ? KD_CT_RST : 0) | (pkt->tcp_flags & KD_TCP_FIN ? KD_CT_FIN : 0);
}

/* What one end has to say besides, of KD_TALK_SAYS_OF(). */
static __always_inline __u32 kd_talk_requests(__u8 second, const struct kd_end *end)
{
	return (end->requests ? KD_TALK_REQUESTS_OF(second) : 0) | (end->names ? KD_TALK_NAMES_OF(second) : 0);
}

/* What one end has said: whoever reads the revision finds what there is more to say. */
static __always_inline void kd_talk_say(struct kd_talk *talk, __u8 second, const struct kd_end *end)
{
	__u32 says = kd_talk_requests(second, end);

	if (talk->revision[second] == end->revision)
		return;
	__sync_fetch_and_or(&talk->flags, says);
	__sync_fetch_and_and(&talk->flags, says | ~KD_TALK_SAYS_OF(second));
	talk->revision[second] = end->revision;
}

/* What both ends have said, for the packets that follow. */
static __always_inline void kd_talk_keep(const struct kd_pkt *pkt, struct kd_asking *ask, struct kd_talk *found,
					 __u32 now)
{
	__u32 closing = kd_talk_closing(pkt);
	__u8 second = ask->second & 1;

	if (found) {
		kd_talk_say(found, second, &ask->sender);
		if (found->counter[second] != ask->sender.counter)
			found->counter[second] = ask->sender.counter;
		kd_talk_say(found, !second, &ask->receiver);
		if (found->counter[!second] != ask->receiver.counter)
			found->counter[!second] = ask->receiver.counter;
		if (closing & ~found->flags)
			__sync_fetch_and_or(&found->flags, closing);
		if (found->last_seen != now)
			found->last_seen = now;
		return;
	}
	ask->talk.revision[second] = ask->sender.revision;
	ask->talk.counter[second] = ask->sender.counter;
	ask->talk.revision[!second] = ask->receiver.revision;
	ask->talk.counter[!second] = ask->receiver.counter;
	ask->talk.last_seen = now;
	ask->talk.flags = closing | second | kd_talk_requests(second, &ask->sender) |
			  kd_talk_requests(!second, &ask->receiver);
	if (!KD_EXPLAINING)
		bpf_map_update_elem(&kd_talks, &ask->key, &ask->talk, BPF_ANY);
}

#endif /* KD_TALKS_H */
