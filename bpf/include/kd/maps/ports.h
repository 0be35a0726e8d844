/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Where ports run out. */
#ifndef KD_MAPS_PORTS_H
#define KD_MAPS_PORTS_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <kd/types.h>

/*
 * tuple without its source port -> how far the search for free ones is, and how many packets found none. Written by
 * kd/ports.h only; full: the remote end that was not heard of for longest is forgotten, and its search begins anew.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1024);
	__type(key, struct kd_tuple);
	__type(value, struct kd_exhausted);
} kd_exhausted SEC(".maps");

#endif /* KD_MAPS_PORTS_H */
