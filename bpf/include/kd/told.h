/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * What was told of flows that are translated (kd/event.h): each direction's entry keeps it, where its packets are counted
 * anyway. An entry is met once on a packet's way through the node; whether there is news in the packet is left in
 * its scene, for the end of that way.
 *
 * Reads kd_event_setup; writes kd_conntrack. Nothing of this is in programs that tell no events.
 */
#ifndef KD_TOLD_H
#define KD_TOLD_H

#include <stdbool.h>
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <kd/config.h>
#include <kd/event_types.h>
#include <kd/packet.h>
#include <kd/scene.h>
#include <kd/tuple.h>
#include <kd/types.h>
#include <kd/maps/conntrack.h>
#include <kd/maps/event_setup.h>

/* A flow is about to be made of its first packet: that is news. */
KD_SUBPROGRAM void kd_ct_note_first(struct kd_ct *original)
{
	struct kd_event_setup *setup = kd_event_setup_now();
	struct kd_scene *scene = kd_scene_of_cpu();

	if (!scene || !setup)
		return;
	scene->noted = KD_STATE_NEW;
	scene->news = true;
	scene->event.packets = 1;
	scene->event.bytes = scene->event.length;
	original->bytes = scene->event.length;
	if (setup->level < KD_EVENTS_AGGREGATED)
		return;
	original->told = original->last_seen;
	original->tcp_flags = scene->event.tcp_flags;
}

/* It was not made, but may be there. */
static __always_inline void kd_ct_note_none(void)
{
	struct kd_scene *scene = kd_scene_of_cpu();

	if (scene)
		scene->noted = 0;
}

/* A packet of a flow. */
static __always_inline void kd_ct_note(struct kd_ct *ct, __u32 now)
{
	struct kd_event_setup *setup = kd_event_setup_now();
	struct kd_scene *scene = kd_scene_of_cpu();
	bool reply = ct->flags & KD_CT_REPLY;
	bool alone = kd_ct_alone(ct); /* what was told is the packet that it was made of, of the other direction */
	__u8 told;

	if (!scene || !setup)
		return;
	__sync_fetch_and_add(&ct->bytes, scene->event.length);
	scene->event.packets = ct->packets;
	scene->event.bytes = ct->bytes;
	/* It may belong to another flow as well. */
	scene->news = (scene->noted && scene->news) || setup->level >= KD_EVENTS_ALL;
	if (reply)
		scene->noted = KD_STATE_REPLY;
	else
		scene->noted = ct->told || scene->event.tcp_flags & KD_TCP_ACK ? KD_STATE_ESTABLISHED : KD_STATE_NEW;
	if (setup->level < KD_EVENTS_AGGREGATED)
		return;
	told = alone ? 0 : ct->tcp_flags;
	if (!alone && ct->told && !(scene->event.tcp_flags & ~told & KD_TOLD_FLAGS) && now - ct->told < setup->interval)
		return;
	ct->tcp_flags = told | scene->event.tcp_flags;
	ct->told = now;
	scene->news = true;
}

/* The packet was dropped after all: what gets through of its direction next is news. */
KD_SUBPROGRAM void kd_ct_untold(const struct kd_tuple *tuple)
{
	struct kd_ct *ct = kd_ct_find_untold(tuple);

	if (ct)
		ct->told = 0;
}

/* The same in the twin. */
static __always_inline void kd_ct_note_twin(struct kd_ct *twin, const struct kd_ct *ct)
{
	twin->bytes = ct->bytes;
	twin->told = ct->told;
	twin->tcp_flags = ct->tcp_flags;
}

#endif /* KD_TOLD_H */
