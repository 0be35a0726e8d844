// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * HTTP policy at the sockets of pods, without a proxy.
 *
 * l7_sockets sees connections of a cgroup begin and end, and has those looked at that policies ask about;
 * l7_received reads what a server receives, l7_sent what a client sends; l7_guard lets nothing into a socket that
 * should be looked at and is not, l7_guard_out nothing out of a client's, and reads what a server answers; l7_leaving
 * and l7_arriving close what was denied.
 */
#include <stdbool.h>
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <kd/kernel.h>
#include <kd/l7_answers.h>
#include <kd/l7_close.h>
#include <kd/l7_early.h>
#include <kd/l7_peer.h>
#include <kd/l7_reason.h>
#include <kd/l7_stream.h>

struct tcp_sock {
	__u32 write_seq;
	__u32 rcv_nxt;
	__u32 copied_seq;
	__u64 bytes_received;
	__u8 bpf_sock_ops_cb_flags;
} KD_KERNEL;

char _license[] SEC("license") = "Dual BSD/GPL";

SEC("sockops")
int l7_sockets(struct bpf_sock_ops *ops)
{
	switch (ops->op) {
	case BPF_SOCK_OPS_TCP_CONNECT_CB:
		kd_l7_dial(ops);
		break;
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
 * What the server has of a head is not to be acted on. A process that waits is woken up by every packet; if it finds
 * nothing then, or the end, some take what they have for all there is. So they find that they cannot read: a message of
 * no bytes that is no end stays in front of the queue, and to receive it is EFAULT.
 */
static __always_inline int kd_l7_spoil(struct __sk_buff *skb, struct kd_l7_conn *conn)
{
	if (bpf_skb_change_tail(skb, 0, 0))
		return SK_DROP;
	if (conn)
		conn->flags &= ~KD_L7_BEGUN;
	return SK_PASS;
}

/*
 * The request is denied by its bytes in a packet: what becomes of that. Where a head was begun by earlier packets,
 * reading fails, and our response has to wait for what the socket sends next.
 */
static __always_inline int kd_l7_deny(struct __sk_buff *skb, struct kd_l7_reading *reading, bool begun)
{
	struct kd_l7_conn *conn = reading->conn;
	bool answers;

	begun = begun && !conn->begin;
	if (begun)
		conn->flags |= KD_L7_BEGUN;
	if (conn->flags & KD_L7_HTTP2) {
		kd_l7_end(conn, reading->cookie, reading->reason);
		/* over a whole frame nonsense can be written; over what is left of one it could make up a head */
		return begun ? kd_l7_spoil(skb, conn) : kd_l7_pass_blotted(reading, conn->begin);
	}
	answers = kd_l7_end(conn, reading->cookie, reading->reason) &&
		  kd_l7_close(&conn->way, KD_L7_WILL_ANSWER, 0, begun);
	if (answers && !begun)
		return bpf_sk_redirect_hash(skb, &kd_l7_sockets, &reading->cookie, 0);
	if (begun)
		return kd_l7_spoil(skb, conn);
	if (!conn->begin)
		return SK_DROP;
	return kd_l7_pass_blotted(reading, conn->begin); /* what came before it is allowed */
}

/*
 * Whether a process has got bytes before any went through our program: what comes before accept() does so when it is
 * received, but not when it is spliced.
 */
static __always_inline bool kd_l7_was_taken(struct bpf_sock *sk, const struct kd_l7_conn *conn)
{
	const struct tcp_sock *tcp = sk && !conn->received ? bpf_skc_to_tcp_sock(sk) : NULL;

	return tcp && tcp->copied_seq != tcp->rcv_nxt - (__u32)tcp->bytes_received;
}

SEC("sk_skb/verdict")
int l7_received(struct __sk_buff *skb)
{
	struct kd_l7_reading reading = {};
	struct bpf_sock *sk = skb->sk;
	struct kd_l7_conn *conn;
	bool begun;

	reading.cookie = bpf_get_socket_cookie(skb);
	conn = bpf_map_lookup_elem(&kd_l7_conns, &reading.cookie);
	if (!conn) /* user space has ended it */
		return kd_l7_spoil(skb, NULL);
	if (conn->flags & KD_L7_CLIENT)
		return SK_PASS;
	if (kd_l7_was_taken(sk, conn))
		reading.reason = KD_HTTP_UNREADABLE;
	conn->received += skb->len;
	reading.from = skb;
	reading.conn = conn;
	reading.end = skb->len;
	if (conn->flags & KD_L7_BEGUN)
		return kd_l7_spoil(skb, conn);
	if (conn->flags & KD_L7_ENDED)
		return conn->flags & KD_L7_HTTP2 ? SK_DROP : kd_l7_pass_blotted(&reading, 0);
	begun = kd_l7_in_head(&conn->requests);
	conn->at = 0;
	conn->begin = 0;
	conn->ahead_size = 0;
	if (!reading.reason)
		bpf_loop(KD_L7_MAX_STEPS, kd_l7_request_skb, &reading, 0);
	kd_l7_see_all(&reading);
	if (!reading.reason)
		return SK_PASS;
	if (conn->flags & KD_L7_AUDITED) {
		kd_l7_permit(conn, reading.cookie, reading.reason);
		return SK_PASS;
	}
	return kd_l7_deny(skb, &reading, begun);
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
	kd_l7_see_all(reading);
	if (!reading->reason)
		return SK_PASS;
	if (conn->flags & KD_L7_AUDITED) {
		kd_l7_permit(conn, reading->cookie, reading->reason);
		return SK_PASS;
	}
	kd_l7_end(conn, reading->cookie, reading->reason);
	return SK_DROP;
}

/* Whether a client has sent what no program has read: it had begun to before the connection was there. */
static __always_inline bool kd_l7_was_sent(const struct tcp_sock *tcp, const struct kd_l7_sock *mark, __u32 fin)
{
	return (__s32)(tcp->write_seq - mark->end - fin) > 0;
}

static __always_inline int kd_l7_sends(struct kd_l7_reading *reading, struct bpf_sock *sk, struct kd_l7_sock *mark)
{
	const struct tcp_sock *tcp = bpf_skc_to_tcp_sock(sk);

	if (!tcp || kd_l7_ask_server(reading) == SK_DROP)
		return SK_DROP;
	if (!kd_l7_was_sent(tcp, mark, 0))
		mark->end = tcp->write_seq + reading->end;
	return SK_PASS; /* what was not read holds up all that is behind it */
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
		return SK_DROP;
	reading.from = msg;
	reading.conn = conn;
	reading.end = msg->size;
	return kd_l7_sends(&reading, sk, mark);
}

static __always_inline bool kd_l7_is_empty(struct __sk_buff *skb)
{
	struct kd_l7_segment segment = {};

	return kd_l7_segment(skb, 0, &segment) && skb->len <= segment.begin;
}

/*
 * Whether what a socket without a mark says may pass. It has none where nothing is asked, or for want of room. Who is
 * behind a service is not known before the first packet to it has left.
 */
static __always_inline bool kd_l7_may_be_unmarked(struct __sk_buff *skb, struct bpf_sock *sk)
{
	const struct tcp_sock *tcp = bpf_skc_to_tcp_sock(sk);
	struct kd_tuple way = {};

	if ((tcp && !(tcp->bpf_sock_ops_cb_flags & KD_L7_UNMARKED)) || sk->state == BPF_TCP_LISTEN)
		return true;
	if (sk->state == BPF_TCP_SYN_SENT && !kd_l7_is_empty(skb))
		return false;
	if (sk->family == KD_AF_INET6) {
#pragma unroll
		for (int i = 0; i < 4; i++) {
			way.src.w[i] = sk->src_ip6[i];
			way.dst.w[i] = sk->dst_ip6[i];
		}
	} else {
		kd_addr_set_v4(&way.src, sk->src_ip4);
		kd_addr_set_v4(&way.dst, sk->dst_ip4);
	}
	way.sport = bpf_htons(sk->src_port);
	way.dport = sk->dst_port;
	if (!kd_l7_missed(&way, NULL))
		return true;
	kd_l7_count(KD_HTTP_NOT_READ);
	return false;
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
	if (sk->state == BPF_TCP_LISTEN)
		return kd_l7_may_begin(skb);
	mark = bpf_sk_storage_get(&kd_l7_sock, sk, NULL, 0);
	if (!mark)
		return kd_l7_may_be_unmarked(skb, sk);
	if (!mark->flags) { /* it should be looked at, and is not */
		kd_l7_count(KD_HTTP_NOT_READ);
		return 0;
	}
	if (mark->flags != KD_L7_READ || !kd_l7_may_end(skb, 0))
		return 1;
	return kd_l7_segment(skb, 0, &segment) && kd_l7_may_arrive(sk, mark, &segment);
}

/* A client's socket sends a packet: whether all in it was read. */
static __always_inline bool kd_l7_may_leave(struct bpf_sock *sk, const struct kd_l7_sock *mark)
{
	bool ends = sk->state != BPF_TCP_ESTABLISHED && sk->state != BPF_TCP_CLOSE_WAIT;
	const struct tcp_sock *tcp = bpf_skc_to_tcp_sock(sk);
	__u64 cookie = mark->cookie;
	struct kd_l7_conn *conn;

	if (!tcp)
		return false;
	if (!kd_l7_was_sent(tcp, mark, ends))
		return true;
	conn = bpf_map_lookup_elem(&kd_l7_conns, &cookie);
	if (!conn || conn->flags & KD_L7_ENDED)
		return false;
	if (conn->requests.flags & KD_L7_UNKNOWN)
		return true;
	if (conn->flags & KD_L7_AUDITED) {
		kd_l7_permit(conn, cookie, KD_HTTP_UNREADABLE);
		return true;
	}
	kd_l7_end(conn, cookie, KD_HTTP_UNREADABLE);
	return false;
}

/*
 * A server answers what it was not to have: nobody gets to see it. False: it must not leave, as nothing makes our
 * response of it.
 */
static __always_inline bool kd_l7_keep_secret(struct kd_l7_conn *conn, __u64 cookie)
{
	if (conn->flags & KD_L7_AUDITED) {
		kd_l7_permit(conn, cookie, KD_HTTP_UNREADABLE);
		return true;
	}
	if (!(conn->flags & KD_L7_ENDED) && kd_l7_end(conn, cookie, KD_HTTP_UNREADABLE))
		kd_l7_close(&conn->way, KD_L7_WILL_ANSWER, 0, false);
	return bpf_map_lookup_elem(&kd_l7_closing, &conn->way);
}

/* A server's socket sends a packet: whether it may leave. */
static __always_inline bool kd_l7_answers(struct __sk_buff *skb, struct bpf_sock *sk, struct kd_l7_sock *mark)
{
	struct kd_l7_reading reading = { .from = skb, .cookie = mark->cookie, .end = skb->len };
	__u32 seq = 0, begin = kd_l7_payload(skb, &seq);
	struct kd_l7_conn *conn;

	if (begin == skb->len)
		return true;
	conn = bpf_map_lookup_elem(&kd_l7_conns, &reading.cookie);
	if (!conn) /* user space has ended it */
		return true;
	if (kd_l7_was_taken(sk, conn) && !(conn->requests.flags & KD_L7_UNKNOWN))
		return kd_l7_keep_secret(conn, reading.cookie);
	reading.conn = conn;
	if (conn->asked != conn->answered && !(conn->responses.flags & KD_L7_UNKNOWN))
		kd_l7_hear(&reading, mark, seq, begin);
	return true;
}

SEC("cgroup_skb/egress")
int l7_guard_out(struct __sk_buff *skb)
{
	struct bpf_sock *sk = skb->sk;
	struct kd_l7_sock *mark;

	sk = sk ? bpf_sk_fullsock(sk) : NULL;
	if (!sk || sk->protocol != IPPROTO_TCP)
		return 1;
	mark = bpf_sk_storage_get(&kd_l7_sock, sk, NULL, 0);
	if (!mark)
		return kd_l7_may_be_unmarked(skb, sk);
	if (mark->flags & KD_L7_FREE)
		return 1;
	if (mark->flags == KD_L7_READ)
		return kd_l7_answers(skb, sk, mark);
	if (mark->flags == KD_L7_DIALS) /* without what is in it, a SYN is sent once more */
		return kd_l7_is_empty(skb);
	if (mark->flags)
		return kd_l7_may_leave(sk, mark);
	kd_l7_count(KD_HTTP_NOT_READ);
	return 0;
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
