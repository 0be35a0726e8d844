/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Pods that talk to the world: who does not know the pods' addresses sees one of the node's.
 *
 * Decided on the way out of an uplink, where the route has been chosen, for what a pod of this node sends through
 * a device in kd_masq_devices:
 *
 *  1. A destination in kd_masq_rules knows pods: other pods, nodes, networks with routes to them.
 *  2. An answer to who has dialled the pod by its own address goes on as it is. Such flows are noted as they come in.
 *  3. A source in kd_masq_rules keeps its address, or has one of its own.
 *  4. What is to a port in kd_masq_rules netfilter should have given another source before: it is dropped.
 *  5. All else gets the device's address of its family, and a port as kd/ports.h finds one. Where there is no
 *     address, or no port, the packet is dropped: it never leaves as it is.
 *
 * Such a flow is in kd_conntrack as every other, with KD_CT_SOURCE. What comes back is translated as it comes in; of a
 * flow that a service has led out, for the service as well. Flows whose entries are lost are taken up in the middle
 * under the ports they had, if these are free; connections that a rule has left as they were go on so for a while after
 * it was taken back.
 *
 * Here are the first packets of flows. Those that follow them from_pod changes itself, and sends them past the node's
 * stack (kd_leave() in kd/translate.h); where it cannot, they come here as well.
 *
 * Protocols other than TCP, UDP, SCTP and echo are left to netfilter.
 *
 * Reads kd_masq_devices, kd_masq_rules, kd_masq_empty and kd_endpoints; reads and writes kd_conntrack.
 */
#ifndef KD_MASQUERADE_H
#define KD_MASQUERADE_H

#include <stdbool.h>
#include <linux/bpf.h>
#include <linux/in.h>
#include <bpf/bpf_helpers.h>
#include <kd/addr.h>
#include <kd/config.h>
#include <kd/conntrack.h>
#include <kd/echo.h>
#include <kd/masq_rules.h>
#include <kd/packet.h>
#include <kd/ports.h>
#include <kd/translate.h>
#include <kd/types.h>
#include <kd/verdict.h>
#include <kd/maps/conntrack.h>
#include <kd/maps/endpoints.h>
#include <kd/maps/masquerade.h>

static __always_inline bool kd_is_unset(const struct kd_addr *addr)
{
	return !(addr->w[0] | addr->w[1] | addr->w[2] | addr->w[3]);
}

/* Under which address a new flow leaves: KD_PASS, its own; KD_CONTINUE, that which `to` has then. */
KD_SUBPROGRAM int kd_masq_choose(const struct kd_pkt *pkt, const struct kd_masq_device *device, struct kd_tuple *to)
{
	const struct kd_addr *found = pkt->ipv6 ? &device->ipv6 : &device->ipv4;
	struct kd_masq_rule *rule;

	if (kd_masq_rule_now(KD_MASQ_DESTINATION, &pkt->tuple.dst)) {
		KD_TRACE(KD_STEP_LEFT, KD_LEFT_KNOWN, 0, NULL);
		return KD_PASS;
	}
	rule = kd_masq_rule_now(KD_MASQ_SOURCE, &pkt->tuple.src);
	if (rule) {
		if (kd_is_unset(&rule->leaves_as)) {
			KD_TRACE(KD_STEP_LEFT, KD_LEFT_KEEPS, 0, NULL);
			return KD_PASS;
		}
		found = &rule->leaves_as;
	}
	if (kd_is_unset(found))
		return KD_DROP_NO_SOURCE;
	if (kd_masq_left_alone(&pkt->tuple))
		return KD_DROP_LEFT_ALONE;
	*to = pkt->tuple;
	to->src = *found;
	KD_TRACE(KD_STEP_NAME, 0, 0, to);
	return KD_CONTINUE;
}

static __always_inline int kd_masq_begin(struct __sk_buff *skb, const struct kd_pkt *pkt,
					 const struct kd_masq_device *device, struct kd_tuple *to)
{
	int result = kd_masq_choose(pkt, device, to);
	struct kd_ct *ct;
	bool begins;

	if (result != KD_CONTINUE)
		return result;
	if (pkt->later)
		return KD_DROP_FRAGMENT;
	begins = kd_is_icmp(pkt) || kd_can_begin(pkt);
	if (begins && !pkt->fragment && (!pkt->tcp_flags || kd_is_syn(pkt))) { /* all that there is of the flow so far */
		result = kd_ct_begin(skb, &pkt->tuple, to);
		if (!KD_IS(result, KD_DROP_NO_PORT)) {
			KD_TRACE(KD_STEP_NEW_FLOW, result, 0, to);
			return result;
		}
	}
	ct = kd_ct_complete(&pkt->tuple, to);
	if (ct)
		return kd_flow_follow(pkt, ct, to);
	if (kd_begun_leaves(&pkt->tuple, to))
		return KD_CONTINUE;
	if (kd_masq_stays(pkt)) {
		KD_TRACE(KD_STEP_LEFT, KD_LEFT_KEEPS, 0, NULL);
		return kd_masq_keep(pkt);
	}
	if (!begins)
		return KD_DROP_NO_FLOW;
	result = kd_ct_create(skb, &pkt->tuple, to, 0, KD_NO_SERVICE);
	KD_TRACE(KD_STEP_NEW_FLOW, result, 0, to);
	if (result == KD_CONTINUE)
		kd_flow_resumed(pkt);
	return result;
}

/* What the node forwards out of an uplink. */
static __always_inline int kd_masquerade(struct __sk_buff *skb, struct kd_pkt *pkt)
{
	__u32 ifindex = skb->ifindex;
	struct kd_masq_device *device = bpf_map_lookup_elem(&kd_masq_devices, &ifindex);
	struct kd_ct *ct = NULL;
	struct kd_tuple to;
	int result;

	KD_TRACE(KD_STEP_PACKET, pkt->tcp_flags, true, &pkt->tuple);
	if (!device || !bpf_map_lookup_elem(&kd_endpoints, &pkt->tuple.src)) {
		KD_TRACE(KD_STEP_LEFT, device ? KD_LEFT_NO_POD : KD_LEFT_DEVICE, 0, NULL);
		return KD_PASS;
	}
	if (kd_is_icmp(pkt) && !kd_echo_parse(skb, pkt, true))
		return KD_PASS;
	if (!pkt->later || kd_is_icmp(pkt) || kd_fragment_find(pkt))
		ct = kd_ct_find(&pkt->tuple);
	if (ct && (ct->flags & (KD_CT_REPLY | KD_CT_SOURCE)) != KD_CT_SOURCE) {
		KD_TRACE(KD_STEP_LEFT, KD_LEFT_ANSWER, 0, NULL);
		return KD_PASS;
	}
	if (ct && kd_ct_over(pkt, ct)) {
		KD_TRACE(KD_STEP_OVER, 0, 0, NULL);
		kd_ct_forget(&pkt->tuple, ct);
		ct = NULL;
	}
	result = ct ? kd_flow_follow(pkt, ct, &to) : kd_masq_begin(skb, pkt, device, &to);
	if (result != KD_CONTINUE)
		return result;
	return kd_is_icmp(pkt) ? kd_echo_become(skb, pkt, &to) : kd_become(skb, pkt, &to);
}

#endif /* KD_MASQUERADE_H */
