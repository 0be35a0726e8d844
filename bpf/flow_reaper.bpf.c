// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * Flows of datagrams whose backend is gone, or whose frontend is another service's or nobody's now.
 *
 * The next datagram of such a flow would begin anew by itself (kd/conntrack.h). This is for those that send no more,
 * or in one direction only: what is left in the table would be taken for a flow that lives. TCP and SCTP may be
 * finishing what they began; of no service's flow anything is known here.
 *
 * Run by user space after a change, on the whole table at once: a look at each entry, and a delete for those that are
 * over. What began while it ran is judged by the services as they are. Answers may still be on their way, and what is
 * kept for them (kd/conntrack.h) is taken away by a later walk.
 */
#define KD_CLOCK bpf_ktime_get_ns /* the coarse one is not for programs of system calls */

#include <linux/bpf.h>
#include <linux/in.h>
#include <bpf/bpf_helpers.h>
#include <kd/conntrack.h>
#include <kd/types.h>

char _license[] SEC("license") = "Dual BSD/GPL";

/* Its other half, which was not looked at yet, or was before it was made. */
static __always_inline void kd_reap_original(const struct kd_tuple *tuple, const struct kd_ct *reply)
{
	struct kd_tuple opposite = kd_reversed(&reply->to);
	struct kd_ct *original = kd_ct_find_untold(&opposite);

	if (original && kd_ct_answers(original, tuple, reply))
		kd_ct_remove(&opposite);
}

static long kd_reap_flow(__attribute__((unused)) void *map, const struct kd_tuple *key, struct kd_ct *ct, __u32 *gone)
{
	bool reply = ct->flags & KD_CT_REPLY;
	bool ended = ct->flags & KD_CT_ENDED;
	struct kd_tuple tuple = *key;
	struct kd_tuple dialled;

	if (tuple.protocol != IPPROTO_UDP || ct->flags & KD_CT_SOURCE)
		return 0;
	dialled = reply ? kd_reversed(&ct->to) : tuple;
	if (ended ? !kd_ct_ended(ct) : kd_backend_stays(ct->backend) && !kd_ct_moved(&dialled, ct))
		return 0;
	if (kd_ct_find_untold(&tuple) != ct) /* gone a moment ago, and the walk was at it already; or another flow's now */
		return 0;
	if (ended) { /* and was counted then */
		kd_ct_remove(&tuple);
		return 0;
	}
	if (reply) {
		kd_reap_original(&tuple, ct);
		kd_ct_end(&tuple, ct);
	} else {
		kd_ct_forget(&tuple, ct);
	}
	++*gone;
	return 0;
}

/* How many flows have ended. */
SEC("syscall")
int reap_flows(__attribute__((unused)) void *ctx)
{
	__u32 gone = 0;

	kd_ct_each(kd_reap_flow, &gone);
	return gone;
}
