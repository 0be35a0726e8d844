/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The pods of this node. */
#ifndef KD_MAPS_ENDPOINTS_H
#define KD_MAPS_ENDPOINTS_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <kd/types.h>

/* pod address -> its device. Written by user space as pods come and go; full: refused beforehand. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__type(key, struct kd_addr);
	__type(value, struct kd_endpoint);
} kd_endpoints SEC(".maps");

#endif /* KD_MAPS_ENDPOINTS_H */
