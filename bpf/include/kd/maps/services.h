/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Services: frontend -> service -> set -> slot -> backend. User space writes, programs read.
 *
 * Order of writing (k8sdatapath/datapath/service_table.py): rows and slots that nothing names yet,
 * then the 8-byte set, then the frontend. Every step leaves a table that answers; a crash between
 * two of them leaves at worst rows that nobody names, which the next bind() takes back.
 */
#ifndef KD_MAPS_SERVICES_H
#define KD_MAPS_SERVICES_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <kd/types.h>

/* frontend -> service. Full: user space refuses the change beforehand. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__type(key, struct kd_frontend_key);
	__type(value, struct kd_frontend);
} kd_frontends SEC(".maps");

/*
 * kd_set_index(service, scope) -> the run of slots. Written by one aligned 8-byte store through mmap per
 * change: the update call copies byte by byte on some machines.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 3 * 65536);
	__type(key, __u32);
	__type(value, struct kd_set);
} kd_sets SEC(".maps");

/* slot / KD_SLOTS_PER_BLOCK -> sixteen backend ids. Filled through mmap while nothing points there. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 65536);
	__type(key, __u32);
	__type(value, struct kd_slots);
} kd_slots SEC(".maps");

/* backend index -> backend. Filled through mmap; `flows` is counted by the programs. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 262144);
	__type(key, __u32);
	__type(value, struct kd_backend);
} kd_backends SEC(".maps");

static __always_inline __u32 kd_set_index(__u32 service, enum kd_scope scope)
{
	return service * KD_SCOPES + scope;
}

#endif /* KD_MAPS_SERVICES_H */
