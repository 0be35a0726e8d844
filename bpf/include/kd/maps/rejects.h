/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* How many rejections may be sent. */
#ifndef KD_MAPS_REJECTS_H
#define KD_MAPS_REJECTS_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <kd/types.h>

/* One element: nanoseconds of CLOCK_MONOTONIC from which on the CPU may send. Written by kd/reject.h only. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} kd_rejects SEC(".maps");

#endif /* KD_MAPS_REJECTS_H */
