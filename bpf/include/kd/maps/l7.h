/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * HTTP policy: what requests have to be, and the connections that are looked at.
 */
#ifndef KD_MAPS_L7_H
#define KD_MAPS_L7_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <kd/l7_types.h>
#include <kd/maps/l7_ports.h>

/* Cells of all automata. Written by user space before a number leads there. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 64);
	__type(key, __u32);
	__type(value, struct kd_l7_block);
} kd_l7_table SEC(".maps");

/* Rows of all automata; likewise. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 16384);
	__type(key, __u32);
	__type(value, struct kd_l7_row);
} kd_l7_rows SEC(".maps");

/* number -> automaton. A number is given away again when no connection has it. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1024);
	__type(key, __u32);
	__type(value, struct kd_l7_automaton);
} kd_l7_automata SEC(".maps");

/* set of rules, and a rule's place there -> the rule. For who looks at pins: no program reads it. Full: others have no names. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, struct kd_l7_name_key);
	__type(value, struct kd_name);
} kd_l7_names SEC(".maps");

/*
 * cookie of a socket -> what was read. Writers: programs; it goes when the socket closes. Full: the connection is not
 * looked at, so nothing passes.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, __u64);
	__type(value, struct kd_l7_conn);
} kd_l7_conns SEC(".maps");

/*
 * cookie -> socket of a server, which is read as it receives. There is room for more than in kd_l7_conns: of one that is
 * not there nothing passes, not even what came with its handshake.
 */
struct {
	__uint(type, BPF_MAP_TYPE_SOCKHASH);
	__uint(max_entries, 65536 + 1024);
	__type(key, __u64);
	__type(value, __u64);
} kd_l7_sockets SEC(".maps");

/* How many of these are not in kd_l7_conns, or more: while there are any, there may be no room for another. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} kd_l7_shut SEC(".maps");

/*
 * cookie -> socket of a client, which is read as it sends: who only receives is not slowed down by that. Full: the
 * connection is not looked at.
 */
struct {
	__uint(type, BPF_MAP_TYPE_SOCKHASH);
	__uint(max_entries, 65536);
	__type(key, __u64);
	__type(value, __u64);
} kd_l7_clients SEC(".maps");

/*
 * cookie -> what further automata have read, where rules are too many for one. Writers: programs; it goes with the
 * connection. Full: the connection is denied.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, __u64);
	__type(value, struct kd_l7_groups);
} kd_l7_groups SEC(".maps");

/* For the programs that cannot ask for a socket's cookie, and to see on packets that it is looked at. */
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct kd_l7_sock);
} kd_l7_sock SEC(".maps");

/* cookie of a network namespace -> 1: denied connections are closed at its device. Written by user space. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 4096);
	__type(key, __u64);
	__type(value, __u32);
} kd_l7_closers SEC(".maps");

/* tuple from server to client -> how far a denied connection is closed. Full: user space closes the oldest. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, struct kd_tuple);
	__type(value, struct kd_l7_closing);
} kd_l7_closing SEC(".maps");

/* How many of these there are, or more: while there is none, packets need not be looked at. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} kd_l7_pending SEC(".maps");

/* What was asked for. Full: events are lost, and counted. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 20);
} kd_l7_events SEC(".maps");

/* enum kd_l7_reason -> how often. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 64);
	__type(key, __u32);
	__type(value, __u64);
} kd_l7_counts SEC(".maps");

#endif /* KD_MAPS_L7_H */
