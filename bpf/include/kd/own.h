/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * What the node's own stack sends: to pods, and out of its uplinks.
 *
 * It may be an answer, or an error about one, of a backend on the node itself: translated as the flow says.
 *
 * Or a socket of the node begins to use a port that a flow of somebody else has already been given under the node's
 * address. Both would get each other's answers, so the socket's flow is given another port on the wire, which
 * its socket never sees. If the other flow is over, it is forgotten instead. TCP is looked at so when it begins.
 * Echo requests have numbers for ports (kd/echo.h), but no sockets that others could be kept clear of: where pods leave
 * under the node's address, they are flows from the first on.
 *
 * Segments of TCP cost one lookup, a SYN and a datagram two. Reads and writes kd_conntrack; reads kd_masq_devices.
 */
#ifndef KD_OWN_H
#define KD_OWN_H

#include <stdbool.h>
#include <linux/bpf.h>
#include <linux/in.h>
#include <bpf/bpf_helpers.h>
#include <kd/begun.h>
#include <kd/config.h>
#include <kd/conntrack.h>
#include <kd/echo.h>
#include <kd/icmp.h>
#include <kd/packet.h>
#include <kd/ports.h>
#include <kd/translate.h>
#include <kd/types.h>
#include <kd/verdict.h>
#include <kd/maps/conntrack.h>
#include <kd/maps/masquerade.h>

/* Whether a flow of somebody else has the answers to a new flow of the node; one that is over has no more. */
KD_SUBPROGRAM bool kd_own_held(const struct kd_pkt *pkt)
{
	struct kd_tuple opposite = kd_reversed(&pkt->tuple);
	struct kd_ct *held = kd_ct_find(&opposite);
	int found;

	if (masquerade && !held) {
		found = kd_begun_settle(&opposite);
		if (found == KD_BEGUN_BUSY)
			return true;
		held = found == KD_BEGUN_SETTLED ? kd_ct_find_untold(&opposite) : NULL;
	}
	if (!held || !(held->flags & KD_CT_REPLY))
		return false;
	if (!kd_ct_evict(&opposite, held, kd_now()))
		return true;
	kd_ct_remove(&opposite);
	return false;
}

static __always_inline int kd_own_begin(struct __sk_buff *skb, const struct kd_pkt *pkt, struct kd_tuple *to)
{
	int result;

	if (!kd_is_icmp(pkt) && !kd_own_held(pkt))
		return KD_PASS;
	*to = pkt->tuple;
	result = kd_ct_create(skb, &pkt->tuple, to, 0, KD_NO_SERVICE);
	KD_TRACE(KD_STEP_HELD, result, 0, to);
	return result;
}

/* Whether it is an echo request of the node, out of a device where those of pods have its address. */
KD_SUBPROGRAM bool kd_own_asks_echo(struct __sk_buff *skb, struct kd_pkt *pkt)
{
	__u32 ifindex = skb->ifindex;

	return !skb->ingress_ifindex && bpf_map_lookup_elem(&kd_masq_devices, &ifindex) &&
	       kd_echo_parse(skb, pkt, true);
}

static __always_inline int kd_own_become(struct __sk_buff *skb, struct kd_pkt *pkt, const struct kd_tuple *to)
{
	if (!kd_is_icmp(pkt))
		return kd_become(skb, pkt, to);
	return to->sport == pkt->tuple.sport ? KD_PASS : kd_echo_become(skb, pkt, to);
}

/*
 * A packet on its last step, from the stack. Of those that the node only forwards, answers alone can still need
 * translation, which came in through a device without a program.
 */
static __always_inline int kd_translate_out(struct __sk_buff *skb, struct kd_pkt *pkt)
{
	bool own = !skb->ingress_ifindex;
	int result = KD_CONTINUE;
	struct kd_tuple to;
	struct kd_ct *ct;

	KD_TRACE(KD_STEP_PACKET, pkt->tcp_flags, false, &pkt->tuple);
	if (kd_is_icmp(pkt)) {
		result = kd_icmp_translate_error(skb, pkt);
		if (!masquerade || result != KD_PASS || !kd_own_asks_echo(skb, pkt))
			return result;
		result = KD_CONTINUE;
	}
	if (pkt->later && !kd_fragment_find(pkt))
		return KD_PASS;
	ct = kd_ct_find(&pkt->tuple);
	if (!ct)
		KD_TRACE(KD_STEP_NO_FLOW, 0, 0, NULL);
	if (ct && !(ct->flags & (KD_CT_REPLY | (own ? KD_CT_SOURCE : 0))))
		return KD_PASS;
	if (ct && kd_ct_over(pkt, ct)) {
		if (ct->flags & KD_CT_REPLY)
			return KD_PASS;
		kd_ct_forget(&pkt->tuple, ct);
		ct = NULL;
	}
	if (ct)
		result = kd_flow_follow(pkt, ct, &to);
	else if (!own || pkt->later || (pkt->tuple.protocol == IPPROTO_TCP && !kd_is_syn(pkt)))
		return KD_PASS;
	else
		result = kd_own_begin(skb, pkt, &to);
	return result == KD_CONTINUE ? kd_own_become(skb, pkt, &to) : result;
}

#endif /* KD_OWN_H */
