/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Connections between two sockets of this node: what one sends is put into the queue of the other, past the stack.
 *
 * Which: those to an address and port in kd_accel_rules, be it the dialled one or the server's, between two pods of
 * this node or within one namespace. The client is connected first. It leaves word in kd_accel_calls, under what the
 * server will see, where its packets are translated, too (kd_conntrack). The server finds it a moment later, and
 * both are a pair.
 *
 * Each message is handed over only if that is the same as sending it, or it goes through the stack as ever:
 *  - Policies have allowed the pair and would still: what the programs on packets have written down says so, by the
 *    revisions that they go by. Whatever else is the case, the next packet finds out.
 *  - The peer has read all that went through the stack before, so that nothing is overtaken. Hence the sequence
 *    numbers: what was written here has arrived there, and what has arrived there was read.
 *  - The peer's queue is not half full, nor of very many messages. The stack knows how to wait; here nothing would.
 *  - Both are open in this direction: what else would be an error still is.
 *  - Neither has asked for what only the stack does: to be woken up by so many bytes, to encrypt.
 * FIN and RST go through the stack, behind what was handed over, which is in the queue by then.
 *
 * What others would forget, because they see no packets of it, is told some times a second that there are some: the
 * talk, and the flow.
 *
 * Reads kd_accel_rules, kd_endpoints, kd_l7_ports, kd_policies and kd_sock; reads kd_conntrack and kd_talks, and writes
 * there when they were last seen; writes the other kd_accel_*, and an event of each pair.
 */
#ifndef KD_ACCELERATION_H
#define KD_ACCELERATION_H

#include <stdbool.h>
#include <linux/bpf.h>
#include <linux/in.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include <kd/acceleration_event.h>
#include <kd/addr.h>
#include <kd/clock.h>
#include <kd/config.h>
#include <kd/dns_port.h>
#include <kd/talk_ends.h>
#include <kd/enforce.h>
#include <kd/kernel.h>
#include <kd/tuple.h>
#include <kd/types.h>
#include <kd/maps/acceleration.h>
#include <kd/maps/conntrack.h>
#include <kd/maps/endpoints.h>
#include <kd/maps/l7_ports.h>
#include <kd/maps/sockets.h>

#define KD_RCV_SHUTDOWN 1
#define KD_SEND_SHUTDOWN 2
#define KD_STATE_CLOSE 7 /* the kernel's TCP_CLOSE */

/* The kernel counts the bytes of what is handed over, and not the kilobyte or the page that each message takes. */
#define KD_ACCEL_MOST_UNREAD 256

/* In ticks of the kernel: 64 ms to 640 ms, as it was built. */
#define KD_ACCEL_MOMENT 64

struct kd_atomic64 {
	__s64 counter;
};

struct sock_common {
	struct kd_atomic64 skc_cookie;
} KD_KERNEL;

struct kd_atomic {
	int counter;
};

struct sock {
	struct sock_common __sk_common;
	struct {
		struct kd_atomic rmem_alloc;
	} sk_backlog;
	int sk_rcvbuf;
	int sk_rcvlowat;
	__u8 sk_shutdown;
} KD_KERNEL;

struct inet_sock {
	struct sock sk;
} KD_KERNEL;

struct inet_connection_sock {
	struct inet_sock icsk_inet;
	const void *icsk_ulp_ops; /* TLS in the kernel, which the other end may do by itself */
} KD_KERNEL;

struct tcp_sock {
	struct inet_connection_sock inet_conn;
	__u32 rcv_nxt;
	__u32 copied_seq;
	__u32 write_seq;
} KD_KERNEL;

struct sk_psock {
	__u32 msg_tot_len;
} KD_KERNEL;

extern void *bpf_rdonly_cast(const void *at, __u32 type) __ksym;

static __always_inline void kd_accel_count_way(enum kd_accel_way way, __u32 bytes)
{
	__u32 index = way;
	struct kd_counter *count = bpf_map_lookup_elem(&kd_accel_count, &index);

	if (count) {
		count->packets++;
		count->bytes += bytes;
	}
}

/* ---- connections ---- */

static __always_inline bool kd_accel_is_loopback(const struct kd_addr *addr)
{
	const struct kd_addr one = { .w[3] = bpf_htonl(1) };

	if (addr->w[0] || addr->w[1])
		return false;
	if (addr->w[2] == bpf_htonl(0xffff))
		return (addr->w[3] & bpf_htonl(0xff000000)) == bpf_htonl(0x7f000000);
	return kd_addr_equal(addr, &one);
}

/*
 * From the socket to its peer, as it sees them. All is loaded before anything is chosen: the verifier asks that the
 * compiler makes no one load of two.
 */
static __always_inline void kd_accel_way_of(const volatile struct bpf_sock_ops *ops, struct kd_tuple *way)
{
	const __be32 src = ops->local_ip4, dst = ops->remote_ip4;

	*way = (struct kd_tuple){
		.src.w = { ops->local_ip6[0], ops->local_ip6[1], ops->local_ip6[2], ops->local_ip6[3] },
		.dst.w = { ops->remote_ip6[0], ops->remote_ip6[1], ops->remote_ip6[2], ops->remote_ip6[3] },
		.sport = bpf_htons(ops->local_port),
		.dport = bpf_htons(bpf_ntohl(ops->remote_port)),
		.protocol = IPPROTO_TCP,
	};
	if (ops->family == KD_AF_INET) {
		kd_addr_set_v4(&way->src, src);
		kd_addr_set_v4(&way->dst, dst);
	}
}

static __always_inline bool kd_accel_is_within(const struct kd_tuple *way)
{
	return kd_addr_equal(&way->src, &way->dst) || kd_accel_is_loopback(&way->dst);
}

static __always_inline bool kd_accel_is_chosen(const struct kd_addr *addr, __be16 port)
{
	struct kd_accel_rule_key key = {
		.prefixlen = 8 * (sizeof(key) - sizeof(key.prefixlen)),
		.port = port,
		.ipv6 = !kd_is_v4(addr),
		.addr = *addr,
	};

	if (bpf_map_lookup_elem(&kd_accel_rules, &key))
		return true;
	key.port = 0;
	return bpf_map_lookup_elem(&kd_accel_rules, &key);
}

/* Whether what comes to a server's port is read by others whoever its client is, or what this client says there. */
static __always_inline bool kd_accel_is_read(const struct kd_addr *client, const struct kd_addr *server, __be16 port)
{
	struct kd_l7_port_key key = { .addr = *server, .port = port, .toward = KD_INGRESS };

	if (bpf_map_lookup_elem(&kd_l7_ports, &key))
		return true;
	key.addr = *client;
	key.toward = KD_EGRESS;
	return bpf_map_lookup_elem(&kd_l7_ports, &key);
}

/* Policies have more to say of the connection than that it may be, or it is with a name server. */
static __always_inline bool kd_accel_is_for_others(const struct kd_accel_caller *caller, const struct kd_tuple *way,
						   bool within)
{
	struct kd_tuple key;
	struct kd_talk *talk;

	if (kd_accel_is_read(&way->src, &way->dst, way->dport))
		return true;
	if (!within && dns && (caller->dialled_port == KD_DNS_PORT || way->dport == KD_DNS_PORT))
		return true;
	if (!enforce || within)
		return false;
	kd_talk_key(way, &key);
	talk = bpf_map_lookup_elem(&kd_talks, &key);
	return talk && talk->flags & KD_TALK_REQUESTS;
}

/*
 * Kernels in whose queues of sockets nothing tells what was handed over from what has come by the stack say that it has
 * come by the stack, and lose count of that. There this is refused when it is loaded, for want of that member.
 */
static __always_inline bool kd_accel_describe(struct bpf_sock_ops *ops, struct kd_accel_end *end)
{
	struct bpf_sock *sk = ops->sk;
	struct tcp_sock *tcp;

	if (!sk || !bpf_core_field_size(((struct sk_psock *)NULL)->msg_tot_len))
		return false;
	tcp = bpf_skc_to_tcp_sock(sk);
	if (!tcp)
		return false;
	end->cookie = bpf_get_socket_cookie(ops);
	end->netns = bpf_get_netns_cookie(ops);
	end->sock = (__u64)tcp;
	return true;
}

/* Take the socket in: nothing was received yet. */
static __always_inline bool kd_accel_enrol(struct bpf_sock_ops *ops, __u64 cookie, __u64 pair, __u32 end)
{
	struct bpf_sock *sk = ops->sk;
	struct kd_accel_own *own;

	if (!sk)
		return false;
	own = bpf_sk_storage_get(&kd_accel_owns, sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);
	if (!own || bpf_sock_hash_update(ops, &kd_accel_socks, &cookie, BPF_NOEXIST)) {
		kd_accel_count_way(KD_ACCEL_REFUSED, 0);
		return false;
	}
	own->pair = pair;
	own->end = end;
	bpf_sock_ops_cb_flags_set(ops, ops->bpf_sock_ops_cb_flags | BPF_SOCK_OPS_STATE_CB_FLAG);
	return true;
}

/* A client is connected: its server is about to be. */
static __always_inline void kd_accel_client(struct bpf_sock_ops *ops)
{
	struct kd_accel_caller caller = {};
	struct kd_accel_call call = {};
	struct kd_sock *balanced;
	struct kd_ct *ct;
	bool within;

	kd_accel_way_of(ops, &call.way);
	within = kd_accel_is_within(&call.way);
	caller.dialled = call.way.dst;
	caller.dialled_port = call.way.dport;
	if (!within && !bpf_map_lookup_elem(&kd_endpoints, &call.way.dst)) {
		ct = kd_ct_find_untold(&call.way);
		if (!ct || ct->flags & KD_CT_REPLY)
			return;
		call.way = ct->to;
		caller.translated = true;
		if (!bpf_map_lookup_elem(&kd_endpoints, &call.way.dst))
			return;
	} else if (ops->sk) {
		balanced = bpf_sk_storage_get(&kd_sock, ops->sk, NULL, 0);
		if (balanced && balanced->backend_port == call.way.dport &&
		    kd_addr_equal(&balanced->backend_addr, &call.way.dst)) {
			caller.dialled = balanced->frontend_addr;
			caller.dialled_port = balanced->frontend_port;
		}
	}
	if (!kd_accel_is_chosen(&caller.dialled, caller.dialled_port) &&
	    !kd_accel_is_chosen(&call.way.dst, call.way.dport))
		return;
	if (!kd_accel_describe(ops, &caller.end) || kd_accel_is_for_others(&caller, &call.way, within))
		return;
	if (!kd_accel_enrol(ops, caller.end.cookie, caller.end.cookie, KD_ACCEL_CLIENT))
		return;
	call.client_next = ops->snd_nxt;
	call.server_next = ops->rcv_nxt;
	call.netns = within ? caller.end.netns : 0;
	bpf_map_update_elem(&kd_accel_calls, &call, &caller, BPF_NOEXIST);
}

/* A server is connected: if its client has left word, they are a pair. */
static __always_inline void kd_accel_server(struct bpf_sock_ops *ops)
{
	struct kd_accel_pair pair = {};
	struct kd_accel_caller *caller;
	struct kd_accel_call call = {};
	struct kd_tuple own;
	__u64 key;

	kd_accel_way_of(ops, &own);
	call.way = kd_reversed(&own);
	call.client_next = ops->rcv_nxt;
	call.server_next = ops->snd_nxt;
	pair.within = kd_accel_is_within(&call.way);
	call.netns = pair.within ? bpf_get_netns_cookie(ops) : 0;
	caller = bpf_map_lookup_elem(&kd_accel_calls, &call);
	if (!caller || !kd_accel_describe(ops, &pair.end[KD_ACCEL_SERVER]))
		return;
	pair.end[KD_ACCEL_CLIENT] = caller->end;
	pair.dialled = caller->dialled;
	pair.dialled_port = caller->dialled_port;
	pair.translated = caller->translated;
	pair.second = kd_talk_key(&call.way, &pair.talk);
	key = pair.end[KD_ACCEL_CLIENT].cookie;
	bpf_map_delete_elem(&kd_accel_calls, &call);
	if (!kd_accel_enrol(ops, pair.end[KD_ACCEL_SERVER].cookie, key, KD_ACCEL_SERVER))
		return;
	if (bpf_map_update_elem(&kd_accel_pairs, &key, &pair, BPF_NOEXIST)) {
		kd_accel_count_way(KD_ACCEL_REFUSED, 0);
		return;
	}
	kd_accel_count_way(KD_ACCEL_PAIRED, 0);
	if (events)
		kd_accel_tell(&call.way, &pair);
}

static __always_inline void kd_accel_closed(struct bpf_sock_ops *ops)
{
	struct kd_accel_own *own = ops->sk ? bpf_sk_storage_get(&kd_accel_owns, ops->sk, NULL, 0) : NULL;
	__u64 key;

	if (!own)
		return;
	key = own->pair;
	bpf_map_delete_elem(&kd_accel_pairs, &key);
}

/* ---- messages ---- */

/* Those that translate the connection's packets learn that it is not idle. */
static __always_inline void kd_accel_seen(const struct kd_accel_pair *pair, __u32 now)
{
	struct kd_tuple way, answer;
	struct kd_ct *ct;

	if (!pair->translated)
		return;
	way = pair->second & 1 ? kd_reversed(&pair->talk) : pair->talk;
	answer = kd_reversed(&way);
	ct = kd_ct_find_untold(&answer);
	if (!ct)
		return;
	ct->last_seen = now;
	way = kd_reversed(&ct->to);
	ct = kd_ct_find_untold(&way);
	if (ct)
		ct->last_seen = now;
}

/*
 * Whether policies let the pair be, and nobody wants to read what it says. All of it is looked at some times a second,
 * and when a policy has changed; in between a look at both policies tells. Who is given another policy has his pairs
 * taken away by user space.
 */
static __always_inline bool kd_accel_allowed(const struct kd_accel_pair *pair, struct kd_accel_end *end)
{
	const __u32 moment = bpf_jiffies64() / KD_ACCEL_MOMENT;
	const bool judged = enforce && !pair->within;
	struct kd_talk *talk;
	__u32 now;

	if (end->asked == moment && (!judged || kd_held_still(&end->held)))
		return true;
	end->asked = 0;
	if (pair->second ? kd_accel_is_read(&pair->talk.dst, &pair->talk.src, pair->talk.sport) :
			   kd_accel_is_read(&pair->talk.src, &pair->talk.dst, pair->talk.dport))
		return false;
	now = kd_now();
	if (judged) {
		talk = bpf_map_lookup_elem(&kd_talks, &pair->talk);
		if (!talk || !kd_talk_holds(&pair->talk, talk, &end->held))
			return false;
		talk->last_seen = now;
	}
	kd_accel_seen(pair, now);
	end->asked = moment;
	return true;
}

/* What to do with a message from one end of a pair to the other. */
static __always_inline enum kd_accel_way kd_accel_choose(const struct kd_accel_pair *pair, struct kd_accel_end *end,
							 const struct kd_accel_end *peer)
{
	struct tcp_sock *tcp, *other;
	int unread;

	if (!kd_accel_allowed(pair, end))
		return KD_ACCEL_POLICY;
	tcp = bpf_rdonly_cast((void *)end->sock, bpf_core_type_id_kernel(struct tcp_sock));
	other = bpf_rdonly_cast((void *)peer->sock, bpf_core_type_id_kernel(struct tcp_sock));
	if ((__u64)other->inet_conn.icsk_inet.sk.__sk_common.skc_cookie.counter != peer->cookie ||
	    other->inet_conn.icsk_inet.sk.sk_shutdown & KD_RCV_SHUTDOWN ||
	    tcp->inet_conn.icsk_inet.sk.sk_shutdown & KD_SEND_SHUTDOWN)
		return KD_ACCEL_SHUT;
	if (other->rcv_nxt != tcp->write_seq || other->copied_seq != other->rcv_nxt)
		return KD_ACCEL_BEHIND;
	if (other->inet_conn.icsk_inet.sk.sk_rcvlowat > 1 || other->inet_conn.icsk_ulp_ops || tcp->inet_conn.icsk_ulp_ops)
		return KD_ACCEL_SPECIAL;
	unread = other->inet_conn.icsk_inet.sk.sk_backlog.rmem_alloc.counter;
	if (!unread)
		end->read = end->messages;
	if (2 * unread > other->inet_conn.icsk_inet.sk.sk_rcvbuf ||
	    (__u32)end->messages - end->read >= KD_ACCEL_MOST_UNREAD)
		return KD_ACCEL_FULL;
	return KD_ACCEL_HANDED;
}

/* A socket sends. */
static __always_inline int kd_accel_message(struct sk_msg_md *msg)
{
	struct kd_accel_own *own = bpf_sk_storage_get(&kd_accel_owns, msg->sk, NULL, 0);
	enum kd_accel_way way = KD_ACCEL_ALONE;
	struct kd_accel_end *end, *peer;
	struct kd_accel_pair *pair;
	__u64 key;

	if (!own)
		return SK_PASS;
	key = own->pair;
	pair = bpf_map_lookup_elem(&kd_accel_pairs, &key);
	if (pair) {
		end = &pair->end[own->end & KD_ACCEL_SERVER];
		peer = &pair->end[~own->end & KD_ACCEL_SERVER];
		way = kd_accel_choose(pair, end, peer);
		key = peer->cookie;
		if (way == KD_ACCEL_HANDED &&
		    bpf_msg_redirect_hash(msg, &kd_accel_socks, &key, BPF_F_INGRESS) != SK_PASS)
			way = KD_ACCEL_SHUT;
		if (way == KD_ACCEL_HANDED) {
			end->messages++;
			end->bytes += msg->size;
		} else {
			end->others++;
		}
	}
	kd_accel_count_way(way, msg->size);
	return SK_PASS;
}

#endif /* KD_ACCELERATION_H */
