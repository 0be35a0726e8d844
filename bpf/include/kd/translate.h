/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Services, per packet: a packet of a known flow is rewritten as the flow says; the first packet to a
 * frontend begins a flow to one of the service's backends; everything else passes.
 *
 * A TCP segment to a frontend that is neither a SYN nor of a known flow: its flow was evicted, or is older
 * than this node's memory. It is taken up in the middle, as netfilter and so kube-proxy would: with Maglev it
 * meets its old backend again, and with random selection another one answers with RST, through the frontend,
 * so that the client learns at once what silence would tell it after many minutes. A RST is past help and
 * makes no flow, nor does a SYN-ACK, which a client never sends.
 *
 * Of a datagram in fragments the first has the ports; it is translated like any packet, and its ports are kept for
 * those that follow. One that comes before the first is dropped if it is for an address that belongs to services
 * only: nothing behind us could put the datagram together. Else it may be for the node, and is left alone: of a
 * service's datagram the stack meets no first fragment, and forgets it. A fragment begins no TCP flow, whose flags
 * it need not have.
 */
#ifndef KD_TRANSLATE_H
#define KD_TRANSLATE_H

#include <stdbool.h>
#include <stddef.h>
#include <linux/bpf.h>
#include <linux/in.h>
#include <linux/tcp.h>
#include <bpf/bpf_helpers.h>
#include <kd/begun.h>
#include <kd/config.h>
#include <kd/conntrack.h>
#include <kd/dns_rules.h>
#include <kd/echo.h>
#include <kd/forward.h>
#include <kd/icmp.h>
#include <kd/masq_rules.h>
#include <kd/packet.h>
#include <kd/passage.h>
#include <kd/ports.h>
#include <kd/reject.h>
#include <kd/rewrite.h>
#include <kd/service.h>
#include <kd/source.h>
#include <kd/types.h>
#include <kd/verdict.h>
#include <kd/maps/masquerade.h>

#define KD_LEAVES KD_TO_STACK /* of kd_flow_find(): on its way out, where it may be translated */

static __always_inline bool kd_can_begin(const struct kd_pkt *pkt)
{
	return pkt->tuple.protocol == IPPROTO_UDP || kd_is_syn(pkt) ||
	       (pkt->tcp_flags & (KD_TCP_SYN | KD_TCP_RST | KD_TCP_ACK)) == KD_TCP_ACK;
}

/* A flow was made of the packet. Was it not the first of its connection? */
static __always_inline void kd_flow_resumed(const struct kd_pkt *pkt)
{
	if (pkt->tuple.protocol == IPPROTO_TCP && !kd_is_syn(pkt))
		kd_lost(KD_LOSS_FLOW);
}

/* The backend for a packet that begins a flow. */
KD_SUBPROGRAM int kd_flow_choose(const struct kd_pkt *pkt, bool outside, struct kd_backend **backend,
				 __u32 *service)
{
	struct kd_tuple tuple = pkt->tuple;
	struct kd_frontend *frontend = kd_frontend_find(&tuple.dst, tuple.dport, tuple.protocol);
	struct kd_affinity_key client = { .client = tuple.src };
	__u32 number;

	if (!frontend || frontend->flags & KD_FRONTEND_LOOPBACK) { /* which no honest packet on a wire is for */
		KD_TRACE(KD_STEP_NO_FRONTEND, 0, 0, &tuple);
		return kd_frontend_missing(&tuple.dst);
	}
	KD_TRACE(KD_STEP_FRONTEND, frontend->kind | frontend->selection << 8, frontend->service, &tuple);
	if (!kd_lets_in(frontend, &tuple.src)) {
		KD_TRACE(KD_STEP_SOURCE, false, 0, &tuple);
		return KD_DROP_SOURCE;
	}
	if (!kd_can_begin(pkt))
		return KD_DROP_NO_FLOW;
	*service = frontend->service;
	if (frontend->affinity_timeout)
		tuple.sport = 0;
	KD_TRACE(KD_STEP_SCOPE, kd_scope_of(frontend, outside), outside, NULL);
	number = frontend->selection == KD_SELECT_MAGLEV ? kd_flow_hash(&tuple) : bpf_get_prandom_u32();
	return kd_backend_choose(frontend, kd_scope_of(frontend, outside), &client, number, backend);
}

static __always_inline int kd_flow_begin(struct __sk_buff *skb, const struct kd_pkt *pkt, bool outside,
					 struct kd_tuple *to)
{
	struct kd_backend *backend = NULL;
	__u32 service = KD_NO_SERVICE;
	int result;

	KD_TRACE(KD_STEP_NO_FLOW, 0, 0, NULL);
	if (masquerade && !outside)
		kd_begun_fetch(&pkt->tuple);
	result = kd_flow_choose(pkt, outside, &backend, &service);
	if (result != KD_CONTINUE)
		return result;
	*to = pkt->tuple;
	to->dst = backend->addr;
	to->dport = backend->port;
	KD_TRACE(KD_STEP_BACKEND, 0, backend->id, to);
	if (to->protocol == IPPROTO_SCTP && to->dport != pkt->tuple.dport)
		return KD_DROP_SCTP_PORT;
	result = kd_source(skb, skb->ifindex, pkt, outside, to);
	if (result == KD_CONTINUE) {
		KD_TRACE(KD_STEP_NAME, 0, 0, to);
		result = kd_ct_create(skb, &pkt->tuple, to, backend->id, service);
		KD_TRACE(KD_STEP_NEW_FLOW, result, 0, to);
	}
	if (result == KD_CONTINUE) {
		kd_backend_count(backend);
		kd_flow_resumed(pkt);
	}
	return result;
}

/* The packet belongs to a flow: what its entry says. */
static __always_inline int kd_flow_follow(const struct kd_pkt *pkt, struct kd_ct *ct, struct kd_tuple *to)
{
	*to = ct->to;
	KD_TRACE(KD_STEP_FLOW, ct->flags, ct->backend, to);
	kd_ct_touch(pkt, &pkt->tuple, ct);
	return KD_CONTINUE;
}

/* A fragment may end before TCP's checksum. */
static __always_inline bool kd_has_checksum(const struct kd_pkt *pkt)
{
	return pkt->tuple.protocol != IPPROTO_TCP ||
	       pkt->l4_off + offsetof(struct tcphdr, check) + sizeof(__sum16) <= pkt->end;
}

static __always_inline int kd_become(struct __sk_buff *skb, struct kd_pkt *pkt, const struct kd_tuple *to)
{
	if (pkt->fragment && !pkt->later) {
		if (!kd_has_checksum(pkt)) /* there may be bytes of the link where it would be */
			return KD_DROP_REWRITE;
		kd_fragment_keep(pkt);
	}
	return kd_rewrite(skb, pkt, to);
}

/*
 * A packet of a pod's flow that leaves under another address. If the routes name a device where that is so, it becomes
 * here already what to_uplink would make of it, and goes there at once: so it is parsed and looked up once.
 */
KD_SUBPROGRAM int kd_leave(struct __sk_buff *skb, struct kd_pkt *pkt, struct kd_ct *ct)
{
	struct bpf_fib_lookup fib = { .tot_len = kd_length(skb, pkt) };
	struct kd_tuple to = ct->to;
	int result;

	if (!redirect || pkt->ttl <= 1 ||
	    kd_route(skb, skb->ifindex, pkt, &fib) != BPF_FIB_LKUP_RET_SUCCESS ||
	    (skb->gso_size && !kd_fits(skb, fib.ifindex, pkt)) ||
	    !bpf_map_lookup_elem(&kd_masq_devices, &fib.ifindex))
		return KD_LEAVES;
	kd_ct_touch(pkt, &pkt->tuple, ct);
	result = kd_become(skb, pkt, &to);
	skb->tc_index = KD_MASQUERADED;
	return result == KD_CONTINUE ? kd_send(skb, pkt, &fib) : result;
}

/* What leaves at once has not been asked for as the rest is. */
static __always_inline int kd_leave_allowed(struct __sk_buff *skb, struct kd_pkt *pkt, struct kd_ct *ct)
{
	int allowed = enforce ? kd_policy(skb, pkt, &pkt->tuple, KD_ASK_SENDER) : KD_CONTINUE;

	return allowed == KD_CONTINUE ? kd_leave(skb, pkt, ct) : allowed;
}

/* What is back under its pod's address may be an answer through a service as well. */
static __always_inline int kd_flow_answer(const struct kd_pkt *pkt, struct kd_tuple *to)
{
	struct kd_ct *answer = NULL;

	if (!kd_addr_equal(&to->dst, &pkt->tuple.dst)) /* a pod's: a socket of the node has no service any more */
		answer = kd_ct_find(to);
	if (answer && (answer->flags & (KD_CT_REPLY | KD_CT_SOURCE)) == KD_CT_REPLY && !kd_ct_ended(answer)) {
		kd_ct_touch(pkt, to, answer);
		*to = answer->to;
		KD_TRACE(KD_STEP_FLOW, answer->flags, answer->backend, to);
	}
	return KD_CONTINUE;
}

/*
 * The packet belongs to a flow of which only the source is translated, where it leaves: until then it goes on as it
 * is, from a pod directly. What comes back may be an answer through a service as well.
 */
static __always_inline int kd_flow_follow_source(struct __sk_buff *skb, struct kd_pkt *pkt, struct kd_ct *ct,
						 bool outside, struct kd_tuple *to)
{
	if (!(ct->flags & KD_CT_REPLY)) {
		if (!outside)
			return masquerade ? kd_leave_allowed(skb, pkt, ct) : KD_LEAVES;
		kd_ct_touch(pkt, &pkt->tuple, ct);
		return KD_PASS;
	}
	kd_flow_follow(pkt, ct, to);
	return kd_flow_answer(pkt, to);
}

/* A later fragment whose first was not translated here. */
KD_SUBPROGRAM int kd_fragment_alone(const struct kd_pkt *pkt)
{
	return kd_is_of_services(&pkt->tuple.dst) ? KD_DROP_FRAGMENT : KD_PASS;
}

static __always_inline int kd_flow_find(struct __sk_buff *skb, struct kd_pkt *pkt, bool outside,
					struct kd_tuple *to)
{
	struct kd_ct *ct = kd_ct_find(&pkt->tuple);
	int found;

	if (masquerade && outside && !ct && pkt->tuple.protocol == IPPROTO_UDP) {
		/* What is told of answers is kept, and there is no room for it. */
		found = kd_begun_answer(&pkt->tuple, to, events);
		if (found == KD_BEGUN_READ) {
			pkt->reply = true;
			return kd_flow_answer(pkt, to);
		}
		ct = found == KD_BEGUN_SETTLED ? kd_ct_find_untold(&pkt->tuple) : NULL;
	}
	if (ct && kd_ct_over(pkt, ct)) {
		KD_TRACE(KD_STEP_OVER, 0, 0, &ct->to);
		kd_ct_forget(&pkt->tuple, ct);
		ct = NULL;
	}
	if (!ct && pkt->later) /* policies keep the ports of what nobody translates, too */
		return enforce ? kd_fragment_alone(pkt) : KD_DROP_FRAGMENT;
	pkt->reply = ct && ct->flags & KD_CT_REPLY;
	if (ct && ct->flags & KD_CT_SOURCE)
		return kd_flow_follow_source(skb, pkt, ct, outside, to);
	return ct ? kd_flow_follow(pkt, ct, to) : kd_flow_begin(skb, pkt, outside, to);
}

/* The answer to an echo request that has left under another address. */
KD_FUNCTION int kd_masq_echoed(struct __sk_buff *skb, struct kd_pkt *pkt)
{
	struct kd_tuple to;
	struct kd_ct *ct;

	if (!pkt || !kd_echo_parse(skb, pkt, false))
		return KD_PASS;
	ct = kd_ct_find(&pkt->tuple);
	if (!ct || !(ct->flags & KD_CT_REPLY))
		return KD_PASS;
	kd_flow_follow(pkt, ct, &to);
	if (kd_addr_equal(&to.dst, &pkt->tuple.dst) && to.dport == pkt->tuple.dport) /* the node's own */
		return KD_PASS;
	return kd_echo_become(skb, pkt, &to);
}

/*
 * A packet that comes in: whatever its flow or its destination asks for. `outside`: it is from no pod of this
 * node.
 */
static __always_inline int kd_translate(struct __sk_buff *skb, struct kd_pkt *pkt, bool outside)
{
	struct kd_tuple to;
	int result;

	KD_TRACE(KD_STEP_PACKET, pkt->tcp_flags, outside, &pkt->tuple);
	if (kd_is_icmp(pkt)) {
		result = kd_icmp_translate(skb, pkt);
		if (result != KD_PASS) /* an error about a flow that is known */
			return result;
		if (masquerade && outside)
			result = kd_masq_echoed(skb, pkt);
		return kd_let_through(skb, pkt, &pkt->tuple, outside, result);
	}
	if (pkt->later && !kd_fragment_find(pkt))
		return kd_let_whole(skb, pkt, outside, kd_fragment_alone(pkt));
	result = kd_flow_find(skb, pkt, outside, &to);
	result = kd_let_through(skb, pkt, result == KD_CONTINUE ? &to : &pkt->tuple, outside, result);
	if (result == KD_LEAVES)
		return KD_CONTINUE;
	if (masquerade && outside && result == KD_PASS)
		return kd_masq_note(skb, pkt);
	if (dns && result == KD_REJECT_NAME)
		return pkt->tuple.protocol == IPPROTO_TCP ? kd_dns_stream_refuse(skb, pkt) : kd_dns_refuse(skb, pkt);
	if (kd_is_reject(result))
		return kd_reject(skb, pkt, result);
	return result == KD_CONTINUE ? kd_become(skb, pkt, &to) : result;
}

#endif /* KD_TRANSLATE_H */
