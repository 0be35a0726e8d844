/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * What is told of packets, and of calls of sockets: at most one event each.
 *
 * What is decides, in this order: the level in kd_event_setup; if that aggregates, of what is not dropped, whether there
 * is news of its connection in either direction, which is the first packet at each point, a SYN, FIN or RST that was
 * not there before, and one packet each interval; the filters; the rate of the CPU. Counters of packets and bytes know
 * nothing of all this, and are exact.
 *
 * What was told of a connection is kept in kd_connections; at the point where its packets are translated in its flow's
 * entries instead, which are there anyway: kd/told.h.
 *
 * Events of packets are put into a queue of their CPU, which no other program interrupts; calls of sockets are
 * interrupted by packets, and told in kd_events, a ring buffer. Readers are woken by that, at most every KD_EVENT_WAKE
 * and by the first event: a reader looks again so long after it has found some
 * (k8sdatapath/datapath/flow_observer.py). Nobody waits for a reader: for what finds no room there is a counter.
 *
 * Reads kd_endpoints and kd_ipcache, for identities; writes kd_connections, kd_telling, kd_event_queues,
 * kd_event_rows and kd_events.
 */
#ifndef KD_EVENT_H
#define KD_EVENT_H

#include <stdbool.h>
#include <linux/bpf.h>
#include <linux/in.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include <kd/addr.h>
#include <kd/config.h>
#include <kd/event_types.h>
#include <kd/packet.h>
#include <kd/scene.h>
#include <kd/service.h>
#include <kd/tuple.h>
#include <kd/types.h>
#include <kd/verdict.h>
#include <kd/maps/endpoints.h>
#include <kd/maps/events.h>
#include <kd/maps/policy.h>

#define KD_EVENT_WAKE 10000000 /* nanoseconds */
#define KD_EVENT_BURST 100 /* events that a CPU may tell at once, whatever the rate */

/* Towards the node, so before it does anything; else the packet may have come in elsewhere. */
static __always_inline bool kd_comes_in(__u32 point)
{
	return point == KD_FROM_POD || point == KD_FROM_UPLINK || point == KD_FROM_OVERLAY || point == KD_AT_DRIVER;
}

/* The ends of the connection: a packet that came from the source of `from` left as `after`. */
static __always_inline void kd_event_ends(struct kd_scene *scene, const struct kd_tuple *from,
					  const struct kd_tuple *after)
{
	struct kd_event *event = &scene->event;
	const struct kd_tuple *before = &scene->before;

	kd_addr_copy(&event->source, &from->src);
	kd_addr_copy(&event->destination, &after->dst);
	event->source_port = from->sport;
	event->destination_port = after->dport;
	if (!kd_addr_same(&after->src, &from->src) || after->sport != from->sport) {
		kd_addr_copy(&event->seen_source, &after->src);
		event->seen_source_port = after->sport;
	} else {
		__builtin_memset(&event->seen_source, 0, sizeof(event->seen_source));
		event->seen_source_port = 0;
	}
	if (!kd_addr_same(&before->dst, &after->dst) || before->dport != after->dport) {
		kd_addr_copy(&event->dialled, &before->dst);
		event->dialled_port = before->dport;
	} else {
		__builtin_memset(&event->dialled, 0, sizeof(event->dialled));
		event->dialled_port = 0;
	}
}

/* Who has begun, as far as one packet tells: 1 its source, 2 its destination, 0 nobody knows. */
static __always_inline __u8 kd_event_began(const struct kd_event *event)
{
	__u8 flags = event->tcp_flags;

	if (event->protocol != IPPROTO_TCP && event->protocol != IPPROTO_SCTP)
		return event->state == KD_STATE_REPLY ? 2 : 1;
	if (flags & KD_TCP_SYN)
		return flags & KD_TCP_ACK ? 2 : 1;
	return event->state == KD_STATE_REPLY ? 2 : 0;
}

#define KD_CAME_IN 0x8000 /* in kd_connection.points */

/* Where a packet is, as a bit; and that this is where it is counted, though it should be seen on its way out as well. */
static __always_inline __u16 kd_connection_point(__u8 point)
{
	return 1 << (point & 15) | (kd_comes_in(point) ? KD_CAME_IN : 0);
}

static __always_inline bool kd_connection_begin(struct kd_scene *scene, __u8 second, __u32 now)
{
	struct kd_connection *fresh = &scene->connection;
	__u8 began = kd_event_began(&scene->event);

	second &= 1;
	__builtin_memset(fresh, 0, sizeof(*fresh));
	fresh->packets[second] = 1;
	fresh->bytes[second] = scene->event.length;
	fresh->told[second] = now;
	fresh->points[second] = kd_connection_point(scene->event.point);
	fresh->tcp_flags[second] = scene->event.tcp_flags;
	fresh->began = began && second ? 3 - began : began;
	scene->event.packets = 1;
	scene->event.bytes = scene->event.length;
	bpf_map_update_elem(&kd_connections, &scene->key, fresh, BPF_ANY);
	if (began && scene->event.state != KD_STATE_RELATED)
		scene->event.state = began == 1 ? KD_STATE_NEW : KD_STATE_REPLY;
	return true;
}

/* Its connection was seen before: is there news in this packet? */
static __always_inline bool kd_connection_goes_on(struct kd_scene *scene, struct kd_connection *seen, __u8 second,
						  __u32 now, __u32 interval)
{
	__u16 point = kd_connection_point(scene->event.point);
	__u8 flags;

	second &= 1;
	flags = scene->event.tcp_flags & ~seen->tcp_flags[second];
	if (!((seen->points[second] & ~point) & KD_CAME_IN)) { /* else it was counted there */
		__sync_fetch_and_add(&seen->packets[second], 1);
		__sync_fetch_and_add(&seen->bytes[second], scene->event.length);
	}
	if (seen->began && scene->event.state != KD_STATE_RELATED)
		scene->event.state = seen->began == second + 1 ? KD_STATE_ESTABLISHED : KD_STATE_REPLY;
	if (!(flags & KD_TOLD_FLAGS) && now - seen->told[second] < interval) {
		if ((seen->points[second] & point) == point)
			return false;
		seen->points[second] |= point;
		return true;
	}
	seen->tcp_flags[second] |= flags;
	seen->told[second] = now;
	seen->points[second] = point | (seen->points[second] & KD_CAME_IN);
	return true;
}

/* Count the packet of a connection; false: it is as those before it. */
KD_SUBPROGRAM bool kd_connection_note(struct kd_scene *scene, __u32 interval)
{
	struct kd_event *event = &scene->event;
	struct kd_connection *seen;
	__u32 now = kd_now();
	bool second, news;

	kd_addr_copy(&scene->way.src, &event->source);
	kd_addr_copy(&scene->way.dst, &event->destination);
	scene->way.sport = event->source_port;
	scene->way.dport = event->destination_port;
	scene->way.protocol = event->protocol;
	second = kd_talk_key(&scene->way, &scene->key);
	seen = bpf_map_lookup_elem(&kd_connections, &scene->key);
	if (seen && (scene->event.tcp_flags & (KD_TCP_SYN | KD_TCP_ACK)) == KD_TCP_SYN &&
	    (seen->tcp_flags[0] | seen->tcp_flags[1]) & (KD_TCP_FIN | KD_TCP_RST))
		seen = NULL; /* another one between the same ports */
	if (!seen)
		return kd_connection_begin(scene, second, now);
	news = kd_connection_goes_on(scene, seen, second, now, interval);
	event->packets = seen->packets[second & 1];
	event->bytes = seen->bytes[second & 1];
	return news;
}

static __always_inline bool kd_event_in(const struct kd_addr *addr, const struct kd_event_filter *filter)
{
	__be32 differ = 0;

#pragma unroll
	for (int i = 0; i < 4; i++)
		differ |= (addr->w[i] & filter->mask.w[i]) ^ filter->address.w[i];
	return !differ;
}

static __always_inline bool kd_event_fits(const struct kd_event *event, const struct kd_event_filter *filter)
{
	if (filter->outcomes && !(filter->outcomes >> (kd_outcome(event->result) & 63) & 1))
		return false;
	if (filter->points && !(filter->points >> (event->point & 31) & 1))
		return false;
	if (filter->protocol && filter->protocol != event->protocol)
		return false;
	if (filter->identity && filter->identity != event->source_identity &&
	    filter->identity != event->destination_identity)
		return false;
	if (filter->port && filter->port != event->source_port && filter->port != event->destination_port &&
	    filter->port != event->dialled_port)
		return false;
	return kd_event_in(&event->source, filter) || kd_event_in(&event->destination, filter) ||
	       kd_event_in(&event->dialled, filter);
}

/* Whether somebody wants to hear of it. */
KD_SUBPROGRAM bool kd_event_wanted(const struct kd_event *event, __u32 filters)
{
	struct kd_event_filter *filter;

	for (__u32 i = 0; i < KD_EVENT_FILTERS && i < filters; i++) {
		__u32 index = i;

		filter = bpf_map_lookup_elem(&kd_event_filters, &index);
		if (filter && kd_event_fits(event, filter))
			return true;
	}
	return false;
}

KD_SUBPROGRAM bool kd_event_allowed(struct kd_telling *telling, __u32 rate, __u64 now)
{
	__u64 step = 1000000000 / rate;

	if (telling->next > now) {
		telling->limited++;
		return false;
	}
	if (telling->next + KD_EVENT_BURST * step < now)
		telling->next = now - KD_EVENT_BURST * step;
	telling->next += step;
	return true;
}

/* Who is behind an address, as far as the kernel knows. */
static __always_inline void kd_event_party(const struct kd_addr *addr, __u32 *identity, __u32 *device)
{
	struct kd_endpoint *pod = bpf_map_lookup_elem(&kd_endpoints, addr);
	struct kd_party *party = pod ? NULL : bpf_map_lookup_elem(&kd_ipcache, addr);

	*device = pod ? pod->ifindex : 0;
	*identity = 0;
	if (pod)
		*identity = pod->identity;
	else if (party)
		*identity = party->identity;
}

/* What is not known before an event is due. */
static __always_inline void kd_event_complete(struct kd_scene *scene)
{
	struct kd_event *event = &scene->event;

	kd_event_party(&event->source, &event->source_identity, &event->source_device);
	if (!scene->found)
		kd_event_party(&event->destination, &event->destination_identity, &event->destination_device);
	if (scene->told && !event->source_device)
		event->source_identity = scene->told;
	if (!kd_is_v4(&event->source))
		event->flags |= KD_EVENT_IPV6;
	if (event->protocol != IPPROTO_TCP)
		event->tcp_flags = 0;
	event->cpu = bpf_get_smp_processor_id();
	if (!event->time)
		event->time = bpf_ktime_get_ns();
}

static __always_inline bool kd_event_asked(const struct kd_event *event, const struct kd_event_setup *setup,
					   struct kd_telling *telling)
{
	return (!setup->filters || kd_event_wanted(event, setup->filters)) &&
	       (!setup->rate || kd_event_allowed(telling, setup->rate, event->time));
}

/* Is it time that readers hear of an event? */
static __always_inline bool kd_event_wakes(const struct kd_event *event, struct kd_telling *telling)
{
	if ((__s64)(event->time - telling->woken) < KD_EVENT_WAKE) /* it may be earlier: see kd/finish.h */
		return false;
	telling->woken = event->time;
	return true;
}

/* An event is written, in kd_events itself: it is told if it is wanted and may be. */
static __always_inline void kd_event_end(struct kd_event *event, const struct kd_event_setup *setup,
					 struct kd_telling *telling)
{
	if (!kd_event_asked(event, setup, telling)) {
		bpf_ringbuf_discard(event, BPF_RB_NO_WAKEUP);
		return;
	}
	telling->told++;
	bpf_ringbuf_submit(event, kd_event_wakes(event, telling) ? BPF_RB_FORCE_WAKEUP : BPF_RB_NO_WAKEUP);
}

/* Wake readers, with nothing that they would read. */
KD_SUBPROGRAM void kd_event_wake(void)
{
	void *nothing = bpf_ringbuf_reserve(&kd_events, sizeof(__u64), 0);

	if (nothing) /* else they have not read for long, and have something to wake for */
		bpf_ringbuf_discard(nothing, BPF_RB_FORCE_WAKEUP);
}

/* Who sees the new number sees what was written before: x86 writes in order, and would wait here for all of it. */
static __always_inline void kd_event_publish(struct kd_event_queue *queue, __u64 written)
{
#ifdef __TARGET_ARCH_x86
	barrier();
	*(volatile __u64 *)&queue->written = written;
#else
	__sync_lock_test_and_set(&queue->written, written);
#endif
}

/* Copy an event to the end of its CPU's queue, in one go. False: there is no room. */
static __always_inline bool kd_event_put(const struct kd_event *event)
{
	struct kd_event_queue *queue;
	struct kd_event *to;
	__u32 at = event->cpu, room;
	__u64 written, share;

	queue = bpf_map_lookup_elem(&kd_event_queues, &at);
	if (!queue)
		return false;
	written = queue->written;
	share = *(volatile __u64 *)&queue->share;
	room = share;
	if (written - *(volatile __u64 *)&queue->taken >= room) {
		if (!room && !queue->wanted)
			queue->wanted = 1;
		return false;
	}
	at = (share >> 32) + (written & (room - 1));
	to = bpf_map_lookup_elem(&kd_event_rows, &at);
	if (!to)
		return false;
	__builtin_memcpy(to, event, sizeof(*to));
	kd_event_publish(queue, written + 1);
	return true;
}

/* Tell the event of a scene, if it is wanted and may be. */
static __always_inline void kd_event_tell(struct kd_scene *scene)
{
	struct kd_telling *telling = bpf_map_lookup_elem(&kd_telling, (const void *)&kd_scene_first);
	struct kd_event_setup *setup = kd_event_setup_now();

	if (!telling || !setup)
		return;
	kd_event_complete(scene);
	if (!kd_event_asked(&scene->event, setup, telling))
		return;
	if (kd_event_put(&scene->event))
		telling->told++;
	else
		telling->full++; /* and the reader has something to do, too */
	if (kd_event_wakes(&scene->event, telling))
		kd_event_wake();
}

/* Whether what became of a packet is news. */
static __always_inline bool kd_event_due(struct kd_scene *scene)
{
	struct kd_event_setup *setup = kd_event_setup_now();
	bool news;

	if (!setup || setup->level == KD_EVENTS_OFF)
		return false;
	if (scene->event.result < 0 || kd_is_denied(scene->event.result)) {
		scene->event.packets = 0;
		scene->event.bytes = 0;
		return true;
	}
	if (setup->level < KD_EVENTS_AGGREGATED)
		return scene->event.flags & KD_EVENT_AUDITED;
	if (scene->noted) {
		if (scene->event.state != KD_STATE_RELATED)
			scene->event.state = scene->noted;
		return scene->news || setup->level >= KD_EVENTS_ALL;
	}
	news = kd_connection_note(scene, setup->interval);
	return news || setup->level >= KD_EVENTS_ALL;
}

#endif /* KD_EVENT_H */
