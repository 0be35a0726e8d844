/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Who may use a service, where not everybody may. */
#ifndef KD_MAPS_SOURCES_H
#define KD_MAPS_SOURCES_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <kd/types.h>

/*
 * (service, source prefix) -> 1. Written by user space before a frontend has KD_FRONTEND_SOURCE_RANGES; asked
 * only for such. A service without a row lets nobody in.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 16384);
	__type(key, struct kd_source_key);
	__type(value, __u8);
} kd_sources SEC(".maps");

#endif /* KD_MAPS_SOURCES_H */
