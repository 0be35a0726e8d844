// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * The node's own devices: its uplinks to other nodes and to the world.
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <kd/finish.h>
#include <kd/forward.h>
#include <kd/impostor.h>
#include <kd/masquerade.h>
#include <kd/newcomer.h>
#include <kd/overlay.h>
#include <kd/own.h>
#include <kd/packet.h>
#include <kd/passage.h>
#include <kd/too_big.h>
#include <kd/translate.h>
#include <kd/verdict.h>

char _license[] SEC("license") = "Dual BSD/GPL";

/* tc ingress: what arrives from elsewhere, packets to services, and answers to pods of this node, and to itself. */
SEC("tc")
int from_uplink(struct __sk_buff *skb)
{
	struct kd_pkt pkt = {};
	bool tunnel;
	int result;

	skb->tc_index = 0;
	if ((host_firewall || enforce) && kd_is_priority_tagged(skb))
		bpf_skb_vlan_pop(skb);
	result = kd_overheard(skb) ? KD_PASS : kd_parse(skb, &pkt);
	if (result >= 0 && kd_is_impostor(&pkt))
		result = KD_DROP_INVALID_SOURCE_IP;
	if (result >= 0 && kd_is_newcomer(&pkt.tuple.dst))
		result = KD_DROP_POLICY_DENIED;
	tunnel = result == KD_CONTINUE && kd_is_tunnel(&pkt, &pkt.tuple.src);
	if (tunnel)
		result = KD_PASS;
	else if (result == KD_CONTINUE)
		result = kd_translate(skb, &pkt, true);
	if (result == KD_CONTINUE && kd_meddles(skb, &pkt))
		result = KD_DROP_MEDDLING;
	if (result == KD_CONTINUE)
		result = kd_forward(skb, &pkt);
	if (host_firewall && !tunnel && (result == KD_PASS || result == KD_TO_STACK))
		result = kd_guard(skb, &pkt, false, result);
	if (result == KD_TOO_BIG)
		result = kd_tell_too_big(skb, &pkt);
	skb->tc_index = 0; /* what the stack forwards is asked for again */
	return kd_finish(skb, &pkt, result, KD_FROM_UPLINK);
}

/*
 * tc egress: what the node sends itself, and what pods send to the world. Of that which the node forwards, only what is
 * changed here, or of a pod that is not known, is counted: all else has been where it came in.
 */
SEC("tc")
int to_uplink(struct __sk_buff *skb)
{
	bool own = !skb->ingress_ifindex;
	bool forwarded = !own && (!masquerade || skb->tc_index == KD_MASQUERADED);
	struct kd_pkt pkt = {};
	int result = KD_PASS;
	bool tunnel;

	if (!forwarded || enforce)
		result = kd_parse(skb, &pkt);
	if (kd_is_from_newcomer(skb, &pkt))
		return kd_finish(skb, &pkt, KD_DROP_POLICY_DENIED, KD_TO_UPLINK);
	if (forwarded) {
		KD_TRACE(KD_STEP_LEFT, KD_LEFT_FORWARDED, 0, NULL);
		return TC_ACT_UNSPEC;
	}
	tunnel = result == KD_CONTINUE && own && kd_is_tunnel(&pkt, &pkt.tuple.dst);
	if (tunnel)
		result = KD_PASS;
	else if (host_firewall && own && result >= 0)
		result = kd_guard(skb, &pkt, true, result);
	if (result == KD_CONTINUE)
		result = own ? kd_translate_out(skb, &pkt) : kd_masquerade(skb, &pkt);
	if (!own && result == KD_PASS)
		return TC_ACT_UNSPEC;
	if (result == KD_CONTINUE)
		result = KD_TO_STACK;
	return kd_finish(skb, &pkt, result, KD_TO_UPLINK);
}
