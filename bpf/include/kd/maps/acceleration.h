/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Connections within this node whose two sockets hand each other what they send. */
#ifndef KD_MAPS_ACCELERATION_H
#define KD_MAPS_ACCELERATION_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <kd/types.h>
#include <kd/acceleration_types.h>

/* address and port that is dialled, or of the server -> its connections are short-cut. Written by user space. */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 16384);
	__type(key, struct kd_accel_rule_key);
	__type(value, __u32);
} kd_accel_rules SEC(".maps");

/*
 * A connection, as its server will see it -> its client, who is connected a moment before. LRU: full of clients whose
 * servers never showed up, the oldest goes. Then it is not short-cut.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, struct kd_accel_call);
	__type(value, struct kd_accel_caller);
} kd_accel_calls SEC(".maps");

/*
 * cookie of the client's socket -> both ends. Written by programs, taken away when either closes; by user space, to
 * have connections go on as any other. Full: new ones go through the stack.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, __u64);
	__type(value, struct kd_accel_pair);
} kd_accel_pairs SEC(".maps");

/* socket -> which end it is of which pair. Lives and dies with the socket. */
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct kd_accel_own);
} kd_accel_owns SEC(".maps");

/*
 * cookie -> socket. Never taken out while it is open, or what it has not read yet would be lost: what is not to be
 * short-cut is sent through the stack instead.
 */
struct {
	__uint(type, BPF_MAP_TYPE_SOCKHASH);
	__uint(max_entries, 131072);
	__type(key, __u64);
	__type(value, __u64);
} kd_accel_socks SEC(".maps");

/* enum kd_accel_way -> messages and their bytes; connections. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, KD_ACCEL_WAYS);
	__type(key, __u32);
	__type(value, struct kd_counter);
} kd_accel_count SEC(".maps");

#endif /* KD_MAPS_ACCELERATION_H */
