/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The end of every packet at a tc hook: it is counted, told of (kd/event.h), and the kernel has its answer. */
#ifndef KD_FINISH_H
#define KD_FINISH_H

#include <stdbool.h>
#include <linux/bpf.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_helpers.h>
#include <kd/event.h>
#include <kd/icmp.h>
#include <kd/packet.h>
#include <kd/scene.h>
#include <kd/told.h>
#include <kd/verdict.h>

/* Its errors are about other connections. */
static __always_inline void kd_event_icmp(struct __sk_buff *skb, const struct kd_pkt *pkt, struct kd_scene *scene)
{
	__u8 head[2] = {};

	if (!pkt->later)
		bpf_skb_load_bytes(skb, pkt->l4_off, head, sizeof(head));
	scene->event.icmp_type = head[0];
	scene->event.icmp_code = head[1];
	if (!pkt->later && kd_icmp_is_error(pkt->ipv6, head[0]))
		scene->event.state = KD_STATE_RELATED;
}

/* Where a packet came from that did not go its way, or has no ports of its own, and where it was to go. */
KD_SUBPROGRAM void kd_event_odd_way(const struct kd_pkt *pkt, struct kd_scene *scene, bool denied, bool answered)
{
	scene->event.protocol = pkt->tuple.protocol;
	if (pkt->later && !answered) { /* its ports were remembered, if they are known */
		scene->before.sport = pkt->tuple.sport;
		scene->before.dport = pkt->tuple.dport;
	}
	if (kd_is_icmp(pkt)) { /* it has none, whatever stands there for translation */
		scene->before.sport = 0;
		scene->before.dport = 0;
	}
	if (denied) { /* as it would have gone on */
		scene->event.protocol = scene->way.protocol;
		kd_event_ends(scene, &scene->way, &scene->way);
		return;
	}
	kd_tuple_copy(&scene->way, answered ? &scene->before : &pkt->tuple);
	if (kd_is_icmp(pkt)) {
		scene->way.sport = 0;
		scene->way.dport = 0;
	}
	kd_event_ends(scene, &scene->before, &scene->way);
}

static __always_inline void kd_event_way(const struct kd_pkt *pkt, int result, struct kd_scene *scene)
{
	bool answered = kd_is_reject(result) || result == KD_ECHO || result == KD_TOO_BIG;
	bool denied = scene->judged && kd_is_denied(result);

	if (answered || denied || pkt->later || kd_is_icmp(pkt)) {
		kd_event_odd_way(pkt, scene, denied, answered);
		return;
	}
	scene->event.protocol = pkt->tuple.protocol;
	kd_event_ends(scene, &scene->before, &pkt->tuple);
}

#define KD_EVENT_TICK 4000000 /* nanoseconds by which the coarse clock is behind at most, with 250 ticks a second */

/*
 * When a pod has sent the packet, if its TCP has just written that down: the clock costs more than all else that an
 * event is filled with. A pod may write what it likes, or when the packet is to be sent, so only what is a tick from
 * now at most is taken. 0: ask the clock.
 */
static __always_inline __u64 kd_event_sent(const struct __sk_buff *skb, __u32 point)
{
	__u64 sent = skb->tstamp;

	if (point != KD_FROM_POD || skb->tstamp_type != BPF_SKB_TSTAMP_DELIVERY_MONO)
		return 0;
	return sent - bpf_ktime_get_coarse_ns() < KD_EVENT_TICK ? sent : 0;
}

/* Nothing that is worth a function: it has gone on as those before it in its flow. */
static __always_inline bool kd_event_is_none(int result)
{
	const struct kd_scene *scene = kd_scene_of_cpu();

	return scene && scene->noted && !scene->news && result >= 0 && !kd_is_denied(result) &&
	       !(scene->event.flags & KD_EVENT_AUDITED);
}

/* A packet at a tc hook has come to its end. */
KD_FUNCTION int kd_event_packet(struct __sk_buff *skb, const struct kd_pkt *pkt, int result, __u32 point)
{
	struct kd_scene *scene = kd_scene_of_cpu();

	if (!scene || !pkt || (result >= 0 && !pkt->ttl)) /* nothing that has addresses */
		return 0;
	if (scene->noted && (result < 0 || kd_is_denied(result)))
		kd_ct_untold(&scene->before);
	scene->event.result = result;
	scene->event.point = point;
	scene->event.ifindex = skb->ifindex;
	scene->event.ttl = pkt->ttl;
	scene->event.state = pkt->reply ? KD_STATE_REPLY : KD_STATE_UNKNOWN;
	scene->event.icmp_type = 0;
	scene->event.icmp_code = 0;
	scene->event.flags |= (pkt->fragment ? KD_EVENT_FRAGMENT : 0) | (pkt->tunnelled ? KD_EVENT_TUNNELLED : 0) |
			      (!kd_comes_in(point) && !skb->ingress_ifindex ? KD_EVENT_OWN : 0);
	scene->told = pkt->tunnelled ? skb->cb[0] : 0;
	if (kd_is_icmp(pkt))
		kd_event_icmp(skb, pkt, scene);
	kd_event_way(pkt, result, scene);
	if (!kd_event_due(scene))
		return 0;
	scene->event.time = kd_event_sent(skb, point);
	kd_event_tell(scene);
	return 0;
}

/*
 * The end of every packet at a tc hook. What is not dropped or redirected goes to the next program on
 * the hook and then to the stack, so that others can work behind us.
 */
static __always_inline int kd_finish(struct __sk_buff *skb, const struct kd_pkt *pkt, int result, enum kd_point point)
{
	kd_count(result, skb->len);
	if (events && !kd_event_is_none(result))
		kd_event_packet(skb, pkt, result, point);
	if (result < 0)
		return TC_ACT_SHOT;
	if (result == KD_TO_POD || result == KD_TO_DEVICE || result == KD_ECHO || result == KD_TOO_BIG ||
	    kd_is_reject(result))
		return TC_ACT_REDIRECT;
	return TC_ACT_UNSPEC;
}

#endif /* KD_FINISH_H */
