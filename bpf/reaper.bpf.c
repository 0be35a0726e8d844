// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * Sockets whose backend is gone.
 *
 * A connected socket holds its backend's address for as long as it lives, so the change of a map cannot move
 * it. These iterators walk the sockets of the reader's network namespace. One is destroyed, and reported, if it is
 * connected to the very backend that kd_sock has for it, and that backend has left its service: its process
 * gets ECONNABORTED and can connect anew. An unconnected socket, which chooses for each datagram, has no
 * peer and is passed over; so is one that its process has connected elsewhere since.
 *
 * Whoever runs reap_tcp has decided that established connections shall not outlive their backend's membership.
 */
#include <stdbool.h>
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <kd/addr.h>
#include <kd/service.h>
#include <kd/sock_iter.h>
#include <kd/types.h>
#include <kd/maps/sockets.h>

char _license[] SEC("license") = "Dual BSD/GPL";

#define KD_UDP_CONNECTED 1 /* the kernel's TCP_ESTABLISHED */

static __always_inline bool kd_peer(const struct sock_common *sock, struct kd_addr *addr)
{
	if (sock->skc_family == KD_AF_INET) {
		kd_addr_set_v4(addr, sock->skc_daddr);
		return true;
	}
	if (sock->skc_family != KD_AF_INET6)
		return false;
	kd_addr_set_v6(addr, &sock->skc_v6_daddr);
	return true;
}

static __always_inline int kd_reap(struct bpf_iter_meta *meta, struct sock_common *sock)
{
	struct kd_sock *known = bpf_sk_storage_get(&kd_sock, sock, NULL, 0);
	struct kd_addr peer;

	if (!known || known->backend_port != sock->skc_dport || !kd_peer(sock, &peer) ||
	    !kd_addr_equal(&known->backend_addr, &peer) || kd_backend_stays(known->backend))
		return 0;
	/* No room to report it: the kernel makes room and shows this socket once more. */
	if (!bpf_seq_write(meta->seq, known, sizeof(*known)))
		bpf_sock_destroy(sock);
	return 0;
}

SEC("iter/udp")
int reap_udp(struct bpf_iter__udp *ctx)
{
	struct sock_common *sock = ctx->udp_sk;

	return sock && sock->skc_state == KD_UDP_CONNECTED ? kd_reap(ctx->meta, sock) : 0;
}

SEC("iter/tcp")
int reap_tcp(struct bpf_iter__tcp *ctx)
{
	struct sock_common *sock = ctx->sk_common;

	return sock ? kd_reap(ctx->meta, sock) : 0; /* those that listen or wait have no backend */
}
