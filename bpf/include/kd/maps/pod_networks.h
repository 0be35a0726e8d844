/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Which addresses pods of this node get. */
#ifndef KD_MAPS_POD_NETWORKS_H
#define KD_MAPS_POD_NETWORKS_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <kd/addr.h>
#include <kd/types.h>

/* 0: IPv4, 1: IPv6 -> the network, without a mask: none is known. Written by user space as soon as it is told. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 2);
	__type(key, __u32);
	__type(value, struct kd_network);
} kd_pod_networks SEC(".maps");

#endif /* KD_MAPS_POD_NETWORKS_H */
