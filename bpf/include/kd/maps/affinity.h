/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Which backend a client stays with, for services with session affinity. */
#ifndef KD_MAPS_AFFINITY_H
#define KD_MAPS_AFFINITY_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <kd/types.h>

/*
 * (service, client) -> backend. Writers: programs. Full: the client that was silent longest is forgotten. An
 * entry is checked whenever it is used, so none has to be taken away when a backend goes.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 65536);
	__type(key, struct kd_affinity_key);
	__type(value, struct kd_affinity);
} kd_affinity SEC(".maps");

#endif /* KD_MAPS_AFFINITY_H */
