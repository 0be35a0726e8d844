// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * HTTP policy at the sockets of pods, without a proxy.
 *
 * l7_sockets sees connections of a cgroup begin and end, and has those looked at that policies ask about;
 * l7_received reads what a server receives, l7_sent what a process sends; l7_guard lets nothing into a socket that
 * should be looked at and is not; l7_leaving and l7_arriving close what was denied.
 */
#include <stdbool.h>
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <kd/l7_close.h>
#include <kd/l7_peer.h>
#include <kd/l7_reason.h>
#include <kd/l7_stream.h>

/* What is read of the kernel's own struct, found by name when the program is loaded. */
struct tcp_sock {
	__u32 write_seq;
} __attribute__((preserve_access_index));

char _license[] SEC("license") = "Dual BSD/GPL";

SEC("sockops")
int l7_sockets(struct bpf_sock_ops *ops)
{
	switch (ops->op) {
	case BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB:
		kd_l7_enrol(ops, false);
		break;
	case BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB:
		kd_l7_enrol(ops, true);
		break;
	case BPF_SOCK_OPS_STATE_CB:
		kd_l7_closed(ops);
		break;
	}
	return 1;
}

/* Write over what has come, from an offset on, and let it pass. */
static __always_inline int kd_l7_pass_blotted(struct kd_l7_reading *reading, __u32 begin)
{
	struct kd_l7_conn *conn = reading->conn;

	conn->at = begin;
	bpf_loop(KD_L7_MAX_STEPS, kd_l7_blot, reading, 0);
	return conn->at < reading->end ? SK_DROP : SK_PASS;
}

/*
 * The request is denied by its bytes in a packet: what becomes of that. A process that waits is woken up by every
 * packet; if it finds nothing then, some take what they have for all there is. So where a head was begun by earlier
 * packets, something passes, and our response has to wait for what the socket sends next.
 */
static __always_inline int kd_l7_deny(struct __sk_buff *skb, struct kd_l7_reading *reading, bool begun)
{
	struct kd_l7_conn *conn = reading->conn;
	bool answers;

	begun = begun && !conn->begin;
	if (begun)
		conn->flags |= KD_L7_BEGUN;
	answers = kd_l7_end(conn, reading->cookie, reading->reason) &&
		  kd_l7_close(&conn->way, KD_L7_WILL_ANSWER, 0, begun);
	if (answers && !begun)
		return bpf_sk_redirect_hash(skb, &kd_l7_sockets, &reading->cookie, 0);
	if (!conn->begin && !begun)
		return SK_DROP;
	return kd_l7_pass_blotted(reading, conn->begin); /* what came before it is allowed */
}

SEC("sk_skb/verdict")
int l7_received(struct __sk_buff *skb)
{
	struct kd_l7_reading reading = {};
	struct kd_l7_conn *conn;
	bool begun;

	reading.cookie = bpf_get_socket_cookie(skb);
	conn = bpf_map_lookup_elem(&kd_l7_conns, &reading.cookie);
	if (!conn)
		return SK_DROP;
	if (conn->flags & KD_L7_CLIENT)
		return SK_PASS;
	conn->received += skb->len;
	reading.from = skb;
	reading.conn = conn;
	reading.end = skb->len;
	if (conn->flags & KD_L7_ENDED)
		return kd_l7_pass_blotted(&reading, 0);
	begun = kd_l7_in_head(&conn->requests);
	conn->at = 0;
	conn->begin = 0;
	bpf_loop(KD_L7_MAX_STEPS, kd_l7_request_skb, &reading, 0);
	if (!reading.reason)
		return SK_PASS;
	if (conn->flags & KD_L7_AUDITED) {
		kd_l7_permit(conn, reading.cookie, reading.reason);
		return SK_PASS;
	}
	return kd_l7_deny(skb, &reading, begun);
}

/* A denied connection has had its last response. */
static __always_inline void kd_l7_last_response(struct sk_msg_md *msg, const struct kd_l7_conn *conn)
{
	struct tcp_sock *tcp = bpf_skc_to_tcp_sock(msg->sk);

	if (tcp && conn->flags & KD_L7_CLOSES)
		kd_l7_close(&conn->way, KD_L7_WILL_END, tcp->write_seq + msg->size, false);
}

/* A client asks: what is denied is never sent. */
static __always_inline int kd_l7_ask_server(struct kd_l7_reading *reading)
{
	struct kd_l7_conn *conn = reading->conn;

	if (conn->flags & KD_L7_ENDED)
		return SK_DROP;
	conn->at = 0;
	conn->begin = 0;
	bpf_loop(KD_L7_MAX_STEPS, kd_l7_request_msg, reading, 0);
	if (!reading->reason)
		return SK_PASS;
	if (conn->flags & KD_L7_AUDITED) {
		kd_l7_permit(conn, reading->cookie, reading->reason);
		return SK_PASS;
	}
	kd_l7_end(conn, reading->cookie, reading->reason);
	return SK_DROP;
}

SEC("sk_msg")
int l7_sent(struct sk_msg_md *msg)
{
	struct kd_l7_reading reading = {};
	struct bpf_sock *sk = msg->sk;
	struct kd_l7_conn *conn;
	struct kd_l7_sock *mark;

	mark = sk ? bpf_sk_storage_get(&kd_l7_sock, sk, NULL, 0) : NULL;
	if (!mark)
		return SK_PASS;
	reading.cookie = mark->cookie;
	conn = bpf_map_lookup_elem(&kd_l7_conns, &reading.cookie);
	if (!conn) /* user space has ended it */
		return mark->flags & KD_L7_CALLER ? SK_DROP : SK_PASS;
	reading.from = msg;
	reading.conn = conn;
	reading.end = msg->size;
	if (conn->flags & KD_L7_CLIENT)
		return kd_l7_ask_server(&reading);
	if (conn->responses.flags & KD_L7_UNKNOWN)
		return SK_PASS;
	conn->sent = 0;
	bpf_loop(KD_L7_MAX_STEPS, kd_l7_response_msg, &reading, 0);
	if (conn->flags & KD_L7_ENDED && conn->asked == conn->answered)
		kd_l7_last_response(msg, conn);
	return SK_PASS;
}

SEC("cgroup_skb/ingress")
int l7_guard(struct __sk_buff *skb)
{
	struct kd_l7_segment segment = {};
	struct bpf_sock *sk = skb->sk;
	struct kd_l7_sock *mark;

	sk = sk ? bpf_sk_fullsock(sk) : NULL;
	if (!sk || sk->protocol != IPPROTO_TCP)
		return 1;
	mark = bpf_sk_storage_get(&kd_l7_sock, sk, NULL, 0);
	if (!mark)
		return 1;
	if (!mark->flags) { /* it should be looked at, and is not */
		kd_l7_count(KD_HTTP_NOT_READ);
		return 0;
	}
	if (mark->flags != KD_L7_READ || !kd_l7_may_end(skb, 0))
		return 1;
	return kd_l7_segment(skb, 0, &segment) &&
	       (!(segment.flags & bpf_htons(KD_L7_FIN)) || kd_l7_fin_of(sk, &segment) == KD_L7_FIN_PASSES);
}

SEC("tc")
int l7_leaving(struct __sk_buff *skb)
{
	return kd_l7_close_leaving(skb) ? TC_ACT_UNSPEC : TC_ACT_SHOT;
}

SEC("tc")
int l7_arriving(struct __sk_buff *skb)
{
	return kd_l7_close_arriving(skb) ? TC_ACT_SHOT : TC_ACT_UNSPEC;
}
