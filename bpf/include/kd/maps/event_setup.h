/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* How much is told of packets, for those who note them on their way: see kd/event.h. */
#ifndef KD_MAPS_EVENT_SETUP_H
#define KD_MAPS_EVENT_SETUP_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <kd/event_types.h>

/* One element: what is told. Written by user space at any time. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct kd_event_setup);
} kd_event_setup SEC(".maps");

static const volatile __u32 kd_event_setup_first; /* a key that takes no room on the stack, which is scarce */

static __always_inline struct kd_event_setup *kd_event_setup_now(void)
{
	return bpf_map_lookup_elem(&kd_event_setup, (const void *)&kd_event_setup_first);
}

#endif /* KD_MAPS_EVENT_SETUP_H */
