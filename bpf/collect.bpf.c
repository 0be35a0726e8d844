// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * Takes away flows that were silent for too long, unless they have spoken since. Which these are user space finds out
 * (k8sdatapath/datapath/conntrack_table.py), a whole table at a time; by then the ports of some may have begun another
 * flow. So it is looked again here, right before the removal. Never attached: user space writes what it has seen, up
 * to a flow without any half, and runs the program.
 *
 * Before that, and before user space changes anything else about flows, it has those settled that have only begun.
 */
#define KD_CLOCK bpf_ktime_get_ns /* the coarse one is not for programs of system calls */

#include <linux/bpf.h>
#include <linux/in.h>
#include <bpf/bpf_helpers.h>
#include <kd/begun.h>
#include <kd/tuple.h>
#include <kd/types.h>
#include <kd/maps/begun.h>
#include <kd/maps/conntrack.h>

#define KD_COLLECTED_AT_ONCE 512 /* no packet comes in on this CPU meanwhile: half a millisecond */

char _license[] SEC("license") = "Dual BSD/GPL";

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, KD_COLLECTED_AT_ONCE);
	__type(key, __u32);
	__type(value, struct kd_silent);
} kd_silent SEC(".maps");

/* The half, if no packet has come; without `tuple` none is expected. */
static __always_inline struct kd_ct *kd_unchanged(const struct kd_tuple *tuple, __u32 seen)
{
	struct kd_ct *ct = tuple->protocol ? kd_ct_find(tuple) : NULL;

	return ct && ct->last_seen == seen ? ct : NULL;
}

static long kd_collect_flow(__u64 step, __u32 *collected)
{
	__u32 index = step;
	struct kd_silent *silent = bpf_map_lookup_elem(&kd_silent, &index);
	struct kd_ct *original, *reply, *half, *other;
	struct kd_tuple tuple, opposite;

	if (!silent || !(silent->original.protocol | silent->reply.protocol))
		return 1;
	original = kd_unchanged(&silent->original, silent->original_seen);
	reply = kd_unchanged(&silent->reply, silent->reply_seen);
	if (!original != !silent->original.protocol || !reply != !silent->reply.protocol)
		return 0;
	half = original ? original : reply;
	if (!half)
		return 0;
	tuple = original ? silent->original : silent->reply;
	opposite = kd_reversed(&half->to);
	other = kd_ct_find(&opposite);
	if ((other && kd_ct_answers(other, &tuple, half)) != (original && reply)) /* a lost half is back */
		return 0;
	if (original)
		kd_ct_remove(&silent->original);
	if (reply)
		kd_ct_remove(&silent->reply);
	++*collected;
	return 0;
}

/* How many of the flows are gone. */
SEC("tc")
int collect_flows(__attribute__((unused)) struct __sk_buff *skb)
{
	__u32 collected = 0;

	bpf_loop(KD_COLLECTED_AT_ONCE, kd_collect_flow, &collected, 0);
	return collected;
}

static __always_inline __u32 kd_settle_begun(struct kd_begun *row)
{
	struct kd_tuple reply = {
		.src = row->remote,
		.dst = row->leaves_as,
		.sport = row->remote_port,
		.dport = row->port,
		.protocol = IPPROTO_UDP,
	};

	return kd_begun_settle_row(row, &reply);
}

static long kd_settle_pair(__attribute__((unused)) void *map, __attribute__((unused)) const __u32 *place,
			   struct kd_begun_pair *pair, __u32 *settled)
{
	*settled += kd_settle_begun(&pair->first);
	*settled += kd_settle_begun(&pair->second);
	return 0;
}

/* Have kd_conntrack hold all flows that have begun (kd/begun.h). How many these were. */
SEC("syscall")
int settle_flows(__attribute__((unused)) void *ctx)
{
	__u32 settled = 0;

	bpf_for_each_map_elem(&kd_begun, kd_settle_pair, &settled, 0);
	return settled;
}
