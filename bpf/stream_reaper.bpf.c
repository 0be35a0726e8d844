// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * Connections that HTTP policy has to end, and packets did not.
 *
 * The iterator walks the TCP sockets of the reader's network namespace. One is destroyed, and reported, if it was denied
 * some time ago and is still there, or if policies ask for what its requests have to be and nobody reads them: it is
 * older than the policy.
 */
#include <stdbool.h>
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <kd/addr.h>
#include <kd/l7_peer.h>
#include <kd/sock_iter.h>
#include <kd/maps/l7.h>

char _license[] SEC("license") = "Dual BSD/GPL";

KD_CONFIG(__u64, patience, "nanoseconds that a denied connection has to close by itself") = 1000000000;

#define KD_TCP_TIME_WAIT 6
#define KD_TCP_LISTEN 10
#define KD_TCP_NEW_SYN_RECV 12

static __always_inline bool kd_l7_way(const struct sock_common *sock, struct kd_tuple *way)
{
	if (sock->skc_family == KD_AF_INET) {
		kd_addr_set_v4(&way->src, sock->skc_rcv_saddr);
		kd_addr_set_v4(&way->dst, sock->skc_daddr);
	} else if (sock->skc_family == KD_AF_INET6) {
		kd_addr_set_v6(&way->src, &sock->skc_v6_rcv_saddr);
		kd_addr_set_v6(&way->dst, &sock->skc_v6_daddr);
	} else {
		return false;
	}
	way->sport = bpf_htons(sock->skc_num);
	way->dport = sock->skc_dport;
	return true;
}

static __always_inline bool kd_l7_is_over(struct sock_common *sock)
{
	struct kd_l7_sock *mark = bpf_sk_storage_get(&kd_l7_sock, sock, NULL, 0);
	struct kd_tuple way = {};
	struct kd_l7_conn *conn;
	__u64 cookie;

	if (!mark || !(mark->flags & KD_L7_READ))
		return kd_l7_way(sock, &way) && kd_l7_missed(&way, mark);
	cookie = mark->cookie;
	conn = bpf_map_lookup_elem(&kd_l7_conns, &cookie);
	if (!conn)
		return true;
	if (conn->flags & KD_L7_ENDED)
		return bpf_ktime_get_ns() - conn->ended_at > patience;
	return conn->requests.flags & KD_L7_UNKNOWN && kd_l7_asked(&conn->way, kd_l7_client(conn));
}

SEC("iter/tcp")
int l7_reap(struct bpf_iter__tcp *ctx)
{
	struct sock_common *sock = ctx->sk_common;
	__u8 one = 1;

	if (!sock || sock->skc_state == KD_TCP_LISTEN || sock->skc_state == KD_TCP_TIME_WAIT ||
	    sock->skc_state == KD_TCP_NEW_SYN_RECV || !kd_l7_is_over(sock))
		return 0;
	/* No room to report it: the kernel makes room and shows this socket once more. */
	if (!bpf_seq_write(ctx->meta->seq, &one, sizeof(one)))
		bpf_sock_destroy(sock);
	return 0;
}
