/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Who is who, and who may reach whom. Written by user space, but for talks. What is added is written before anything
 * leads to it, and what is removed after nothing does: kd_rules, then kd_policies and kd_identities, then kd_ipcache,
 * then kd_endpoints.
 */
#ifndef KD_MAPS_POLICY_H
#define KD_MAPS_POLICY_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <kd/types.h>
#include <kd/maps/peers.h>

/* address of a pod or a node -> who it is; full: refused beforehand. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 262144);
	__type(key, struct kd_addr);
	__type(value, struct kd_party);
} kd_ipcache SEC(".maps");

/* network that a policy names -> who is in it, of those in no narrower one and not in kd_ipcache; full: refused. */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, struct kd_peer_key);
	__type(value, struct kd_party);
} kd_networks SEC(".maps");

/*
 * identity of a pod, and the network of its address -> number that rules know it by. For what comes through a tunnel
 * under another identity than kd_ipcache has. Full: the others are nobody there.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 262144);
	__type(key, struct kd_identity_key);
	__type(value, __u32);
} kd_identities SEC(".maps");

/* 2 * number of a policy + direction -> where its rules are. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 8192);
	__type(key, __u32);
	__type(value, struct kd_policy);
} kd_policies SEC(".maps");

/* table, peer, protocol and leading bits of the port -> what is to become of it; full: refused beforehand. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 262144);
	__type(key, struct kd_rule_key);
	__type(value, struct kd_rule);
} kd_rules SEC(".maps");

/* counter of a rule -> packets that it was decisive for. Written by programs. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 16384);
	__type(key, __u32);
	__type(value, struct kd_counter);
} kd_rule_counts SEC(".maps");

/*
 * number -> what people call it, and what DNS has answered. For who looks at pins, and for the process that takes over:
 * no program reads it. Full: what that process needs takes the place of what is for people.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, struct kd_name_key);
	__type(value, struct kd_name);
} kd_names SEC(".maps");

/*
 * tuple, the lower end first -> what was allowed. Writers: programs. Full: the least recently used talk goes; if it
 * goes on after all, it is allowed again, or denied, as if it began.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 131072);
	__type(key, struct kd_tuple);
	__type(value, struct kd_talk);
} kd_talks SEC(".maps");

#endif /* KD_MAPS_POLICY_H */
