/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Flows that were load-balanced per packet, one entry per direction. */
#ifndef KD_MAPS_CONNTRACK_H
#define KD_MAPS_CONNTRACK_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <kd/types.h>

/*
 * tuple -> translation. Writers: programs (user space only deletes). Full: the least recently used
 * entry goes; a flow that lost one direction is remade whole by its next packet.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 262144);
	__type(key, struct kd_tuple);
	__type(value, struct kd_ct);
} kd_conntrack SEC(".maps");

#endif /* KD_MAPS_CONNTRACK_H */
