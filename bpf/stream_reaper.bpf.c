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
#include <kd/maps/l7.h>

char _license[] SEC("license") = "Dual BSD/GPL";

KD_CONFIG(__u64, patience, "nanoseconds that a denied connection has to close by itself") = 1000000000;

/* What is read of the kernel's own structs, found by name when the program is loaded. */
#define KD_KERNEL __attribute__((preserve_access_index))

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

struct bpf_iter__tcp {
	struct bpf_iter_meta *meta;
	struct sock_common *sk_common;
} KD_KERNEL;

int bpf_sock_destroy(struct sock_common *sock) __ksym;

#define KD_AF_INET 2
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

/* Whether requests to a server have to be read. */
static __always_inline bool kd_l7_asked(const struct kd_tuple *way)
{
	struct kd_l7_port_key key = { .addr = way->src, .port = way->sport };
	struct kd_l7_answer answer = {};
	struct kd_l7_port *port;
	__u32 policy;

	if (!kd_l7_known(&way->src, way->sport, false, &policy) || kd_addr_equal(&way->src, &way->dst))
		return false;
	kd_l7_ask(policy, KD_INGRESS, &way->dst, way->sport, &answer);
	port = bpf_map_lookup_elem(&kd_l7_ports, &key);
	return answer.rules > 0 || (!answer.rules && port && !(port->flags & KD_L7_AUDIT));
}

static __always_inline bool kd_l7_is_over(struct sock_common *sock)
{
	struct kd_l7_sock *mark = bpf_sk_storage_get(&kd_l7_sock, sock, NULL, 0);
	struct kd_tuple way = {};
	struct kd_l7_conn *conn;
	__u64 cookie;

	if (mark && mark->flags == (KD_L7_FREE | KD_L7_CALLER))
		return false;
	if (!mark || !(mark->flags & KD_L7_READ))
		return kd_l7_way(sock, &way) && kd_l7_asked(&way);
	cookie = mark->cookie;
	conn = bpf_map_lookup_elem(&kd_l7_conns, &cookie);
	if (!conn)
		return true;
	if (conn->flags & KD_L7_ENDED)
		return bpf_ktime_get_ns() - conn->ended_at > patience;
	return conn->flags & KD_L7_ANY && !(conn->flags & KD_L7_CLIENT) && kd_l7_asked(&conn->way);
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
