/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Services at the socket: the address that a process dials is exchanged for a backend's before there is a
 * packet, and the backend's for the dialled one where the process sees its peer again. Costs nothing per
 * packet.
 *
 * connect() and sendmsg() choose (a socket has no flow hash yet, so instead of Maglev at random; with affinity,
 * the same for all processes of a network namespace), recvmsg() and getpeername() translate back. Reads the
 * service maps; a socket's translation is kept in kd_sock, and in kd_sock_reply are those of an unconnected UDP
 * socket before its latest, for the replies still to come.
 *
 * Every network namespace has a loopback address of its own: a frontend there is the node's, for its processes
 * alone. Nor may they bind a port that is a node port at the same address, since nobody would reach them. On
 * demand only its sockets are balanced: those of pods stay connected to what they have dialled, as a proxy
 * beside them, or a guest of a virtual machine, has to see it, and their packets are balanced at the device.
 *
 * A socket's source is chosen after its destination. So frontends for some sources only are settled here for
 * the node itself, as a whole: it is let in if one of its addresses is. Packets of all others are looked at on
 * their way through a pod's device.
 *
 * Every function takes both families: an IPv4 address in an IPv6 socket is mapped, as all IPv4 is here. `v6`
 * tells which fields of the context the hook may touch and is a constant of the hook.
 */
#ifndef KD_SOCKET_H
#define KD_SOCKET_H

#include <stdbool.h>
#include <linux/bpf.h>
#include <linux/in.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include <kd/addr.h>
#include <kd/config.h>
#include <kd/service.h>
#include <kd/socket_event.h>
#include <kd/types.h>
#include <kd/verdict.h>
#include <kd/maps/sockets.h>

KD_CONFIG(__u64, node_netns, "cookie of the node's own network namespace; 0: none is") = 0;
KD_CONFIG(bool, pod_sockets, "balance sockets of other network namespaces than the node's own too") = true;

#define KD_ENOMEM 12
#define KD_EADDRINUSE 98
#define KD_ECONNREFUSED 111
#define KD_EHOSTUNREACH 113

static __always_inline struct kd_addr kd_sock_addr(const struct bpf_sock_addr *ctx, bool v6)
{
	struct kd_addr addr;

	if (v6) {
		addr.w[0] = ctx->user_ip6[0];
		addr.w[1] = ctx->user_ip6[1];
		addr.w[2] = ctx->user_ip6[2];
		addr.w[3] = ctx->user_ip6[3];
	} else {
		kd_addr_set_v4(&addr, ctx->user_ip4);
	}
	return addr;
}

static __always_inline __be16 kd_sock_port(const struct bpf_sock_addr *ctx)
{
	return ctx->user_port;
}

static __always_inline void kd_sock_write(struct bpf_sock_addr *ctx, bool v6, const struct kd_addr *addr,
					  __be16 port)
{
	if (v6) {
		ctx->user_ip6[0] = addr->w[0];
		ctx->user_ip6[1] = addr->w[1];
		ctx->user_ip6[2] = addr->w[2];
		ctx->user_ip6[3] = addr->w[3];
	} else {
		ctx->user_ip4 = addr->w[3];
	}
	ctx->user_port = port;
}

static __always_inline bool kd_sock_of_node(struct bpf_sock_addr *ctx)
{
	return node_netns && bpf_get_netns_cookie(ctx) == node_netns;
}

static __always_inline bool kd_sock_is_balanced(struct bpf_sock_addr *ctx)
{
	return pod_sockets || kd_sock_of_node(ctx);
}

/* What the process dials, if that is a frontend to it. */
static __always_inline struct kd_frontend *kd_sock_frontend(struct bpf_sock_addr *ctx,
							    const struct kd_addr *addr, __be16 port)
{
	struct kd_frontend *frontend = kd_frontend_find(addr, port, ctx->protocol);

	if (frontend && frontend->flags & KD_FRONTEND_LOOPBACK && !kd_sock_of_node(ctx))
		return NULL;
	return frontend;
}

static __always_inline bool kd_sock_dialled(const struct kd_sock *sock, const struct kd_addr *addr,
					    __be16 port)
{
	return sock->frontend_port == port && kd_addr_equal(&sock->frontend_addr, addr);
}

/* The socket moves on to another translation; replies to the one it had still find their way back. */
static __always_inline void kd_sock_keep_reply(struct bpf_sock_addr *ctx, const struct kd_sock *sock)
{
	struct kd_sock_reply_key key = {
		.cookie = bpf_get_socket_cookie(ctx),
		.backend_addr = sock->backend_addr,
		.backend_port = sock->backend_port,
	};
	struct kd_sock_reply reply = {
		.frontend_addr = sock->frontend_addr,
		.frontend_port = sock->frontend_port,
	};

	bpf_map_update_elem(&kd_sock_reply, &key, &reply, BPF_ANY);
}

/* Exchange the dialled address for that of a backend chosen now. */
static __always_inline int kd_sock_choose(struct bpf_sock_addr *ctx, bool v6, struct kd_frontend *frontend,
					  bool keep_reply)
{
	struct kd_affinity_key client = { .netns = 1 };
	__u64 netns = frontend->affinity_timeout ? bpf_get_netns_cookie(ctx) : 0;
	struct kd_backend *backend;
	struct kd_sock *sock;
	int result;

	__builtin_memcpy(&client.client, &netns, sizeof(netns));
	result = kd_backend_choose(frontend, kd_scope_of(frontend, false), &client, bpf_get_prandom_u32(),
				   &backend);
	if (result != KD_CONTINUE)
		return result;
	sock = bpf_sk_storage_get(&kd_sock, ctx->sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);
	if (!sock)
		return KD_DROP_NO_MEMORY;
	if (keep_reply && sock->backend_port)
		kd_sock_keep_reply(ctx, sock);
	sock->frontend_addr = kd_sock_addr(ctx, v6);
	sock->frontend_port = kd_sock_port(ctx);
	sock->backend_addr = backend->addr;
	sock->backend_port = backend->port;
	sock->backend = backend->id;
	sock->service = frontend->service;
	kd_sock_write(ctx, v6, &backend->addr, backend->port);
	kd_backend_count(backend);
	return KD_AT_SOCKET;
}

/*
 * Whether to choose a backend (KD_CONTINUE), as far as the frontend is for some sources only. In kd_sources the
 * node goes by an address that nothing is sent from: that of all nodes on a link.
 */
static __always_inline int kd_sock_let_in(struct bpf_sock_addr *ctx, const struct kd_frontend *frontend)
{
	const struct kd_addr node = { .w = { bpf_htonl(0xff020000), 0, 0, bpf_htonl(1) } };

	if (!kd_has_sources(frontend))
		return KD_CONTINUE;
	if (!kd_sock_of_node(ctx))
		return KD_PASS;
	return kd_lets_in(frontend, &node) ? KD_CONTINUE : KD_DROP_SOURCE;
}

static __always_inline int kd_sock_connect(struct bpf_sock_addr *ctx, bool v6)
{
	struct kd_addr addr = kd_sock_addr(ctx, v6);
	struct kd_frontend *frontend = kd_sock_frontend(ctx, &addr, kd_sock_port(ctx));
	int result = KD_PASS;

	if (kd_sock_is_balanced(ctx))
		result = frontend ? kd_sock_let_in(ctx, frontend) : kd_frontend_missing(&addr);
	if (frontend && result == KD_CONTINUE)
		return kd_sock_choose(ctx, v6, frontend, false);
	/* From here on its peer is what it dials, whatever it dialled before. */
	bpf_sk_storage_delete(&kd_sock, ctx->sk);
	return result;
}

static __always_inline int kd_sock_sendmsg(struct bpf_sock_addr *ctx, bool v6)
{
	struct kd_addr addr = kd_sock_addr(ctx, v6);
	__be16 port = kd_sock_port(ctx);
	struct kd_frontend *frontend = kd_sock_frontend(ctx, &addr, port);
	struct kd_sock *sock;
	int result;

	if (!kd_sock_is_balanced(ctx))
		return KD_PASS;
	if (!frontend)
		return kd_frontend_missing(&addr);
	result = kd_sock_let_in(ctx, frontend);
	if (result != KD_CONTINUE)
		return result;
	sock = bpf_sk_storage_get(&kd_sock, ctx->sk, NULL, 0);
	if (!sock || !kd_sock_dialled(sock, &addr, port) || sock->service != frontend->service ||
	    !kd_backend_stays(sock->backend))
		return kd_sock_choose(ctx, v6, frontend, true);
	kd_sock_write(ctx, v6, &sock->backend_addr, sock->backend_port);
	return KD_PASS;
}

/* A peer is shown: if it is the socket's backend, show what the process dialled. */
static __always_inline void kd_sock_translate_back(struct bpf_sock_addr *ctx, bool v6, bool look_further)
{
	struct kd_sock *sock = bpf_sk_storage_get(&kd_sock, ctx->sk, NULL, 0);
	struct kd_sock_reply_key key = {};
	struct kd_sock_reply *reply;

	if (!sock)
		return;
	key.backend_addr = kd_sock_addr(ctx, v6);
	key.backend_port = kd_sock_port(ctx);
	if (sock->backend_port == key.backend_port && kd_addr_equal(&sock->backend_addr, &key.backend_addr)) {
		kd_sock_write(ctx, v6, &sock->frontend_addr, sock->frontend_port);
		return;
	}
	if (!look_further)
		return;
	key.cookie = bpf_get_socket_cookie(ctx);
	reply = bpf_map_lookup_elem(&kd_sock_reply, &key);
	if (reply)
		kd_sock_write(ctx, v6, &reply->frontend_addr, reply->frontend_port);
}

static __always_inline bool kd_is_node_port(const struct kd_addr *addr, __be16 port, __u8 protocol)
{
	struct kd_frontend *frontend = kd_frontend_find(addr, port, protocol);

	return frontend && frontend->kind == KD_NODE_PORT;
}

/*
 * Whether a process of the node may have an address and port. One that asks for all addresses is reached at the
 * others where node ports are at some. Those that are at all are at the loopback address too, which tells.
 */
static __always_inline int kd_sock_bind(struct bpf_sock_addr *ctx, bool v6)
{
	const struct kd_addr any = {}, loopback = { .w[3] = bpf_htonl(1) };
	struct kd_addr addr = kd_sock_addr(ctx, v6), any_v4, loopback_v4;
	__be16 port = kd_sock_port(ctx);
	bool taken;

	if (!port || !kd_sock_of_node(ctx)) /* port 0: the kernel is to find one */
		return KD_PASS;
	kd_addr_set_v4(&any_v4, 0);
	kd_addr_set_v4(&loopback_v4, bpf_htonl(INADDR_LOOPBACK));
	if (kd_addr_equal(&addr, &any)) /* IPv4 included, if the socket does not decline */
		taken = kd_is_node_port(&loopback, port, ctx->protocol) ||
			kd_is_node_port(&loopback_v4, port, ctx->protocol);
	else if (kd_addr_equal(&addr, &any_v4))
		taken = kd_is_node_port(&loopback_v4, port, ctx->protocol);
	else
		taken = kd_is_node_port(&addr, port, ctx->protocol);
	return taken ? KD_DROP_NODE_PORT : KD_PASS;
}

static __always_inline void kd_tell_socket(struct bpf_sock_addr *ctx, bool v6, int result, enum kd_point point)
{
	struct kd_addr addr;

	kd_count(result, 0);
	if (!events)
		return;
	addr = kd_sock_addr(ctx, v6);
	kd_event_socket(ctx, &addr, kd_sock_port(ctx), result, point);
}

/*
 * The end of connect() and sendmsg(): a failure is the system call's, at once, not a time-out later. What a
 * packet's client would be told is a refusal; what would be dropped in silence is a host that is not reached.
 */
static __always_inline int kd_finish_socket(struct bpf_sock_addr *ctx, bool v6, int result, enum kd_point point)
{
	if (result != KD_PASS)
		kd_tell_socket(ctx, v6, result, point);
	if (kd_is_reject(result))
		bpf_set_retval(-KD_ECONNREFUSED);
	else if (result < 0)
		bpf_set_retval(KD_IS(result, KD_DROP_NO_MEMORY) ? -KD_ENOMEM : -KD_EHOSTUNREACH);
	return result >= 0 && !kd_is_reject(result);
}

/* The end of bind(). */
static __always_inline int kd_finish_bind(struct bpf_sock_addr *ctx, bool v6, int result)
{
	if (!KD_IS(result, KD_DROP_NODE_PORT))
		return 1;
	kd_tell_socket(ctx, v6, result, KD_BIND);
	bpf_set_retval(-KD_EADDRINUSE);
	return 0;
}

#endif /* KD_SOCKET_H */
