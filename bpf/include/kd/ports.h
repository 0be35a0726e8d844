/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The ports of new flows. A flow's answers are known by their tuple alone, so no two flows may have the same: where
 * the client's own port would give them that, the flow gets another one.
 *
 * The client's port is tried first, then some at random, then every one of the range in turn: a packet is dropped
 * only when all are taken. Taken is what another flow's answers come back to, unless that flow is over; and, if
 * the source is this node's, what one of its sockets uses. Of TCP that is a socket with the very four ends, of
 * UDP any that is bound to the port and could receive from there: it may send there yet. Sockets that come
 * later find the flow in their way themselves, see kd/own.h.
 *
 * SCTP keeps its port (see kd/packet.h) or is dropped.
 *
 * A source that stays the client's keeps clear of the ports that the client's sockets choose by themselves.
 *
 * Reads and writes kd_conntrack; reads the sockets of the device's network namespace.
 */
#ifndef KD_PORTS_H
#define KD_PORTS_H

#include <stdbool.h>
#include <linux/bpf.h>
#include <linux/in.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include <kd/addr.h>
#include <kd/config.h>
#include <kd/conntrack.h>
#include <kd/types.h>
#include <kd/verdict.h>
#include <kd/maps/conntrack.h>

#define KD_EEXIST 17
#define KD_PORT_PROBES 16
#define KD_PORTS_OF_CLIENTS_END 61000 /* Linux chooses below, unless it is told otherwise */

KD_CONFIG(__u16, port_min, "the first of the ports that sources are translated to") = 1024;
KD_CONFIG(__u16, port_max, "the last of them") = 65535;

/* Where a new flow's port is looked for. */
struct kd_ports {
	struct __sk_buff *skb;
	const struct kd_tuple *tuple; /* what the packet is */
	struct kd_ct original; /* what becomes of it, with the port that is tried */
	__u32 first;
	__u32 count;
	__u32 start; /* where the search in turn begins */
	int result; /* KD_DROP_NO_PORT: none yet */
	bool ours; /* the source is an address of this node */
	bool keep; /* the source's own port will do */
};

static __always_inline bool kd_is_v4(const struct kd_addr *addr)
{
	return !(addr->w[0] | addr->w[1]) && addr->w[2] == bpf_htonl(0xffff);
}

/* Whether a socket of this node has a claim to what is sent back to `to`. */
KD_SUBPROGRAM bool kd_socket_uses(struct __sk_buff *skb, const struct kd_tuple *to)
{
	struct bpf_sock_tuple ends = {};
	__u32 size = sizeof(ends.ipv6);
	struct bpf_sock *sock;
	bool uses;

	if (kd_is_v4(&to->src)) {
		ends.ipv4.saddr = to->dst.w[3];
		ends.ipv4.daddr = to->src.w[3];
		ends.ipv4.sport = to->dport;
		ends.ipv4.dport = to->sport;
		size = sizeof(ends.ipv4);
	} else {
		__builtin_memcpy(ends.ipv6.saddr, &to->dst, sizeof(to->dst));
		__builtin_memcpy(ends.ipv6.daddr, &to->src, sizeof(to->src));
		ends.ipv6.sport = to->dport;
		ends.ipv6.dport = to->sport;
	}
	if (to->protocol == IPPROTO_UDP) {
		sock = bpf_sk_lookup_udp(skb, &ends, size, BPF_F_CURRENT_NETNS, 0);
		if (!sock)
			return false;
		bpf_sk_release(sock);
		return true;
	}
	if (to->protocol != IPPROTO_TCP)
		return false;
	sock = bpf_skc_lookup_tcp(skb, &ends, size, BPF_F_CURRENT_NETNS, 0);
	if (!sock)
		return false;
	uses = sock->state != BPF_TCP_LISTEN;
	bpf_sk_release(sock);
	return uses;
}

/*
 * Make the entry of the reply direction, unless another flow holds its tuple. Most often none does: that is tried
 * first, as every look at a table of this size is a wait for memory.
 */
static __always_inline int kd_port_claim(const struct kd_tuple *tuple, const struct kd_ct *original)
{
	struct kd_tuple opposite = kd_reversed(&original->to);
	struct kd_ct reply = kd_ct_answer(tuple, original);
	long failed = kd_ct_put(&opposite, &reply, BPF_NOEXIST);
	struct kd_ct *held;

	if (failed == -KD_EEXIST) {
		held = kd_ct_find_untold(&opposite);
		if (held && !kd_ct_answers(held, tuple, original) &&
		    !kd_ct_evict(&opposite, held, original->last_seen))
			return KD_DROP_NO_PORT;
		failed = kd_ct_put(&opposite, &reply, BPF_ANY);
	}
	return failed ? KD_DROP_NO_MEMORY : KD_CONTINUE;
}

/* One port: the source's own, then some by chance, then one after the other. */
static long kd_port_step(__u64 step, struct kd_ports *ports)
{
	__u32 at = step > KD_PORT_PROBES ? ports->start + step : bpf_get_prandom_u32();

	if (step)
		ports->original.to.sport = bpf_htons(ports->first + at % ports->count);
	else if (!ports->keep)
		return 0;
	if (ports->ours && kd_socket_uses(ports->skb, &ports->original.to))
		return 0;
	ports->result = kd_port_claim(ports->tuple, &ports->original);
	return ports->result != KD_DROP_NO_PORT;
}

/*
 * Both entries of a new flow that becomes `to`, or none: with the source's own port if it is free, else with
 * another, which `to` has then. A flow of no service has no backend: 0.
 */
KD_FUNCTION int kd_ct_create(struct __sk_buff *skb, const struct kd_tuple *tuple, struct kd_tuple *to,
			     __u32 backend, __u32 service)
{
	__u32 flags = backend ? 0 : KD_CT_SOURCE;
	struct kd_ports ports = {
		.skb = skb,
		.tuple = tuple,
		.original = {
			.backend = backend,
			.service = service,
			.packets = 1,
			.last_seen = kd_now(),
			.flags = flags,
		},
	};
	bool fixed;
	__u16 port;

	if (!tuple || !to)
		return KD_DROP_NO_MEMORY;
	port = bpf_ntohs(to->sport);
	ports.original.to = *to;
	ports.ours = flags & KD_CT_SOURCE || !kd_addr_equal(&to->src, &tuple->src);
	ports.first = ports.ours ? port_min : KD_PORTS_OF_CLIENTS_END;
	ports.count = (ports.ours ? port_max : 65535) - ports.first + 1;
	ports.start = bpf_get_prandom_u32() >> 1;
	fixed = to->protocol == IPPROTO_SCTP;
	ports.keep = fixed || !ports.ours || (port >= port_min && port <= port_max);
	ports.result = KD_DROP_NO_PORT;
	bpf_loop(fixed ? 1 : 1 + KD_PORT_PROBES + ports.count, kd_port_step, &ports, 0);
	if (ports.result != KD_CONTINUE)
		return ports.result;
	if (kd_ct_put(tuple, &ports.original, BPF_ANY)) {
		*to = kd_reversed(&ports.original.to);
		kd_ct_remove(to);
		return KD_DROP_NO_MEMORY;
	}
	to->sport = ports.original.to.sport;
	return KD_CONTINUE;
}

#endif /* KD_PORTS_H */
