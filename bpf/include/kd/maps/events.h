/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What becomes of packets, told one by one, and what is needed to tell little: see kd/event.h. */
#ifndef KD_MAPS_EVENTS_H
#define KD_MAPS_EVENTS_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <kd/event_types.h>
#include <kd/maps/event_setup.h>

/*
 * What is told of packets: each CPU has a share of the rows, and kd_event_queues the ends of it. Full: what is new is not
 * told, and counted in kd_telling. Both are mapped into the reader's memory.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1024);
	__type(key, __u32);
	__type(value, struct kd_event);
} kd_event_rows SEC(".maps");

/* One element per CPU, up to the highest number. Written by programs, and by their reader, who deals the rows out. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 64);
	__type(key, __u32);
	__type(value, struct kd_event_queue);
} kd_event_queues SEC(".maps");

/* struct kd_event after struct kd_event, of calls of sockets; and what wakes the reader. Full: as above. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 16);
} kd_events SEC(".maps");

#define KD_EVENT_FILTERS 16

/* An event is told if it fits one of them. Written by user space before kd_event_setup counts them. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, KD_EVENT_FILTERS);
	__type(key, __u32);
	__type(value, struct kd_event_filter);
} kd_event_filters SEC(".maps");

/* One element per CPU: what it has told, and could not tell. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct kd_telling);
} kd_telling SEC(".maps");

/*
 * tuple of a connection's ends, the lower one first -> what was seen of it, where it is not translated. Written by
 * programs while events are aggregated. Full: the least recently seen is forgotten, and told of as new if it goes on.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1024);
	__type(key, struct kd_tuple);
	__type(value, struct kd_connection);
} kd_connections SEC(".maps");

#endif /* KD_MAPS_EVENTS_H */
