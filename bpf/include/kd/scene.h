/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * What is noted of a packet on its way, for the event at its end (kd/event.h): what it was as it came in, what
 * policies said, and the event itself, as far as it is known. Kept per CPU, since there is no room for it on the stack; a packet is never interrupted by another at
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
	struct kd_event event; /* as it is told, if it is: what only sockets have is never set */
	struct kd_tuple before; /* as it came in */
	struct kd_tuple way; /* from end to end: if `judged`, what policies were asked about */
	struct kd_tuple key; /* of its connection */
	struct kd_connection connection; /* as it becomes */
	__u32 told; /* identity of its source, as the tunnel has it */
	bool judged;
	bool found; /* the pod that it goes to is in the event */
	__u8 noted; /* enum kd_event_state: it was found, and counted, in the flow table; 0: not there */
	bool news; /* and an event is due */
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

/* What is aligned to halves of an address is copied and compared by these, not by quarters as its type alone allows. */
static __always_inline void kd_tuple_copy(struct kd_tuple *to, const struct kd_tuple *tuple)
{
	__builtin_memcpy(__builtin_assume_aligned(to, 8), __builtin_assume_aligned(tuple, 8), sizeof(*to));
}

static __always_inline void kd_addr_copy(struct kd_addr *to, const struct kd_addr *addr)
{
	__builtin_memcpy(__builtin_assume_aligned(to, 8), __builtin_assume_aligned(addr, 8), sizeof(*to));
}

static __always_inline bool kd_addr_same(const struct kd_addr *a, const struct kd_addr *b)
{
	const __u64 *one = __builtin_assume_aligned(a, 8);
	const __u64 *other = __builtin_assume_aligned(b, 8);

	return !((one[0] ^ other[0]) | (one[1] ^ other[1]));
}

/* A packet was parsed. */
static __always_inline void kd_scene_begin(const struct kd_tuple *tuple, __u8 tcp_flags, __u32 length)
{
	struct kd_scene *scene = events ? kd_scene_of_cpu() : NULL;

	if (!scene)
		return;
	kd_tuple_copy(&scene->before, tuple);
	scene->event.packets = 0;
	scene->event.bytes = 0;
	scene->event.length = length;
	scene->event.source_rule = 0;
	scene->event.destination_rule = 0;
	scene->event.flags = 0;
	scene->event.tcp_flags = tcp_flags;
	scene->judged = false;
	scene->found = false;
	scene->noted = 0;
}

/* A packet goes into this pod: if that is told, it need not be looked up again. */
static __always_inline void kd_scene_to(const struct kd_endpoint *pod)
{
	struct kd_scene *scene = events ? kd_scene_of_cpu() : NULL;

	if (!scene || !scene->news)
		return;
	scene->found = true;
	scene->event.destination_identity = pod->identity;
	scene->event.destination_device = pod->ifindex;
}

#endif /* KD_SCENE_H */
