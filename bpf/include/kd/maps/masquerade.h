/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Which flows of pods leave the node under another address. User space writes, programs read. */
#ifndef KD_MAPS_MASQUERADE_H
#define KD_MAPS_MASQUERADE_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <kd/types.h>

/* ifindex -> the addresses under which pods leave through this device. Others let them go as they are. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 64);
	__type(key, __u32);
	__type(value, struct kd_masq_device);
} kd_masq_devices SEC(".maps");

/* Destinations that know pods by their own addresses, and sources with a rule of their own. Written before devices. */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 16384);
	__type(key, struct kd_masq_key);
	__type(value, struct kd_masq_rule);
} kd_masq_rules SEC(".maps");

/*
 * Element 0: the sides (1 << enum kd_masq_side) that no rule is about, where nobody looks for one. Written before the
 * first rule of a side, and after the last.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} kd_masq_empty SEC(".maps");

#endif /* KD_MAPS_MASQUERADE_H */
