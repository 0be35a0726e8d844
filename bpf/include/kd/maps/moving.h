/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * How far the tables that programs write have come on their way into others of another size.
 *
 * A hash table is not resized in place: flows (kd/maps/conntrack.h) and clients (kd/maps/affinity.h) move to new
 * tables. Programs over the old tables are replaced, hook by hook, by programs that know both and are `moving`, and
 * in the end these by programs over the new ones. What `moving` programs do is said by one number for all of them. User
 * space counts it up, and before each next step waits until no program runs that has seen an earlier number
 * (k8sdatapath/datapath/flow_move.py). So programs of two neighbouring steps run side by side, never of more.
 */
#ifndef KD_MAPS_MOVING_H
#define KD_MAPS_MOVING_H

#include <stdbool.h>
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <kd/config.h>
#include <kd/types.h>

/* One element: enum kd_move. Written by user space. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} kd_moving SEC(".maps");

KD_CONFIG(bool, moving, "flows and clients get other tables: kd_moving says how far they are") = false;

static __always_inline enum kd_move kd_move(void)
{
	__u32 first = 0;
	volatile __u32 *step = bpf_map_lookup_elem(&kd_moving, &first);

	return step ? *step : KD_MOVE_OLD;
}

#endif /* KD_MAPS_MOVING_H */
