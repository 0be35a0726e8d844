/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What the programs did, counted per CPU. */
#ifndef KD_MAPS_COUNTERS_H
#define KD_MAPS_COUNTERS_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <kd/types.h>

#define KD_COUNTERS 64

/* enum kd_verdict or KD_COUNTERS / 2 - enum kd_drop -> packets and bytes. Written by kd_finish() only. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, KD_COUNTERS);
	__type(key, __u32);
	__type(value, struct kd_counter);
} kd_counters SEC(".maps");

#endif /* KD_MAPS_COUNTERS_H */
