/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * What becomes of a packet, and why.
 *
 * Stages return an int: a verdict (>= 0) or a negative reason to drop. The entry program hands the last
 * one to kd_finish() (kd/finish.h), the only place that counts it, tells of it and turns it into the kernel's answer: a
 * drop without a reason cannot be written.
 *
 * Both lists are told to user space by the object itself. Section .kd.reasons is not loaded; its BTF
 * holds two variables, kd_verdicts and kd_drops, whose types are the enums and whose declaration tags say
 * "NAME: sentence" for each enumerator. To add a reason, add a line to the list and one to those that say where. The
 * values are signed, also where an older compiler's BTF does not say so.
 *
 * A reason carries where it was given (kd/here.h), so it is compared by KD_IS() only.
 */
#ifndef KD_VERDICT_H
#define KD_VERDICT_H

#include <stdbool.h>
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <kd/config.h>
#include <kd/here.h>
#include <kd/trace.h>
#include <kd/types.h>
#include <kd/maps/counters.h>

/* clang-format off */
#define KD_VERDICT_LIST(X)                                                                          \
	X(KD_CONTINUE, 0, "the next stage decides")                                                 \
	X(KD_PASS, 1, "not ours, left as it was to the node's stack")                               \
	X(KD_TO_STACK, 2, "translated, then left to the node's stack")                              \
	X(KD_TO_POD, 3, "put into a pod of this node")                                              \
	X(KD_TO_DEVICE, 4, "sent through the device that leads to its destination")                 \
	X(KD_AT_SOCKET, 5, "translated at the socket, before there was a packet")                   \
	X(KD_REJECT_NO_BACKEND, 6, "the service has no backend, which the client was told")         \
	X(KD_REJECT_NO_SERVICE, 7, "its address has services, but none there; the client was told") \
	X(KD_ECHO, 8, "an echo request to an address of services, answered")                        \
	X(KD_TO_PEER, 9, "sent through the tunnel to the node that its pod is on")                    \
	X(KD_TOO_BIG, 10, "too big for its way on, which its sender was told")                      \
	X(KD_REJECT_DENIED, 11, "no policy allows it, or one denies it, which its sender was told")    \
	X(KD_REJECT_NAME, 12, "no policy allows to ask for its name, which its sender was told")

#define KD_DROP_LIST(X)                                                                             \
	X(KD_DROP_MALFORMED, -1, "its headers do not fit into its length")                          \
	X(KD_DROP_FRAGMENT, -2, "a later fragment whose first, or whose flow, is not known")         \
	X(KD_DROP_NOT_LOCAL, -3, "the service keeps it on this node, where it has no backend")      \
	X(KD_DROP_NO_FLOW, -4, "a segment of no flow that could be continued")                  \
	X(KD_DROP_STALE_SLOT, -5, "a slot names a backend that is gone")                            \
	X(KD_DROP_NO_SOURCE, -6, "the node has no address to ask the backend under")                \
	X(KD_DROP_NO_PORT, -7, "no port is free for its source towards its destination")            \
	X(KD_DROP_NO_MEMORY, -8, "no entry to be had in the flow table")                            \
	X(KD_DROP_REWRITE, -9, "the packet could not be changed")                                   \
	X(KD_DROP_SOURCE, -10, "the service does not let its source in")                            \
	X(KD_DROP_NO_SERVICE, -11, "its address has services, but none there")                      \
	X(KD_DROP_REJECT, -12, "to be rejected, but the client was not told: one answer too many")  \
	X(KD_DROP_NODE_PORT, -13, "a process of the node was to bind a node port, and was refused") \
	X(KD_DROP_SCTP_PORT, -14, "SCTP to another port, which its checksum does not allow")        \
	X(KD_DROP_LEFT_ALONE, -15, "left to netfilter by its port, which gave it no other source")  \
	X(KD_DROP_NO_PEER, -20, "routed into the tunnel, but its destination is on no known node")  \
	X(KD_DROP_UNKNOWN_PEER, -21, "it came through the tunnel from no known node")                \
	X(KD_DROP_MEDDLING, -22, "to a node's end of the tunnel, from somebody who is no node")     \
	X(KD_DROP_POLICY_DENIED, -24, "no policy allows it, or one denies it")                      \
	X(KD_DROP_INVALID_SOURCE_IP, -25, "sent by a pod, or by somebody outside, under the address of another pod") \
	X(KD_DROP_NAME, -26, "to a name server that may be asked for some names, and no question for one; from it, and no answer")
/* clang-format on */

#define KD_ENUMERATOR(name, number, sentence) name = number,
#define KD_SENTENCE(name, number, sentence) KD_TAG(#name ": " sentence)

enum kd_verdict { KD_VERDICT_LIST(KD_ENUMERATOR) };
enum kd_drop { KD_DROP_LIST(KD_ENUMERATOR) };

const enum kd_verdict kd_verdicts SEC(".kd.reasons") KD_VERDICT_LIST(KD_SENTENCE) = KD_CONTINUE;
const enum kd_drop kd_drops SEC(".kd.reasons") KD_DROP_LIST(KD_SENTENCE) = KD_DROP_MALFORMED;

#define KD_DROP_MALFORMED KD_HERE(KD_DROP_MALFORMED)
#define KD_DROP_FRAGMENT KD_HERE(KD_DROP_FRAGMENT)
#define KD_DROP_NOT_LOCAL KD_HERE(KD_DROP_NOT_LOCAL)
#define KD_DROP_NO_FLOW KD_HERE(KD_DROP_NO_FLOW)
#define KD_DROP_STALE_SLOT KD_HERE(KD_DROP_STALE_SLOT)
#define KD_DROP_NO_SOURCE KD_HERE(KD_DROP_NO_SOURCE)
#define KD_DROP_NO_PORT KD_HERE(KD_DROP_NO_PORT)
#define KD_DROP_NO_MEMORY KD_HERE(KD_DROP_NO_MEMORY)
#define KD_DROP_REWRITE KD_HERE(KD_DROP_REWRITE)
#define KD_DROP_SOURCE KD_HERE(KD_DROP_SOURCE)
#define KD_DROP_NO_SERVICE KD_HERE(KD_DROP_NO_SERVICE)
#define KD_DROP_REJECT KD_HERE(KD_DROP_REJECT)
#define KD_DROP_NODE_PORT KD_HERE(KD_DROP_NODE_PORT)
#define KD_DROP_SCTP_PORT KD_HERE(KD_DROP_SCTP_PORT)
#define KD_DROP_LEFT_ALONE KD_HERE(KD_DROP_LEFT_ALONE)
#define KD_DROP_NO_PEER KD_HERE(KD_DROP_NO_PEER)
#define KD_DROP_UNKNOWN_PEER KD_HERE(KD_DROP_UNKNOWN_PEER)
#define KD_DROP_MEDDLING KD_HERE(KD_DROP_MEDDLING)
#define KD_DROP_POLICY_DENIED KD_HERE(KD_DROP_POLICY_DENIED)
#define KD_DROP_INVALID_SOURCE_IP KD_HERE(KD_DROP_INVALID_SOURCE_IP)
#define KD_DROP_NAME KD_HERE(KD_DROP_NAME)

/* Not to be served, and the client is to be told: at the socket by an error, else by a packet (kd/reject.h). */
static __always_inline bool kd_is_reject(int result)
{
	return result == KD_REJECT_NO_BACKEND || result == KD_REJECT_NO_SERVICE || result == KD_REJECT_DENIED ||
	       result == KD_REJECT_NAME;
}

/* Policies do not let it pass. */
static __always_inline bool kd_is_denied(int result)
{
	return result == KD_REJECT_DENIED || result == KD_REJECT_NAME || KD_IS(result, KD_DROP_POLICY_DENIED) ||
	       KD_IS(result, KD_DROP_NAME);
}

/* Where it is in kd_counters. */
static __always_inline __u32 kd_outcome(int result)
{
	return result >= 0 ? result : KD_COUNTERS / 2 - kd_reason(result);
}

static __always_inline void kd_count(int result, __u32 bytes)
{
	__u32 index = kd_outcome(result);
	struct kd_counter *counter = bpf_map_lookup_elem(&kd_counters, &index);

	KD_TRACE(KD_STEP_RESULT, kd_reason(result), 0, NULL);
	if (counter) {
		counter->packets++;
		counter->bytes += bytes;
	}
}

#endif /* KD_VERDICT_H */
