// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * The node's tunnel device, which leads to the pods of all other nodes.
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <kd/finish.h>
#include <kd/forward.h>
#include <kd/newcomer.h>
#include <kd/overlay.h>
#include <kd/packet.h>
#include <kd/passage.h>
#include <kd/too_big.h>
#include <kd/translate.h>
#include <kd/verdict.h>

char _license[] SEC("license") = "Dual BSD/GPL";

/* tc egress: what the node's routes lead into the tunnel. */
SEC("tc")
int to_overlay(struct __sk_buff *skb)
{
	struct kd_pkt pkt = {};
	int result = kd_parse(skb, &pkt);

	if (kd_is_from_newcomer(skb, &pkt))
		result = KD_DROP_POLICY_DENIED;
	else if (result == KD_CONTINUE || (result == KD_PASS && pkt.ttl)) /* IP, whatever it carries */
		result = kd_encapsulate(skb, &pkt);
	return kd_finish(skb, &pkt, result, KD_TO_OVERLAY);
}

/* tc ingress: what other nodes sent: to pods of this node, and their answers. */
SEC("tc")
int from_overlay(struct __sk_buff *skb)
{
	struct kd_pkt pkt = {};
	int from = kd_decapsulated(skb);
	int result = kd_parse(skb, &pkt);

	skb->tc_index = 0;
	if (from != KD_CONTINUE)
		result = from;
	pkt.tunnelled = from == KD_CONTINUE;
	if (result == KD_CONTINUE)
		result = kd_translate(skb, &pkt, true);
	else
		result = kd_let_whole(skb, &pkt, true, result);
	if (result == KD_CONTINUE)
		result = kd_forward(skb, &pkt);
	else if (result == KD_PASS)
		result = kd_leave_tunnel(skb, &pkt);
	if (result == KD_TOO_BIG)
		result = kd_tell_too_big(skb, &pkt);
	skb->tc_index = 0; /* what the stack forwards is asked for again */
	return kd_finish(skb, &pkt, result, KD_FROM_OVERLAY);
}
