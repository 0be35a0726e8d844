/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The other nodes of the cluster, and the pods that are on them. */
#ifndef KD_MAPS_PEERS_H
#define KD_MAPS_PEERS_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <kd/types.h>

/* network of pods -> their node. Written by user space as nodes come and go; full: refused beforehand. */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 16384);
	__type(key, struct kd_peer_key);
	__type(value, struct kd_peer);
} kd_peers SEC(".maps");

/* address of a node -> 1: what it says through the tunnel is believed. Written before kd_peers leads there. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 8192);
	__type(key, struct kd_addr);
	__type(value, __u8);
} kd_peer_nodes SEC(".maps");

#endif /* KD_MAPS_PEERS_H */
