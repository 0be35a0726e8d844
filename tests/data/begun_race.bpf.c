// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * Two CPUs that do something to one flow of kd/begun.h at the same moment, over and over: they wait for each other
 * before each round, and then for a moment that is random. What each saw, and what is left, is told of each round.
 */
#include <stdbool.h>
#include <linux/bpf.h>
#include <linux/in.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include <kd/begun.h>
#include <kd/config.h>
#include <kd/conntrack.h>
#include <kd/ports.h>
#include <kd/tuple.h>
#include <kd/types.h>
#include <kd/verdict.h>

#define ROUNDS 16384
#define PORTS 256
#define PATIENCE (1 << 19)

char _license[] SEC("license") = "Dual BSD/GPL";

enum act {
	LEAVE_FIRST, /* the flow's packet leaves, of the first pod */
	LEAVE_SECOND, /* the second pod's, from the same port to the same end */
	ANSWER,
	SETTLE,
	ENTER, /* an entry of the second pod */
	REPLACE, /* the flow is forgotten, and the second pod's packet leaves */
};

KD_CONFIG(__u32, left_act, "what one CPU does") = 0;
KD_CONFIG(__u32, right_act, "what the other one does") = 0;
KD_CONFIG(bool, prepared, "the first pod's flow has begun before") = false;
KD_CONFIG(bool, noted, "answers are noted, as where events are told") = false;

/* Pods are 1 and 2, nobody is 0. */
struct outcome {
	__u16 left, right; /* of who leaves the port, of an answer whose it is, of an entry whether it was made */
	__u8 in_table; /* whose the reply is, afterwards */
	__u8 in_row;
	__u8 told; /* everything of this round */
	__u8 pad;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, ROUNDS);
	__type(key, __u32);
	__type(value, struct outcome);
} outcomes SEC(".maps");

/* What is too large for the stack, of each side. */
struct side {
	__u64 come; /* how far */
	struct kd_tuple reply, tuple, to;
	struct kd_ct ct;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 2);
	__type(key, __u32);
	__type(value, struct side);
} sides SEC(".maps");

struct run {
	struct __sk_buff *skb;
	struct side *own, *other;
	__u64 awaited;
	bool right, met;
};

static __always_inline __u8 pod_of(const struct kd_addr *addr)
{
	return bpf_ntohl(addr->w[3]) & 0xff;
}

static __always_inline void set_pod(struct kd_addr *addr, __u32 pod)
{
	kd_addr_set_v4(addr, bpf_htonl(0x0af40100 + pod));
}

static long look(__attribute__((unused)) __u64 step, struct run *run)
{
	if (*(volatile __u64 *)&run->other->come < run->awaited)
		return 0;
	run->met = true;
	return 1;
}

static __always_inline bool meet(struct run *run, __u64 at)
{
	run->awaited = at;
	run->met = false;
	__sync_lock_test_and_set(&run->own->come, at);
	bpf_loop(PATIENCE, look, run, 0);
	return run->met;
}

static long pass(__attribute__((unused)) __u64 step, __attribute__((unused)) void *ctx)
{
	return 0;
}

KD_SUBPROGRAM void prepare(struct side *side, __u64 round)
{
	struct kd_tuple reply = {
		.sport = bpf_htons(53),
		.dport = bpf_htons(5000 + round % PORTS),
		.protocol = IPPROTO_UDP,
	};
	struct kd_ct ct = {
		.packets = 1,
		.last_seen = kd_now(),
		.flags = KD_CT_REPLY | KD_CT_SOURCE | KD_CT_ALONE,
		.service = KD_NO_SERVICE,
	};

	kd_addr_set_v4(&reply.src, bpf_htonl(0xc6336407));
	kd_addr_set_v4(&reply.dst, bpf_htonl(0xc0000201));
	side->reply = reply;
	ct.to = reply;
	set_pod(&ct.to.dst, 2);
	side->ct = ct;
}

/* As kd_masq_begin(), or the flow is known. The port that a pod's packet has; 0: it is dropped. */
KD_SUBPROGRAM __u16 leave(struct __sk_buff *skb, struct side *side, __u32 pod)
{
	struct kd_ct *ct;
	int result;

	side->to = kd_reversed(&side->reply);
	side->tuple = side->to;
	set_pod(&side->tuple.src, pod);
	ct = kd_ct_find(&side->tuple);
	if (ct)
		return bpf_ntohs(ct->to.sport);
	result = kd_ct_begin(skb, &side->tuple, &side->to);
	if (result == KD_CONTINUE)
		return bpf_ntohs(side->to.sport);
	ct = kd_ct_complete(&side->tuple, &side->to);
	if (ct)
		return bpf_ntohs(ct->to.sport);
	if (!kd_begun_leaves(&side->tuple, &side->to))
		result = kd_ct_create(skb, &side->tuple, &side->to, 0, KD_NO_SERVICE);
	else
		result = KD_CONTINUE;
	return result == KD_CONTINUE ? bpf_ntohs(side->to.sport) : 0;
}

/* As kd_flow_find(): whose it is. */
KD_SUBPROGRAM __u16 answer(struct side *side)
{
	struct kd_ct *ct = kd_ct_find(&side->reply);
	int found;

	if (!ct) {
		found = kd_begun_answer(&side->reply, &side->to, noted);
		if (found == KD_BEGUN_READ)
			return pod_of(&side->to.dst);
		ct = found == KD_BEGUN_SETTLED ? kd_ct_find(&side->reply) : NULL;
	}
	return ct ? pod_of(&ct->to.dst) : 0;
}

/* As the collector does. */
KD_SUBPROGRAM void settle(const struct side *side)
{
	struct kd_begun_pair *pair = kd_begun_at(&side->reply);

	if (!pair)
		return;
	kd_begun_settle_row(&pair->first, &side->reply);
	kd_begun_settle_row(&pair->second, &side->reply);
}

/* What any pod has of it. */
KD_SUBPROGRAM void forget(struct side *side)
{
	enum kd_begun_found found;
	struct kd_begun *row;
	struct kd_ct *ct;

	for (int pod = 1; pod <= 2; pod++) {
		side->tuple = kd_reversed(&side->reply);
		set_pod(&side->tuple.src, pod);
		ct = kd_ct_find(&side->tuple);
		if (ct) {
			side->to = kd_reversed(&ct->to);
			kd_ct_remove(&side->to);
			kd_ct_remove(&side->tuple);
		}
		kd_ct_remove(&side->reply);
		row = kd_begun_row(&side->reply, &found);
		if (row)
			kd_begun_leave(row, kd_begun_state(row));
	}
}

static __always_inline __u16 act(struct run *run, __u32 what)
{
	struct side *own = run->own;

	switch (what) {
	case LEAVE_FIRST:
		return leave(run->skb, own, 1);
	case ANSWER:
		return answer(own);
	case ENTER:
		return !kd_begun_put_settled(&own->reply, &own->ct, BPF_NOEXIST);
	case SETTLE:
		settle(own);
		return 0;
	case REPLACE:
		settle(own);
		kd_ct_remove(&own->reply);
	}
	return leave(run->skb, own, 2);
}

/* What is left when both are done. */
KD_SUBPROGRAM void tell(struct side *side, struct outcome *outcome)
{
	enum kd_begun_found found;
	struct kd_ct *ct = kd_ct_find(&side->reply);
	struct kd_begun *row = kd_begun_row(&side->reply, &found);

	outcome->in_table = ct ? pod_of(&ct->to.dst) : 0;
	outcome->in_row = row ? pod_of(&row->pod) : 0;
	outcome->told = true;
}

static long one_round(__u64 number, struct run *run)
{
	__u32 index = number & (ROUNDS - 1);
	struct outcome *outcome = bpf_map_lookup_elem(&outcomes, &index);
	__u64 at = run->skb->mark + 3 * number;

	if (!outcome)
		return 1;
	prepare(run->own, number);
	if (!run->right)
		forget(run->own);
	if (!run->right && prepared)
		leave(run->skb, run->own, 1);
	if (!meet(run, at + 1))
		return 1;
	bpf_loop(bpf_get_prandom_u32() & 127, pass, NULL, 0);
	if (run->right)
		outcome->right = act(run, right_act);
	else
		outcome->left = act(run, left_act);
	if (!meet(run, at + 2))
		return 1;
	if (!run->right)
		tell(run->own, outcome);
	if (meet(run, at + 3))
		return 0;
	asm volatile("" ::: "memory"); /* or it returns a byte of which the verifier does not know that it is 1 */
	return 1;
}

/* How many rounds there were; `mark` says what both count from. */
static __always_inline int run_rounds(struct __sk_buff *skb, bool right)
{
	__u32 own = right, other = !right;
	struct run run = {
		.skb = skb,
		.own = bpf_map_lookup_elem(&sides, &own),
		.other = bpf_map_lookup_elem(&sides, &other),
		.right = right,
	};

	if (!run.own || !run.other || !meet(&run, skb->mark))
		return 0;
	return bpf_loop(ROUNDS, one_round, &run, 0);
}

SEC("tc")
int left(struct __sk_buff *skb)
{
	return run_rounds(skb, false);
}

SEC("tc")
int right(struct __sk_buff *skb)
{
	return run_rounds(skb, true);
}
