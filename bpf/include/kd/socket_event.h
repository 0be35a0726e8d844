/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * What is told of calls of sockets: that they were translated, or refused. A program here may be interrupted by others,
 * and by packets, so nothing is noted on the way: the event is written at once.
 */
#ifndef KD_SOCKET_EVENT_H
#define KD_SOCKET_EVENT_H

#include <stdbool.h>
#include <linux/bpf.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include <kd/addr.h>
#include <kd/event.h>
#include <kd/event_types.h>
#include <kd/scene.h>
#include <kd/types.h>
#include <kd/verdict.h>
#include <kd/maps/events.h>
#include <kd/maps/sockets.h>

/* Who calls, as far as its socket knows before it has a connection. */
static __always_inline void kd_event_caller(struct bpf_sock_addr *ctx, struct kd_event *event)
{
	struct bpf_sock *socket = ctx->sk;

	event->cookie = bpf_get_socket_cookie(ctx);
	event->cgroup = bpf_get_current_cgroup_id();
	event->netns = bpf_get_netns_cookie(ctx);
	if (socket && socket->src_ip4)
		kd_addr_set_v4(&event->source, socket->src_ip4);
	if (socket && event->source.w[3])
		event->source_port = bpf_htons(socket->src_port);
}

/* The socket has been translated, to what `event` says: so it was this that it had dialled. */
static __always_inline void kd_event_dialled(struct bpf_sock_addr *ctx, struct kd_event *event)
{
	struct kd_sock *sock = ctx->sk ? bpf_sk_storage_get(&kd_sock, ctx->sk, NULL, 0) : NULL;

	if (!sock || sock->backend_port != event->destination_port ||
	    !kd_addr_equal(&sock->backend_addr, &event->destination))
		return;
	event->dialled = sock->frontend_addr;
	event->dialled_port = sock->frontend_port;
}

/* A call has ended; `addr` and `port` are where it goes now. */
KD_FUNCTION int kd_event_socket(struct bpf_sock_addr *ctx, const struct kd_addr *addr, __u32 port, int result,
				__u32 point)
{
	struct kd_telling *telling = bpf_map_lookup_elem(&kd_telling, (const void *)&kd_scene_first);
	struct kd_event_setup *setup = kd_event_setup_now();
	struct kd_event *event;
	bool refused = result < 0 || kd_is_reject(result);

	if (!addr || !setup || !telling || setup->level < (refused ? KD_EVENTS_DROPS : KD_EVENTS_AGGREGATED))
		return 0;
	event = bpf_ringbuf_reserve(&kd_events, sizeof(*event), 0);
	if (!event) {
		telling->full++;
		return 0;
	}
	__builtin_memset(event, 0, sizeof(*event));
	event->time = bpf_ktime_get_ns();
	event->result = result;
	event->point = point;
	event->destination = *addr;
	event->destination_port = port;
	event->protocol = ctx->protocol;
	event->cpu = bpf_get_smp_processor_id();
	event->flags = kd_is_v4(addr) ? 0 : KD_EVENT_IPV6;
	event->state = KD_STATE_NEW;
	kd_event_caller(ctx, event);
	if (result == KD_AT_SOCKET)
		kd_event_dialled(ctx, event);
	kd_event_party(&event->source, &event->source_identity, &event->source_device);
	kd_event_party(&event->destination, &event->destination_identity, &event->destination_device);
	kd_event_end(event, setup, telling);
	return 0;
}

#endif /* KD_SOCKET_EVENT_H */
