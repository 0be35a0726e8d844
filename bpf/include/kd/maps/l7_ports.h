/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Where HTTP policy holds, whoever asks. */
#ifndef KD_MAPS_L7_PORTS_H
#define KD_MAPS_L7_PORTS_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <kd/l7_types.h>

/*
 * address of a pod, port of a server, and which of both it is -> what holds there whoever the other is. What is dialled is
 * only observed. Written by user space; full: refused beforehand.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 4096);
	__type(key, struct kd_l7_port_key);
	__type(value, struct kd_l7_port);
} kd_l7_ports SEC(".maps");

#endif /* KD_MAPS_L7_PORTS_H */
