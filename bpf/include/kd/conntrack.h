/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Flows: what was decided for the first packet holds for the rest, in both directions.
 *
 * Reads and writes kd_conntrack. A flow is two entries, the original direction (client -> frontend) and the
 * reply (backend -> client), made together or not at all. A packet costs one lookup, by its own tuple.
 *
 * Of a flow whose source alone is translated, and keeps its port, the reply is all that the first packet makes
 * (KD_CT_ALONE). The answer to it makes the original, or the next packet does, or user space before the rules change.
 * So what is never answered takes one entry, and a first packet waits for memory once.
 *
 * Once a second a flow's packet also visits the entry of the other direction. This keeps both halves equally
 * young in the LRU, makes the other one again if it was evicted, and tells the original that it was answered.
 *
 * When an entry stops to hold, kd_ct_over() says so and the next packet begins a new flow:
 *  - UDP: its backend is gone, or, asked once a second, what the client dials is not that service's any more. So
 *    stale flows heal before they are cleaned up (flow_reaper.bpf.c). An answer may be on its way even so, and no
 *    client takes it from the backend's own address: the reply direction lasts KD_CT_LINGER seconds longer, as
 *    KD_CT_ENDED, during which another flow may take its place.
 *  - TCP: a SYN arrives, and the flow was closed by FIN or RST in either direction, or as for UDP.
 *    A SYN sent again to a live backend stays where it was, and segments of a connection go on even when the
 *    backend has left its service: it may be finishing what it began.
 *
 *  - SCTP: as TCP, with INIT for SYN, INIT ACK for SYN-ACK, ABORT and SHUTDOWN COMPLETE for RST.
 *  - TCP, reply: a SYN-ACK on a closed flow answers a connection that the client made to the backend's own
 *    address, from the very ports that the flow had.
 *
 * Not told apart: such a connection while the flow is still open. Its answers seem to come from the frontend.
 */
#ifndef KD_CONNTRACK_H
#define KD_CONNTRACK_H

#include <stdbool.h>
#include <linux/bpf.h>
#include <linux/in.h>
#include <bpf/bpf_helpers.h>
#include <kd/addr.h>
#include <kd/begun.h>
#include <kd/config.h>
#include <kd/packet.h>
#include <kd/service.h>
#include <kd/told.h>
#include <kd/tuple.h>
#include <kd/types.h>
#include <kd/verdict.h>
#include <kd/maps/conntrack.h>
#include <kd/maps/losses.h>

#define KD_CT_CLOSED (KD_CT_FIN | KD_CT_RST)
#define KD_CT_LINGER 2 /* seconds, counted whole */
#define KD_CT_UDP_IDLE 30 /* seconds after which another flow may take a silent one's tuple */

static __always_inline bool kd_is_syn(const struct kd_pkt *pkt)
{
	return (pkt->tcp_flags & (KD_TCP_SYN | KD_TCP_ACK)) == KD_TCP_SYN;
}

static __always_inline bool kd_is_syn_ack(const struct kd_pkt *pkt)
{
	return (pkt->tcp_flags & (KD_TCP_SYN | KD_TCP_ACK)) == (KD_TCP_SYN | KD_TCP_ACK);
}

/* Its answers have had the time to come. `last_seen` is when the flow ended, whatever has come since. */
static __always_inline bool kd_ct_ended(const struct kd_ct *ct)
{
	return ct->flags & KD_CT_ENDED && (__s32)(kd_now() - ct->last_seen) > KD_CT_LINGER;
}

/* What the opposite direction's entry says: become what answers this direction's own tuple. */
static __always_inline struct kd_ct kd_ct_answer(const struct kd_tuple *tuple, const struct kd_ct *ct)
{
	struct kd_ct answer = {
		.to = kd_reversed(tuple),
		.backend = ct->backend,
		.service = ct->service,
		.flags = (ct->flags & KD_CT_REPLY ? KD_CT_SEEN_REPLY : KD_CT_REPLY) | (ct->flags & KD_CT_SOURCE),
	};

	return answer;
}

/* What the opposite direction's tuple leads to. */
KD_SUBPROGRAM struct kd_ct *kd_ct_other(const struct kd_ct *ct)
{
	struct kd_tuple opposite = kd_reversed(&ct->to);

	return kd_ct_find(&opposite);
}

/* What the client dials leads to another service now, or to none. */
KD_SUBPROGRAM bool kd_ct_moved(const struct kd_tuple *dialled, const struct kd_ct *ct)
{
	struct kd_frontend *frontend = kd_frontend_find(&dialled->dst, dialled->dport, dialled->protocol);

	return !frontend || frontend->service != ct->service;
}

/* The entry no longer decides for this packet. */
static __always_inline bool kd_ct_over(const struct kd_pkt *pkt, const struct kd_ct *ct)
{
	bool reply = ct->flags & KD_CT_REPLY;
	struct kd_ct *other;

	if (pkt->tuple.protocol != IPPROTO_UDP) {
		if (!(reply ? kd_is_syn_ack(pkt) : kd_is_syn(pkt)))
			return false;
		other = kd_ct_other(ct);
		if (!other)
			return !reply;
		if ((ct->flags | other->flags) & KD_CT_CLOSED)
			return true;
	}
	if (ct->flags & (KD_CT_REPLY | KD_CT_SOURCE))
		return kd_ct_ended(ct);
	if (!kd_backend_stays(ct->backend))
		return true;
	return (pkt->tuple.protocol != IPPROTO_UDP || ct->last_seen != kd_now()) && kd_ct_moved(&pkt->tuple, ct);
}

/* Flags are only ever added to an entry. */
static __always_inline void kd_ct_add_flags(const struct kd_tuple *tuple, struct kd_ct *ct, __u32 flags)
{
	struct kd_ct *twin;

	__sync_fetch_and_or(&ct->flags, flags);
	twin = kd_ct_twin(tuple, ct);
	if (twin)
		__sync_fetch_and_or(&twin->flags, flags);
}

/* The reply direction of a flow of datagrams that is over. */
KD_SUBPROGRAM void kd_ct_end(const struct kd_tuple *tuple, struct kd_ct *ct)
{
	struct kd_ct *twin;
	__u32 now = kd_now();

	ct->last_seen = now;
	twin = kd_ct_twin(tuple, ct);
	if (twin)
		twin->last_seen = now;
	kd_ct_add_flags(tuple, ct, KD_CT_ENDED);
}

/* A new flow may begin in its place at once. */
KD_SUBPROGRAM void kd_ct_forget(const struct kd_tuple *tuple, const struct kd_ct *ct)
{
	struct kd_tuple opposite = kd_reversed(&ct->to);
	struct kd_ct *other = kd_ct_find(&opposite);

	if (!other || !kd_ct_answers(other, tuple, ct))
		other = NULL;
	if (other && tuple->protocol == IPPROTO_UDP && !(ct->flags & (KD_CT_REPLY | KD_CT_SOURCE)))
		kd_ct_end(&opposite, other);
	else if (other)
		kd_ct_remove(&opposite);
	kd_ct_remove(tuple);
}

/* Make a half that is lost. Its tuple may be that of a flow to the world which has just begun. */
static __always_inline long kd_ct_put_half(const struct kd_tuple *tuple, const struct kd_ct *ct)
{
	if (ct->flags & KD_CT_REPLY)
		return kd_begun_put_settled(tuple, ct, BPF_NOEXIST);
	return kd_ct_put(tuple, ct, BPF_NOEXIST);
}

/* The once-a-second visit to the other direction. */
KD_SUBPROGRAM void kd_ct_visit_opposite(const struct kd_tuple *tuple, struct kd_ct *ct)
{
	struct kd_tuple opposite = kd_reversed(&ct->to);
	struct kd_ct answer = kd_ct_answer(tuple, ct);
	struct kd_ct *other = kd_ct_find(&opposite);
	bool alone = kd_ct_alone(ct);

	if (alone) { /* its first packet was told, as this one is */
		answer.told = ct->told;
		answer.tcp_flags = ct->tcp_flags;
	}
	if (!other && kd_ct_put_half(&opposite, &answer))
		return;
	if (alone)
		kd_ct_add_flags(tuple, ct, KD_CT_SEEN_REPLY);
	else if (!other)
		kd_lost(KD_LOSS_HALF);
	if (other && kd_ct_answers(other, tuple, ct) && answer.flags & ~other->flags)
		kd_ct_add_flags(&opposite, other, answer.flags);
}

/* Once more for the twin, which counts a packet twice if it was made just now. */
KD_SUBPROGRAM void kd_ct_touch_twin(const struct kd_tuple *tuple, struct kd_ct *ct, __u32 closing, __u32 now)
{
	struct kd_ct *twin = kd_ct_twin(tuple, ct);

	if (!twin)
		return;
	__sync_fetch_and_add(&twin->packets, 1);
	if (events)
		kd_ct_note_twin(twin, ct);
	if (closing & ~twin->flags)
		__sync_fetch_and_or(&twin->flags, closing);
	if (!(twin->flags & KD_CT_ENDED))
		twin->last_seen = now;
}

/* A packet of the entry of `tuple`: its own, or what that has become already. */
static __always_inline void kd_ct_touch(const struct kd_pkt *pkt, const struct kd_tuple *tuple, struct kd_ct *ct)
{
	__u32 now = kd_now();
	__u32 closing = 0;

	if (pkt->tcp_flags & KD_TCP_FIN)
		closing |= KD_CT_FIN;
	if (pkt->tcp_flags & KD_TCP_RST)
		closing |= KD_CT_RST;

	__sync_fetch_and_add(&ct->packets, 1);
	if (events)
		kd_ct_note(ct, now);
	if (closing & ~ct->flags)
		__sync_fetch_and_or(&ct->flags, closing);
	if (moving)
		kd_ct_touch_twin(tuple, ct, closing, now);
	if ((ct->last_seen == now && !kd_ct_alone(ct)) || ct->flags & KD_CT_ENDED)
		return;
	ct->last_seen = now;
	kd_ct_visit_opposite(tuple, ct);
}

/* Signed: another CPU may have seen the flow in a second that has not begun here. */
static __always_inline bool kd_idle(const struct kd_ct *ct, __u32 now)
{
	return (__s32)(now - ct->last_seen) > KD_CT_UDP_IDLE;
}

/*
 * May the flow that holds the tuple of a new flow's answers be thrown out? Two flows of one client port to
 * one backend through two frontends cannot be told apart there, so the second waits until the first is over.
 */
static __always_inline bool kd_ct_evict(const struct kd_tuple *tuple, const struct kd_ct *held, __u32 now)
{
	struct kd_tuple opposite = kd_reversed(&held->to);
	const struct kd_ct *other = kd_ct_find(&opposite);
	bool alone, over;

	alone = !other || !kd_ct_answers(other, tuple, held);
	if (alone && !kd_ct_alone(held))
		return true;
	if (alone)
		other = held;
	over = (held->flags | other->flags) & KD_CT_CLOSED;
	if (tuple->protocol != IPPROTO_TCP && tuple->protocol != IPPROTO_SCTP)
		over = kd_idle(held, now) && kd_idle(other, now);
	if (over && !alone)
		kd_ct_remove(&opposite);
	return over;
}

#endif /* KD_CONNTRACK_H */
