/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * What is told of packets, and of calls of sockets: at most one event each.
 *
 * What is decides, in this order: the level in kd_event_setup; if that aggregates, of what is not dropped, whether there
 * is news of its connection in either direction, which is the first packet at each point, a SYN, FIN or RST that was
 * not there before, and one packet each interval; the filters; the rate of the CPU. Counters of packets and bytes know
 * nothing of all this, and are exact.
 *
 * Readers are woken at most every KD_EVENT_WAKE, by the first event: a reader looks again so long after it has found
 * some (k8sdatapath/datapath/flow_observer.py). Nobody waits for a reader: for what finds no room there is a counter.
 *
 * Reads kd_endpoints and kd_ipcache, for identities; writes kd_connections, kd_telling and kd_events.
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
#define KD_TOLD_FLAGS (KD_TCP_SYN | KD_TCP_FIN | KD_TCP_RST)

static __always_inline struct kd_event_setup *kd_event_setup_now(void)
{
	return bpf_map_lookup_elem(&kd_event_setup, (const void *)&kd_scene_first);
}

/* Towards the node, so before it does anything; else the packet may have come in elsewhere. */
static __always_inline bool kd_comes_in(__u32 point)
{
	return point == KD_FROM_POD || point == KD_FROM_UPLINK || point == KD_FROM_OVERLAY || point == KD_AT_DRIVER;
}

/* The ends of the connection: where the packet came from, and where it goes. */
static __always_inline void kd_event_ends(struct kd_scene *scene)
{
	if (scene->judged && kd_is_denied(scene->result)) {
		scene->after = scene->way; /* as it would have gone on */
		return;
	}
	scene->way = scene->after;
	scene->way.src = scene->before.src;
	scene->way.sport = scene->before.sport;
}

/* Who has begun, as far as one packet tells: 1 its source, 2 its destination, 0 nobody knows. */
static __always_inline __u8 kd_event_began(const struct kd_scene *scene)
{
	__u8 flags = scene->tcp_flags;

	if (scene->way.protocol != IPPROTO_TCP && scene->way.protocol != IPPROTO_SCTP)
		return scene->state == KD_STATE_REPLY ? 2 : 1;
	if (flags & KD_TCP_SYN)
		return flags & KD_TCP_ACK ? 2 : 1;
	return scene->state == KD_STATE_REPLY ? 2 : 0;
}

static __always_inline bool kd_connection_begin(struct kd_scene *scene, __u8 second, __u32 now)
{
	struct kd_connection *fresh = &scene->connection;
	__u8 began = kd_event_began(scene);

	second &= 1;
	__builtin_memset(fresh, 0, sizeof(*fresh));
	fresh->packets[second] = scene->counts;
	fresh->bytes[second] = scene->counts ? scene->length : 0;
	fresh->told[second] = now;
	fresh->points[second] = 1 << (scene->point & 15);
	fresh->tcp_flags[second] = scene->tcp_flags;
	fresh->began = began && second ? 3 - began : began;
	scene->packets = fresh->packets[second];
	scene->bytes = fresh->bytes[second];
	bpf_map_update_elem(&kd_connections, &scene->key, fresh, BPF_ANY);
	if (began && scene->state != KD_STATE_RELATED)
		scene->state = began == 1 ? KD_STATE_NEW : KD_STATE_REPLY;
	return true;
}

/* Its connection was seen before: is there news in this packet? */
static __always_inline bool kd_connection_goes_on(struct kd_scene *scene, struct kd_connection *seen, __u8 second,
						  __u32 now, __u32 interval)
{
	__u16 point = 1 << (scene->point & 15);
	__u8 flags;

	second &= 1;
	flags = scene->tcp_flags & ~seen->tcp_flags[second];
	if (scene->counts) {
		__sync_fetch_and_add(&seen->packets[second], 1);
		__sync_fetch_and_add(&seen->bytes[second], scene->length);
	}
	if (seen->began && scene->state != KD_STATE_RELATED)
		scene->state = seen->began == second + 1 ? KD_STATE_ESTABLISHED : KD_STATE_REPLY;
	if (!(flags & KD_TOLD_FLAGS) && now - seen->told[second] < interval) {
		if (seen->points[second] & point)
			return false;
		seen->points[second] |= point;
		return true;
	}
	seen->tcp_flags[second] |= flags;
	seen->told[second] = now;
	seen->points[second] = point;
	return true;
}

/* Count the packet of a connection; false: it is as those before it. */
static __always_inline bool kd_connection_note(struct kd_scene *scene, __u32 interval)
{
	bool second = kd_talk_key(&scene->way, &scene->key);
	struct kd_connection *seen = bpf_map_lookup_elem(&kd_connections, &scene->key);
	__u32 now = kd_now();
	bool news;

	if (seen && (scene->tcp_flags & (KD_TCP_SYN | KD_TCP_ACK)) == KD_TCP_SYN &&
	    (seen->tcp_flags[0] | seen->tcp_flags[1]) & (KD_TCP_FIN | KD_TCP_RST))
		seen = NULL; /* another one between the same ports */
	if (!seen)
		return kd_connection_begin(scene, second, now);
	news = kd_connection_goes_on(scene, seen, second, now, interval);
	scene->packets = seen->packets[second & 1];
	scene->bytes = seen->bytes[second & 1];
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
static __always_inline bool kd_event_wanted(const struct kd_event *event, __u32 filters)
{
	struct kd_event_filter *filter;

	if (!filters)
		return true;
	for (__u32 i = 0; i < KD_EVENT_FILTERS && i < filters; i++) {
		__u32 index = i;

		filter = bpf_map_lookup_elem(&kd_event_filters, &index);
		if (filter && kd_event_fits(event, filter))
			return true;
	}
	return false;
}

static __always_inline bool kd_event_allowed(struct kd_telling *telling, __u32 rate, __u64 now)
{
	__u64 step = rate ? 1000000000 / rate : 0;

	if (!step)
		return true;
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

static __always_inline void kd_event_fill(struct kd_event *event, const struct kd_scene *scene)
{
	const struct kd_tuple *way = &scene->way;

	__builtin_memset(event, 0, sizeof(*event));
	event->source = way->src;
	event->destination = way->dst;
	event->source_port = way->sport;
	event->destination_port = way->dport;
	if (!kd_addr_equal(&scene->after.src, &way->src) || scene->after.sport != way->sport) {
		event->seen_source = scene->after.src;
		event->seen_source_port = scene->after.sport;
	}
	if (!kd_addr_equal(&scene->before.dst, &way->dst) || scene->before.dport != way->dport) {
		event->dialled = scene->before.dst;
		event->dialled_port = scene->before.dport;
	}
	kd_event_party(&way->src, &event->source_identity, &event->source_device);
	kd_event_party(&way->dst, &event->destination_identity, &event->destination_device);
	if (scene->told && !event->source_device)
		event->source_identity = scene->told;
	event->time = scene->time;
	event->packets = scene->packets;
	event->bytes = scene->bytes;
	event->cookie = scene->cookie;
	event->cgroup = scene->cgroup;
	event->result = scene->result;
	event->ifindex = scene->ifindex;
	event->length = scene->length;
	event->source_rule = scene->source_rule;
	event->destination_rule = scene->destination_rule;
	event->cpu = bpf_get_smp_processor_id();
	event->flags = scene->flags | (kd_is_v4(&way->src) ? 0 : KD_EVENT_IPV6);
	event->point = scene->point;
	event->protocol = way->protocol;
	event->tcp_flags = way->protocol == IPPROTO_TCP ? scene->tcp_flags : 0;
	event->icmp_type = scene->icmp_type;
	event->icmp_code = scene->icmp_code;
	event->state = scene->state;
	event->ttl = scene->ttl;
}

/* An event is written: tell it, if it is wanted and may be. */
static __always_inline void kd_event_end(struct kd_event *event, const struct kd_event_setup *setup,
					 struct kd_telling *telling)
{
	__u64 flags = BPF_RB_NO_WAKEUP;
	__u64 now = event->time;

	if (!kd_event_wanted(event, setup->filters) || !kd_event_allowed(telling, setup->rate, now)) {
		bpf_ringbuf_discard(event, BPF_RB_NO_WAKEUP);
		return;
	}
	telling->told++;
	if (now - telling->woken >= KD_EVENT_WAKE) {
		telling->woken = now;
		flags = BPF_RB_FORCE_WAKEUP;
	}
	bpf_ringbuf_submit(event, flags);
}

/* Write the event of a scene. */
KD_FUNCTION int kd_event_tell(struct kd_scene *scene)
{
	struct kd_telling *telling = bpf_map_lookup_elem(&kd_telling, (const void *)&kd_scene_first);
	struct kd_event_setup *setup = kd_event_setup_now();
	struct kd_event *event;

	if (!scene || !telling || !setup)
		return 0;
	scene->time = bpf_ktime_get_ns();
	event = bpf_ringbuf_reserve(&kd_events, sizeof(*event), 0);
	if (!event) {
		telling->full++;
		return 0;
	}
	kd_event_fill(event, scene);
	kd_event_end(event, setup, telling);
	return 0;
}

/* Whether what became of a packet is news. */
static __always_inline bool kd_event_due(struct kd_scene *scene)
{
	struct kd_event_setup *setup = kd_event_setup_now();
	bool news;

	scene->packets = 0;
	scene->bytes = 0;
	if (!setup || setup->level == KD_EVENTS_OFF)
		return false;
	kd_event_ends(scene);
	if (scene->result < 0 || kd_is_denied(scene->result))
		return true;
	if (setup->level < KD_EVENTS_AGGREGATED)
		return scene->flags & KD_EVENT_AUDITED;
	news = kd_connection_note(scene, setup->interval);
	return news || setup->level >= KD_EVENTS_ALL;
}

#endif /* KD_EVENT_H */
