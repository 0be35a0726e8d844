/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What is told of connections that are short-cut: that they are. Of what they carry nobody sees a packet. */
#ifndef KD_ACCELERATION_EVENT_H
#define KD_ACCELERATION_EVENT_H

#include <stdbool.h>
#include <linux/bpf.h>
#include <linux/in.h>
#include <bpf/bpf_helpers.h>
#include <kd/acceleration_types.h>
#include <kd/addr.h>
#include <kd/event.h>
#include <kd/event_types.h>
#include <kd/scene.h>
#include <kd/tuple.h>
#include <kd/verdict.h>
#include <kd/maps/events.h>

/* From its client to its server, whose socket is at it. */
static __always_inline void kd_accel_tell(const struct kd_tuple *way, const struct kd_accel_pair *pair)
{
	struct kd_telling *telling = bpf_map_lookup_elem(&kd_telling, (const void *)&kd_scene_first);
	struct kd_event_setup *setup = kd_event_setup_now();
	struct kd_event *event;

	if (!setup || !telling || setup->level < KD_EVENTS_AGGREGATED)
		return;
	event = bpf_ringbuf_reserve(&kd_events, sizeof(*event), 0);
	if (!event) {
		telling->full++;
		return;
	}
	__builtin_memset(event, 0, sizeof(*event));
	event->time = bpf_ktime_get_ns();
	event->result = KD_TO_POD;
	event->point = KD_PAIRED;
	event->source = way->src;
	event->destination = way->dst;
	event->source_port = way->sport;
	event->destination_port = way->dport;
	if (!kd_addr_equal(&pair->dialled, &way->dst) || pair->dialled_port != way->dport) {
		event->dialled = pair->dialled;
		event->dialled_port = pair->dialled_port;
	}
	event->cookie = pair->end[KD_ACCEL_CLIENT].cookie;
	event->netns = pair->end[KD_ACCEL_CLIENT].netns;
	event->protocol = IPPROTO_TCP;
	event->cpu = bpf_get_smp_processor_id();
	event->flags = kd_is_v4(&way->src) ? 0 : KD_EVENT_IPV6;
	event->state = KD_STATE_NEW;
	kd_event_party(&event->source, &event->source_identity, &event->source_device);
	kd_event_party(&event->destination, &event->destination_identity, &event->destination_device);
	kd_event_end(event, setup, telling);
}

#endif /* KD_ACCELERATION_EVENT_H */
