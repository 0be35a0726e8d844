/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The sockets of the node itself, which use ports of the same addresses. Reads those of the device's namespace. */
#ifndef KD_NODE_SOCKET_H
#define KD_NODE_SOCKET_H

#include <stdbool.h>
#include <stddef.h>
#include <linux/bpf.h>
#include <linux/in.h>
#include <bpf/bpf_helpers.h>
#include <kd/addr.h>
#include <kd/config.h>
#include <kd/types.h>

/* Whether a socket of this node has a claim to packets of this tuple, which the kernel's own has the form of. */
KD_SUBPROGRAM bool kd_socket_uses(struct __sk_buff *skb, const struct kd_tuple *tuple)
{
	struct {
		__be32 saddr, daddr;
		__be32 ports;
	} v4 = { tuple->src.w[3], tuple->dst.w[3], kd_ports(tuple) };
	struct bpf_sock_tuple *ends = (void *)tuple;
	__u32 size = sizeof(ends->ipv6);
	struct bpf_sock *sock;
	bool uses;

	if (kd_is_v4(&tuple->src)) {
		ends = (void *)&v4;
		size = sizeof(v4);
	}
	if (tuple->protocol == IPPROTO_UDP) {
		sock = bpf_sk_lookup_udp(skb, ends, size, BPF_F_CURRENT_NETNS, 0);
		if (!sock)
			return false;
		bpf_sk_release(sock);
		return true;
	}
	if (tuple->protocol != IPPROTO_TCP)
		return false;
	sock = bpf_skc_lookup_tcp(skb, ends, size, BPF_F_CURRENT_NETNS, 0);
	if (!sock)
		return false;
	uses = sock->state != BPF_TCP_LISTEN;
	bpf_sk_release(sock);
	return uses;
}

_Static_assert(offsetof(struct kd_tuple, dport) == offsetof(struct bpf_sock_tuple, ipv6.dport), "as the kernel's");

#endif /* KD_NODE_SOCKET_H */
