/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Flows to the world that nobody has answered yet. */
#ifndef KD_MAPS_BEGUN_H
#define KD_MAPS_BEGUN_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <kd/types.h>

#define KD_BEGUN_PAIRS 32768U

/*
 * place of a flow -> two flows that may be there. Written by kd/begun.h only. Full, or with fewer than KD_BEGUN_PAIRS
 * elements: flows begin in kd_conntrack instead. Nodes that masquerade give it all of its elements.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct kd_begun_pair);
} kd_begun SEC(".maps");

#endif /* KD_MAPS_BEGUN_H */
