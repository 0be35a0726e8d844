/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What the socket load balancer remembers of a socket. */
#ifndef KD_MAPS_SOCKETS_H
#define KD_MAPS_SOCKETS_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <kd/types.h>

/* socket -> its last translation; lives and dies with the socket, so it is never evicted. */
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct kd_sock);
} kd_sock SEC(".maps");

/* (socket, backend) -> frontend, for UDP sockets that send to more than one service. LRU. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 65536);
	__type(key, struct kd_sock_reply_key);
	__type(value, struct kd_sock_reply);
} kd_sock_reply SEC(".maps");

#endif /* KD_MAPS_SOCKETS_H */
