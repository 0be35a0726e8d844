// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * A pod's device, seen from the node: the host side of its veth.
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <kd/finish.h>
#include <kd/forward.h>
#include <kd/newcomer.h>
#include <kd/overlay.h>
#include <kd/own.h>
#include <kd/packet.h>
#include <kd/passage.h>
#include <kd/translate.h>
#include <kd/verdict.h>

char _license[] SEC("license") = "Dual BSD/GPL";

/*
 * tc ingress: what the pod sends, as a client to a service or as a backend to its clients. On a port of a bridge it
 * is addressed to the bridge or to another pod, but always ours to translate.
 */
SEC("tc")
int from_pod(struct __sk_buff *skb)
{
	struct kd_pkt pkt = {};
	int result;

	skb->tc_index = kd_known_pod();
	result = kd_parse(skb, &pkt);
	if (result == KD_CONTINUE)
		result = kd_translate(skb, &pkt, false);
	else
		result = kd_let_whole(skb, &pkt, false, result);
	if ((result == KD_CONTINUE || result == KD_PASS) && kd_meddles(skb, &pkt))
		result = KD_DROP_MEDDLING;
	if (result == KD_CONTINUE)
		result = kd_forward(skb, &pkt);
	else if (result == KD_PASS)
		result = kd_enter_tunnel(skb, &pkt);
	if (result == KD_TOO_BIG) /* the pod has sent it under its own name, and is told by the stack */
		result = KD_TO_STACK;
	return kd_finish(skb, &pkt, result, KD_FROM_POD);
}

/*
 * tc egress: what the node's stack sends to the pod, so not what from_pod or from_uplink delivered
 * themselves.
 */
SEC("tc")
int to_pod(struct __sk_buff *skb)
{
	struct kd_pkt pkt = {};
	bool overheard = kd_overheard(skb); /* or bridged, which policies judge as well */
	bool judged = kd_was_judged(skb);
	int result = KD_PASS;

	if (judged ? events : !overheard || enforce)
		result = kd_parse(skb, &pkt);
	if (judged)
		return kd_finish(skb, &pkt, KD_PASS, KD_TO_POD_DEVICE);
	result = kd_let_in(skb, &pkt, result);
	if (overheard && result == KD_CONTINUE)
		result = KD_PASS;
	if (result == KD_CONTINUE)
		result = kd_translate_out(skb, &pkt);
	if (result == KD_CONTINUE)
		result = KD_TO_STACK;
	return kd_finish(skb, &pkt, result, KD_TO_POD_DEVICE);
}
