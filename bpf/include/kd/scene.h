/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * What is noted of a packet on its way, for the event at its end (kd/event.h): what it was as it came in, and what
 * policies said. Kept per CPU, since there is no room for it on the stack; a packet is never interrupted by another at
 * a device. Nothing of this is in programs that tell no events.
 */
#ifndef KD_SCENE_H
#define KD_SCENE_H

#include <stdbool.h>
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <kd/config.h>
#include <kd/event_types.h>
#include <kd/types.h>

KD_CONFIG(bool, events, "tell what becomes of packets: kd_event_setup says how much") = false;

struct kd_scene {
	struct kd_tuple before; /* as it came in */
	struct kd_tuple after; /* as it leaves */
	struct kd_tuple way; /* from end to end */
	struct kd_tuple key; /* of its connection */
	struct kd_connection connection; /* as it becomes */
	__u64 time;
	__u64 packets; /* of its connection, in its direction */
	__u64 bytes;
	__u64 cookie;
	__u64 cgroup;
	__s32 result;
	__u32 ifindex;
	__u32 length;
	__u32 told; /* identity of its source, as the tunnel has it */
	__u32 source_rule;
	__u32 destination_rule;
	__u16 flags; /* enum kd_event_flags */
	__u8 point;
	__u8 tcp_flags;
	__u8 icmp_type;
	__u8 icmp_code;
	__u8 state;
	__u8 ttl;
	bool judged; /* `way` is what policies were asked about */
	bool counts; /* as a packet of its connection: it has not been seen at another point before */
	__u8 pad[6];
};

/* The packet that a CPU is at. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct kd_scene);
} kd_scene SEC(".maps");

static const volatile __u32 kd_scene_first; /* a key that takes no room on the stack, which is scarce */

static __always_inline struct kd_scene *kd_scene_of_cpu(void)
{
	return bpf_map_lookup_elem(&kd_scene, (const void *)&kd_scene_first);
}

/* A packet was parsed. */
static __always_inline void kd_scene_begin(const struct kd_tuple *tuple, __u32 length)
{
	struct kd_scene *scene = events ? kd_scene_of_cpu() : NULL;

	if (!scene)
		return;
	scene->before = *tuple;
	scene->length = length;
	scene->source_rule = 0;
	scene->destination_rule = 0;
	scene->flags = 0;
	scene->judged = false;
}

#endif /* KD_SCENE_H */
