/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * What iterators over sockets are given, and how they end one.
 */
#ifndef KD_SOCK_ITER_H
#define KD_SOCK_ITER_H

#include <linux/bpf.h>
#include <linux/in6.h>
#include <bpf/bpf_helpers.h>
#include <kd/kernel.h>

struct sock_common {
	__be32 skc_daddr;
	__be32 skc_rcv_saddr;
	__be16 skc_dport;
	__u16 skc_num;
	unsigned short skc_family;
	volatile unsigned char skc_state;
	struct in6_addr skc_v6_daddr;
	struct in6_addr skc_v6_rcv_saddr;
} KD_KERNEL;

struct seq_file;

struct bpf_iter_meta {
	struct seq_file *seq;
} KD_KERNEL;

struct bpf_iter__udp {
	struct bpf_iter_meta *meta;
	struct sock_common *udp_sk; /* a struct udp_sock, which begins with one */
} KD_KERNEL;

struct bpf_iter__tcp {
	struct bpf_iter_meta *meta;
	struct sock_common *sk_common;
} KD_KERNEL;

int bpf_sock_destroy(struct sock_common *sock) __ksym;

#endif /* KD_SOCK_ITER_H */
