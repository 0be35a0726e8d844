/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The steps of one packet, in programs that explain. */
#ifndef KD_MAPS_TRACE_H
#define KD_MAPS_TRACE_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <kd/types.h>

#define KD_TRACE_STEPS 64

/* In the order in which they were taken. Written by kd/trace.h; full: the last element is written again. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, KD_TRACE_STEPS);
	__type(key, __u32);
	__type(value, struct kd_traced);
} kd_trace SEC(".maps");

/* One element: how many there are. User space sets it to 0 before each packet. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} kd_trace_count SEC(".maps");

#endif /* KD_MAPS_TRACE_H */
