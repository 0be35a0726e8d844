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
#include <kd/verdict.h>

/* ICMP has no ports, whatever stands there for translation; its errors are about other connections. */
static __always_inline void kd_event_icmp(struct __sk_buff *skb, const struct kd_pkt *pkt, struct kd_scene *scene)
{
	__u8 head[2] = {};

	if (!pkt->later)
		bpf_skb_load_bytes(skb, pkt->l4_off, head, sizeof(head));
	scene->icmp_type = head[0];
	scene->icmp_code = head[1];
	scene->before.sport = 0;
	scene->before.dport = 0;
	scene->after.sport = 0;
	scene->after.dport = 0;
	if (!pkt->later && kd_icmp_is_error(pkt->ipv6, head[0]))
		scene->state = KD_STATE_RELATED;
}

/* A packet at a tc hook has come to its end. */
KD_FUNCTION int kd_event_packet(struct __sk_buff *skb, const struct kd_pkt *pkt, int result, __u32 point)
{
	struct kd_scene *scene = kd_scene_of_cpu();
	bool answered;

	if (!scene || !pkt || (result >= 0 && !pkt->ttl)) /* nothing that has addresses */
		return 0;
	answered = kd_is_reject(result) || result == KD_ECHO || result == KD_TOO_BIG;
	scene->after = answered ? scene->before : pkt->tuple;
	scene->after.protocol = pkt->tuple.protocol;
	if (pkt->later) { /* its ports were remembered, if they are known */
		scene->before.sport = scene->after.sport;
		scene->before.dport = scene->after.dport;
	}
	scene->result = result;
	scene->point = point;
	scene->ifindex = skb->ifindex;
	scene->told = pkt->tunnelled ? skb->cb[0] : 0;
	scene->tcp_flags = pkt->tcp_flags;
	scene->ttl = pkt->ttl;
	scene->state = pkt->reply ? KD_STATE_REPLY : KD_STATE_UNKNOWN;
	scene->counts = kd_comes_in(point) || !skb->ingress_ifindex;
	scene->icmp_type = 0;
	scene->icmp_code = 0;
	scene->flags |= (pkt->fragment ? KD_EVENT_FRAGMENT : 0) | (pkt->tunnelled ? KD_EVENT_TUNNELLED : 0) |
			(scene->counts && !kd_comes_in(point) ? KD_EVENT_OWN : 0);
	if (kd_is_icmp(pkt))
		kd_event_icmp(skb, pkt, scene);
	if (!kd_event_due(scene))
		return 0;
	return kd_event_tell(scene);
}

/*
 * The end of every packet at a tc hook. What is not dropped or redirected goes to the next program on
 * the hook and then to the stack, so that others can work behind us.
 */
static __always_inline int kd_finish(struct __sk_buff *skb, const struct kd_pkt *pkt, int result, enum kd_point point)
{
	kd_count(result, skb->len);
	if (events)
		kd_event_packet(skb, pkt, result, point);
	if (result < 0)
		return TC_ACT_SHOT;
	if (result == KD_TO_POD || result == KD_TO_DEVICE || result == KD_ECHO || result == KD_TOO_BIG ||
	    kd_is_reject(result))
		return TC_ACT_REDIRECT;
	return TC_ACT_UNSPEC;
}

#endif /* KD_FINISH_H */
