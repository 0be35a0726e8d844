/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * What a program decides on the way, told step by step: for explanations, not for traffic.
 *
 *	KD_TRACE(KD_STEP_SLOT, slot, count, NULL);
 *
 * is nothing at all in a program that handles packets. A setting would not do: the verifier cuts out what is behind
 * it, but not the load of the setting itself. bpf/explain.bpf.c is the same source once more with KD_TRACING, and
 * there each step becomes an element of kd_trace. What an explanation must not change though it is shared with the
 * live datapath, the counts in the service maps, asks KD_EXPLAINING.
 */
#ifndef KD_TRACE_H
#define KD_TRACE_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <kd/config.h>
#include <kd/here.h>
#include <kd/types.h>

enum kd_step {
	KD_STEP_NONE = 0,
	KD_STEP_PACKET, /* it was parsed. value: TCP flags, more: whether it is from outside */
	KD_STEP_LOOKUP, /* kd_conntrack is asked for the tuple */
	KD_STEP_NO_FLOW,
	KD_STEP_OVER, /* there is an entry, which does not hold any more */
	KD_STEP_FLOW, /* the tuple is what its entry says. value: enum kd_ct_flags, more: backend */
	KD_STEP_NO_FRONTEND,
	KD_STEP_FRONTEND, /* value: kind, and selection in the second byte; more: service */
	KD_STEP_SOURCE, /* value: whether source ranges let it in */
	KD_STEP_SCOPE, /* value: enum kd_scope */
	KD_STEP_AFFINITY, /* value: whether its client stays; more: service */
	KD_STEP_SLOT, /* value: which; more: of how many */
	KD_STEP_BACKEND, /* the tuple leads to it. more: its id */
	KD_STEP_NAME, /* the source is another now */
	KD_STEP_NEW_FLOW, /* value: 0 or why not; what answers the tuple was looked up, too */
	KD_STEP_REWRITE, /* the packet becomes the tuple */
	KD_STEP_ICMP, /* an error about a flow; the tuple is what it quotes now */
	KD_STEP_POD, /* more: its device */
	KD_STEP_PEER, /* the tuple's destination is the node of its pod. value: identity of the source, more: the tunnel */
	KD_STEP_ROUTE, /* value: what the kernel's routes say; more: the device */
	KD_STEP_RESULT, /* value: enum kd_verdict or enum kd_drop */
	KD_STEP_HELD, /* a flow of somebody else has the port's answers: the tuple has another. value: 0 or why none */
	KD_STEP_LEFT, /* it goes on as it is. value: enum kd_left, why */
	KD_STEP_POLICY, /* the tuple is from end to end. value: enum kd_said, and the port in the upper half; more: counter */
};

/* What the policy of a pod says. */
enum kd_said {
	KD_SAID_EGRESS = 1, /* that it opens connections, not others to it */
	KD_SAID_RECEIVER = 2, /* the pod is the packet's receiver, not its sender */
	KD_SAID_DENIED = 4,
	KD_SAID_AUDITED = 8, /* and it only looks on */
	KD_SAID_OPEN = 16, /* nothing is ever denied */
	KD_SAID_REQUESTS = 32, /* the connection is allowed, and what is asked for over it is held to rules */
};

enum kd_left {
	KD_LEFT_ODD = 1, /* at XDP: no plain TCP or UDP packet that has a hop left, or packets are not to be redirected */
	KD_LEFT_ROUTE, /* at XDP: the way to there is not out of this device, or not known, or not for packets so long */
	KD_LEFT_FORWARDED, /* out of an uplink: the node forwards it, and pods do not leave under another address */
	KD_LEFT_DEVICE, /* pods leave the device under their own addresses */
	KD_LEFT_NO_POD, /* its source is no pod of this node */
	KD_LEFT_KNOWN, /* its destination knows pods by their own addresses */
	KD_LEFT_KEEPS, /* its source keeps its address */
	KD_LEFT_ANSWER, /* it answers who has dialled the pod itself, or is of a service's flow */
};

#ifdef KD_TRACING

#include <kd/maps/trace.h>

#define KD_EXPLAINING 1
#define KD_TRACE(...) kd_tell(__VA_ARGS__)

static const volatile __u32 kd_trace_first; /* a key that takes no room on the stack, which is scarce */

/* Of steps that have no room the last one stays: how it ended. */
KD_SUBPROGRAM void kd_tell(enum kd_step step, __s32 value, __u32 more, const struct kd_tuple *tuple)
{
	__u32 *count = bpf_map_lookup_elem(&kd_trace_count, (const void *)&kd_trace_first);
	struct kd_traced *traced;

	if (!count)
		return;
	if (*count >= KD_TRACE_STEPS)
		*count = KD_TRACE_STEPS - 1;
	traced = bpf_map_lookup_elem(&kd_trace, count);
	if (!traced)
		return;
	++*count;
	traced->step = step;
	traced->value = value < -((1 << KD_REASON_BITS) - 1) ? kd_reason(value) : value;
	traced->more = more;
	if (tuple)
		traced->tuple = *tuple;
}

#else

#define KD_EXPLAINING 0
#define KD_TRACE(...)

#endif

#endif /* KD_TRACE_H */
