/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The ports of new flows. A flow's answers are known by their tuple alone, so no two flows may have the same: where
 * the client's own port would give them that, the flow gets another one.
 *
 * The client's port is tried first, then some at random, then those of the range in turn, as far as one packet may
 * look; the next packet towards the same end goes on from there. As long as ports are free, a few steps lead to the next
 * one: those that were passed are taken. Taken is what another flow's answers come back to, unless that flow is over; and, if
 * the source is this node's, what one of its sockets uses. Of TCP that is a socket with the very four ends, of
 * UDP any that is bound to the port and could receive from there: it may send there yet. Sockets that come
 * later find the flow in their way themselves, see kd/own.h.
 *
 * SCTP keeps its port (see kd/packet.h) or is dropped.
 *
 * Looking at a port takes up to a microsecond, where memory is slow. So a packet looks at KD_PORTS_AT_ONCE of them, and
 * is dropped if none is free. When all have been looked at in vain, no other port than the source's own is tried for
 * sixteen times as long as that took: what is dropped costs little, and the CPU has time for others.
 *
 * A source that stays the client's keeps clear of the ports that the client's sockets choose by themselves.
 *
 * Reads and writes kd_conntrack and kd_exhausted; reads the sockets of the device's network namespace.
 */
#ifndef KD_PORTS_H
#define KD_PORTS_H

#include <stdbool.h>
#include <stddef.h>
#include <linux/bpf.h>
#include <linux/in.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include <kd/addr.h>
#include <kd/begun.h>
#include <kd/config.h>
#include <kd/conntrack.h>
#include <kd/node_socket.h>
#include <kd/types.h>
#include <kd/verdict.h>
#include <kd/maps/conntrack.h>
#include <kd/maps/losses.h>
#include <kd/maps/ports.h>

#define KD_PORT_PROBES 16
#define KD_PORTS_AT_ONCE 4096U
#define KD_PORTS_STRIDE 40503U /* odd, so that every number below a power of two comes before one comes again */
#define KD_PORTS_OF_CLIENTS_END 61000 /* Linux chooses below, unless it is told otherwise */

KD_CONFIG(__u16, port_min, "the first of the ports that sources are translated to") = 1024;
KD_CONFIG(__u16, port_max, "the last of them") = 65535;

/* Where a new flow's port is looked for. */
struct kd_ports {
	struct __sk_buff *skb;
	const struct kd_tuple *tuple; /* what the packet is */
	struct kd_ct original; /* what becomes of it, with the port that is tried */
	__u32 count;
	int result; /* KD_DROP_NO_PORT: none yet */
	__u32 next; /* where the search goes on */
	__u16 mask; /* all ones, and not below any number of a port */
	bool ours : 1; /* the source is an address of this node */
	bool keep : 1; /* the source's own port will do */
	bool tired : 1; /* that all are taken was found out a moment ago */
};

/* The entry of a reply; with `skb` of one to an address of this node. */
static __always_inline long kd_port_put(const struct __sk_buff *skb, const struct kd_tuple *reply,
					const struct kd_ct *ct, __u64 flags)
{
	return skb ? kd_begun_put_settled(reply, ct, flags) : kd_ct_put(reply, ct, flags);
}

/*
 * Make the entry of the reply direction, unless another flow holds its tuple, or with `skb` a socket. At first most
 * often none does: then it is tried without a look, as every look at a table of this size is a wait for memory.
 */
static __always_inline int kd_port_claim(struct __sk_buff *skb, const struct kd_tuple *tuple,
					 const struct kd_ct *original, bool first)
{
	struct kd_tuple opposite = kd_reversed(&original->to);
	struct kd_ct reply = kd_ct_answer(tuple, original);
	long failed = -KD_EEXIST;
	struct kd_ct *held;

	if (skb && kd_socket_uses(skb, &opposite))
		return KD_DROP_NO_PORT;
	if (first)
		failed = kd_port_put(skb, &opposite, &reply, BPF_NOEXIST);
	if (failed == -KD_EEXIST) {
		held = kd_ct_find_untold(&opposite);
		if (held && kd_ct_answers(held, tuple, original)) {
			if (held->last_seen && !(held->flags & KD_CT_ENDED) && !kd_ct_alone(held) &&
			    tuple->protocol != IPPROTO_TCP)
				kd_lost(KD_LOSS_FLOW);
		} else if (held && !kd_ct_evict(&opposite, held, original->last_seen)) {
			return KD_DROP_NO_PORT;
		}
		failed = kd_port_put(skb, &opposite, &reply, held ? BPF_ANY : BPF_NOEXIST);
		if (failed == -KD_EEXIST) /* another CPU was faster */
			return KD_DROP_NO_PORT;
	}
	return failed ? KD_DROP_NO_MEMORY : KD_CONTINUE;
}

/*
 * The reply direction, alone, of a new flow that leaves under an address of this node, if its own port is free there.
 * If not: KD_DROP_NO_PORT, and kd_ct_create() looks further.
 */
KD_SUBPROGRAM int kd_ct_begin(struct __sk_buff *skb, const struct kd_tuple *tuple, const struct kd_tuple *to)
{
	__u16 port = bpf_ntohs(to->sport);
	struct kd_tuple opposite = kd_reversed(to);
	struct kd_ct reply = {
		.to = kd_reversed(tuple),
		.packets = 1,
		.last_seen = kd_now(),
		.flags = KD_CT_REPLY | KD_CT_SOURCE | KD_CT_ALONE,
		.service = KD_NO_SERVICE,
	};
	long failed;

	if (port < port_min || port > port_max)
		return KD_DROP_NO_PORT;
	if (events)
		kd_ct_note_first(&reply);
	failed = kd_begun_put(skb, &opposite, &reply);
	if (failed == -KD_ENOSPC && kd_socket_uses(skb, &opposite))
		failed = -KD_EEXIST;
	if (failed == -KD_ENOSPC)
		failed = kd_begun_put_settled(&opposite, &reply, BPF_NOEXIST);
	if (events && failed)
		kd_ct_note_none();
	if (failed == -KD_EEXIST)
		return KD_DROP_NO_PORT;
	return failed ? KD_DROP_NO_MEMORY : KD_CONTINUE;
}

/* The original direction of a flow that kd_ct_begin() has made of an earlier packet; NULL: it was of another one. */
KD_SUBPROGRAM struct kd_ct *kd_ct_complete(const struct kd_tuple *tuple, const struct kd_tuple *to)
{
	struct kd_tuple opposite = kd_reversed(to);
	struct kd_ct *held = kd_ct_find_untold(&opposite);
	struct kd_ct original = { .to = *to, .flags = KD_CT_SOURCE, .service = KD_NO_SERVICE };

	if (!held && kd_begun_settle(&opposite) == KD_BEGUN_SETTLED)
		held = kd_ct_find_untold(&opposite);
	if (!held || !kd_ct_answers(held, tuple, &original))
		return NULL;
	if (!kd_ct_alone(held)) /* both were made a moment ago; or it was lost */
		return kd_ct_find_untold(tuple);
	original.told = held->told;
	original.tcp_flags = held->tcp_flags;
	kd_ct_put(tuple, &original, BPF_NOEXIST);
	return kd_ct_find_untold(tuple);
}

/* The other entry could not be made. */
KD_SUBPROGRAM void kd_port_release(const struct kd_ct *original)
{
	struct kd_tuple opposite = kd_reversed(&original->to);

	kd_ct_remove(&opposite);
}

/* Go on where an earlier packet has left off; false: that all are taken was found out a moment ago. */
static __always_inline bool kd_ports_resume(struct kd_ports *ports)
{
	struct kd_exhausted *found;

	ports->original.to.sport = 0; /* none is chosen yet, so its place is the key's */
	found = bpf_map_lookup_elem(&kd_exhausted, &ports->original.to);
	ports->next = found ? found->next : bpf_get_prandom_u32();
	ports->tired = found && found->until > bpf_ktime_get_ns();
	return !ports->tired;
}

/* Leave off after so many steps of the search. */
KD_SUBPROGRAM void kd_ports_leave(const struct kd_ports *ports, __u32 steps)
{
	bool none = KD_IS(ports->result, KD_DROP_NO_PORT);
	struct kd_tuple key = ports->original.to;
	struct kd_exhausted fresh = { .next = ports->next + steps };
	struct kd_exhausted *found;

	key.sport = 0;
	found = bpf_map_lookup_elem(&kd_exhausted, &key);
	if (!found) {
		bpf_map_update_elem(&kd_exhausted, &key, &fresh, BPF_NOEXIST);
		found = bpf_map_lookup_elem(&kd_exhausted, &key);
	}
	if (!found)
		return;
	if (none)
		__sync_fetch_and_add(&found->packets, 1);
	else
		found->in_vain = 0;
	if (found->next != fresh.next &&
	    __sync_val_compare_and_swap(&found->next, ports->next, fresh.next) != ports->next)
		return; /* another CPU has looked at the same ones */
	if (!none || !steps)
		return;
	if (__sync_fetch_and_add(&found->in_vain, steps) + steps > ports->mask) {
		found->in_vain = 0;
		found->until = bpf_ktime_get_ns() + ports->count * 16000ULL;
	}
}

static __always_inline __u32 kd_ports_first(bool ours)
{
	return ours ? port_min : KD_PORTS_OF_CLIENTS_END;
}

/*
 * One port: the source's own, then some by chance, then those of the search, in an order of their own: neighbours of
 * taken ports must not be the next to be taken, or searches grow long before ports run out.
 */
static long kd_port_step(__u64 step, struct kd_ports *ports)
{
	__u32 at;

	if (step == 1 && !kd_ports_resume(ports))
		return 1;
	if (step) {
		at = step > KD_PORT_PROBES ? ((ports->next + step) * KD_PORTS_STRIDE) & ports->mask :
					     bpf_get_prandom_u32() % ports->count;
		if (at >= ports->count)
			return 0;
		ports->original.to.sport = bpf_htons(kd_ports_first(ports->ours) + at);
	} else if (!ports->keep) {
		return 0;
	}
	/* A flow of no service would have got it already: kd_ct_begin(), and kd_own_begin(). */
	ports->result = kd_port_claim(ports->ours ? ports->skb : NULL, ports->tuple, &ports->original,
				      !step && ports->original.backend);
	return !KD_IS(ports->result, KD_DROP_NO_PORT);
}

/* The least number of all ones that is not below any of `count`. */
static __always_inline __u16 kd_ports_mask(__u32 count)
{
	__u32 mask = count - 1;

	mask |= mask >> 1;
	mask |= mask >> 2;
	mask |= mask >> 4;
	mask |= mask >> 8;
	return mask;
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
	__u32 steps;
	__u16 port;

	if (!tuple || !to)
		return KD_DROP_NO_MEMORY;
	port = bpf_ntohs(to->sport);
	ports.original.to = *to;
	if (events)
		kd_ct_note_first(&ports.original);
	ports.ours = flags & KD_CT_SOURCE || !kd_addr_equal(&to->src, &tuple->src);
	ports.count = (ports.ours ? port_max : 65535) - kd_ports_first(ports.ours) + 1;
	ports.mask = kd_ports_mask(ports.count);
	fixed = to->protocol == IPPROTO_SCTP;
	ports.keep = fixed || !ports.ours || (port >= port_min && port <= port_max);
	ports.result = KD_DROP_NO_PORT;
	steps = ports.mask < KD_PORTS_AT_ONCE ? ports.mask + 1U : KD_PORTS_AT_ONCE;
	steps = bpf_loop(fixed ? 1 : 1 + KD_PORT_PROBES + steps, kd_port_step, &ports, 0);
	if (steps > 1 + KD_PORT_PROBES || KD_IS(ports.result, KD_DROP_NO_PORT))
		kd_ports_leave(&ports, steps > 1 + KD_PORT_PROBES ? steps - 1 - KD_PORT_PROBES : 0);
	if (ports.result != KD_CONTINUE)
		return ports.result;
	if (kd_ct_put(tuple, &ports.original, BPF_ANY)) {
		kd_port_release(&ports.original);
		return KD_DROP_NO_MEMORY;
	}
	to->sport = ports.original.to.sport;
	return KD_CONTINUE;
}

#endif /* KD_PORTS_H */
