/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Flows of datagrams to the world, from their first packet to the first one that is no answer to it alone.
 *
 * To be remembered in kd_conntrack, even by one entry, a packet waits for memory several times: a new element, others
 * of the LRU's lists, the place in the table. Most flows of datagrams are a question and an answer, if there is one. So
 * a packet that leaves under its own port writes a row of kd_begun, a cache line, whose place is told by what both
 * directions of the flow have in common: the remote end and the port. The first answer reads it there. Whoever else
 * looks for the reply looks there as well, and has it settled: moved into kd_conntrack, as the reply alone
 * (KD_CT_ALONE), or as both entries if it was answered. User space settles all rows before it changes or collects flows.
 *
 * Connections begin in kd_conntrack: their third packet would make both entries, and have paid for the row before.
 *
 * No tuple is in both, or two times in here: whoever writes one looks for others afterwards, in the other row of its
 * place, in kd_conntrack and among the node's sockets, or here if it is written there; and takes back what it wrote if
 * there is one. So of two at once both may fail, but never both succeed. Who fails looks further, for another port.
 * Until it is sure a row is only claimed (KD_BEGUN_WRITTEN): in the way of others, and nothing that could be settled.
 *
 * One at a time settles a row (KD_BEGUN_LEAVING), so what kd_conntrack gets of it is never what an earlier flow has
 * left. Who wants to settle it meanwhile makes do with what the row says: no packet waits for a process that was
 * interrupted.
 *
 * What is settled is in kd_conntrack before it is gone here. Who has looked there before may find it gone here, too:
 * a row that was left a moment ago is a reason to look again.
 *
 * Reads and writes kd_begun and kd_conntrack; reads the sockets of the device's network namespace.
 */
#ifndef KD_BEGUN_H
#define KD_BEGUN_H

#include <stdbool.h>
#include <linux/bpf.h>
#include <linux/in.h>
#include <bpf/bpf_helpers.h>
#include <kd/addr.h>
#include <kd/clock.h>
#include <kd/config.h>
#include <kd/node_socket.h>
#include <kd/tuple.h>
#include <kd/types.h>
#include <kd/maps/begun.h>
#include <kd/maps/conntrack.h>

KD_CONFIG(bool, masquerade, "what pods send to the world leaves under an address of the node") = false;

#define KD_ENOSPC 28
#define KD_BEGUN_PATIENCE 200 /* looks at a row, of some nanoseconds each */

/* What became of a reply that was looked for. */
enum kd_begun_found {
	KD_BEGUN_NONE, /* nothing is here of it, nor was a moment ago */
	KD_BEGUN_SETTLED, /* kd_conntrack is to be asked again */
	KD_BEGUN_BUSY, /* it is somebody's who is about to say so, or to settle it */
	KD_BEGUN_READ, /* its row says all */
};

/* Where the flow is that this would be the answer to, if it is here; NULL: it cannot be. */
static __always_inline struct kd_begun_pair *kd_begun_at(const struct kd_tuple *reply)
{
	const struct kd_addr *remote = &reply->src;
	__u64 hash = (__u64)(remote->w[0] ^ remote->w[2]) << 32 | (remote->w[1] ^ remote->w[3]);
	__u32 place;

	if (reply->protocol != IPPROTO_UDP)
		return NULL;
	hash = (hash ^ hash >> 29) * 0xbf58476d1ce4e5b9ULL + kd_ports(reply);
	hash = (hash ^ hash >> 32) * 0x94d049bb133111ebULL;
	place = (hash >> 40) & (KD_BEGUN_PAIRS - 1);
	return bpf_map_lookup_elem(&kd_begun, &place);
}

static __always_inline union kd_begun_state kd_begun_state(const struct kd_begun *row)
{
	union kd_begun_state state = { .whole = *(volatile __u64 *)&row->state };

	return state;
}

/* False: it has become something else. What was written to the row before is seen by whoever sees the new state. */
static __always_inline bool kd_begun_turn(struct kd_begun *row, union kd_begun_state from, union kd_begun_state to)
{
	return __sync_val_compare_and_swap(&row->state, from.whole, to.whole) == from.whole;
}

/* What was written before is seen by others before they are looked at: a write into a table alone is no such thing. */
static __always_inline void kd_begun_fence(struct kd_begun_pair *pair)
{
	union kd_begun_state any = {};

	kd_begun_turn(&pair->first, any, any);
}

static __always_inline bool kd_begun_is(const struct kd_begun *row, union kd_begun_state state,
					const struct kd_tuple *reply)
{
	return state.use >= KD_BEGUN_HELD && row->port == reply->dport && row->remote_port == reply->sport &&
	       kd_addr_equal(&row->remote, &reply->src) && kd_addr_equal(&row->leaves_as, &reply->dst);
}

/* Whoever has claimed it, or is settling it: nobody else changes it. */
static __always_inline void kd_begun_leave(struct kd_begun *row, union kd_begun_state state)
{
	union kd_begun_state left = { .turn = state.turn + 1, .use = KD_BEGUN_FREE };

	row->since = kd_now();
	kd_begun_turn(row, state, left);
}

/* A flow is in this row: it is this caller's to settle. False: somebody else settles it, or has. */
static __always_inline bool kd_begun_take(struct kd_begun *row, union kd_begun_state *held,
					  union kd_begun_state *leaving)
{
	for (int tries = 0; tries < 3; tries++) { /* the first answer may come in between */
		*held = kd_begun_state(row);
		if (held->use != KD_BEGUN_HELD && held->use != KD_BEGUN_ANSWERED)
			return false;
		*leaving = *held;
		leaving->turn++;
		leaving->use = KD_BEGUN_LEAVING;
		if (kd_begun_turn(row, *held, *leaving))
			return true;
	}
	return false;
}

/* The other half of a flow that was answered, in place of what its reply is. */
static __always_inline long kd_begun_put_original(const struct kd_tuple *reply, struct kd_ct *ct)
{
	struct kd_tuple tuple = kd_reversed(&ct->to);
	long failed;

	ct->to = kd_reversed(reply);
	ct->packets = 0;
	ct->flags = KD_CT_SOURCE | KD_CT_SEEN_REPLY;
	failed = kd_ct_put(&tuple, ct, BPF_NOEXIST);
	return failed == -KD_EEXIST ? 0 : failed;
}

/* True: kd_conntrack has what the row held. Of a flow that was answered it is both entries or none. */
static __always_inline bool kd_begun_settle_row(struct kd_begun *row, const struct kd_tuple *reply)
{
	struct kd_ct ct = { .packets = 1, .service = KD_NO_SERVICE };
	union kd_begun_state held, leaving;
	bool settled = false;

	if (!kd_begun_take(row, &held, &leaving))
		return false;
	if (kd_begun_is(row, leaving, reply)) { /* it may have become another's */
		ct.to = *reply;
		ct.to.dst = row->pod;
		ct.bytes = held.bytes;
		ct.last_seen = row->since;
		ct.told = held.told ? ct.last_seen : 0;
		ct.flags = KD_CT_REPLY | KD_CT_SOURCE | KD_CT_ALONE;
		if (held.use == KD_BEGUN_ANSWERED) {
			ct.packets++;
			ct.flags |= KD_CT_SEEN_REPLY;
		}
		settled = !kd_ct_put(reply, &ct, BPF_NOEXIST);
		if (settled && held.use == KD_BEGUN_ANSWERED && kd_begun_put_original(reply, &ct)) {
			kd_ct_remove(reply);
			settled = false;
		}
	}
	if (settled) {
		kd_begun_leave(row, leaving);
	} else {
		held.turn = leaving.turn + 1;
		kd_begun_turn(row, leaving, held);
	}
	return settled;
}

struct kd_begun_wanted {
	const struct kd_tuple *reply;
	enum kd_begun_found found;
};

static __always_inline bool kd_begun_left_lately(const struct kd_begun *row)
{
	return (__s32)(kd_now() - *(volatile __u32 *)&row->since) <= 1;
}

static __always_inline bool kd_begun_is_claimed(union kd_begun_state state, const struct kd_tuple *reply)
{
	return state.use == KD_BEGUN_WRITTEN && state.port == reply->dport;
}

/* The row of a reply. NULL: there is none; `found` says if one was there a moment ago, or is about to be. */
static __always_inline struct kd_begun *kd_begun_row(const struct kd_tuple *reply, enum kd_begun_found *found)
{
	struct kd_begun_pair *pair = kd_begun_at(reply);
	union kd_begun_state first, second;

	*found = KD_BEGUN_NONE;
	if (!pair)
		return NULL;
	first = kd_begun_state(&pair->first);
	if (kd_begun_is(&pair->first, first, reply))
		return &pair->first;
	second = kd_begun_state(&pair->second);
	if (kd_begun_is(&pair->second, second, reply))
		return &pair->second;
	if (kd_begun_is_claimed(first, reply) || kd_begun_is_claimed(second, reply))
		*found = KD_BEGUN_BUSY;
	else if (kd_begun_left_lately(&pair->first) || kd_begun_left_lately(&pair->second))
		*found = KD_BEGUN_SETTLED;
	return NULL;
}

/* What the row says a reply becomes. False: it is not its row any more. */
static __always_inline bool kd_begun_read(const struct kd_begun *row, const struct kd_tuple *reply,
					  struct kd_tuple *to)
{
	union kd_begun_state state = kd_begun_state(row);

	if (!kd_begun_is(row, state, reply))
		return false;
	*to = *reply;
	to->dst = row->pod;
	return kd_begun_state(row).turn == state.turn;
}

/* Of a claim it is known within a microsecond whether it holds. */
static long kd_begun_wait(__attribute__((unused)) __u64 step, struct kd_begun_wanted *wanted)
{
	return kd_begun_row(wanted->reply, &wanted->found) || wanted->found != KD_BEGUN_BUSY;
}

/* Of a reply that kd_conntrack was asked for, and did not have: it has it now, if there is such a flow. */
KD_FUNCTION int kd_begun_settle(const struct kd_tuple *reply)
{
	struct kd_begun_wanted wanted = { .reply = reply };
	struct kd_begun *row;

	if (!reply)
		return KD_BEGUN_NONE;
	row = kd_begun_row(reply, &wanted.found);
	if (!row && wanted.found == KD_BEGUN_BUSY) { /* a flow whose first two packets leave at once, as like as not */
		bpf_loop(KD_BEGUN_PATIENCE, kd_begun_wait, &wanted, 0);
		row = kd_begun_row(reply, &wanted.found);
	}
	if (!row)
		return wanted.found;
	if (kd_begun_settle_row(row, reply))
		return KD_BEGUN_SETTLED;
	return kd_begun_is(row, kd_begun_state(row), reply) ? KD_BEGUN_BUSY : KD_BEGUN_SETTLED;
}

/* As kd_begun_read(), of the way out: the flow's own direction is known by the pod, where its reply has what it leaves as. */
static __always_inline bool kd_begun_read_out(const struct kd_begun *row, const struct kd_tuple *tuple,
					      struct kd_tuple *to)
{
	union kd_begun_state state = kd_begun_state(row);

	if (state.use < KD_BEGUN_HELD || row->port != tuple->sport || row->remote_port != tuple->dport ||
	    !kd_addr_equal(&row->remote, &tuple->dst) || !kd_addr_equal(&row->pod, &tuple->src))
		return false;
	*to = *tuple;
	to->src = row->leaves_as;
	return kd_begun_state(row).turn == state.turn;
}

/* What a packet of a flow becomes, in either direction. */
KD_FUNCTION int kd_begun_look(const struct kd_tuple *tuple, struct kd_tuple *to)
{
	enum kd_begun_found found;
	struct kd_begun_pair *pair;
	struct kd_tuple reply;
	struct kd_begun *row;

	if (!tuple || !to)
		return false;
	row = kd_begun_row(tuple, &found);
	if (row)
		return kd_begun_read(row, tuple, to);
	reply = kd_reversed(tuple);
	pair = kd_begun_at(&reply);
	return pair && (kd_begun_read_out(&pair->first, tuple, to) || kd_begun_read_out(&pair->second, tuple, to));
}

/* Whether what is here leaves as `to`: then somebody is settling it, or there is no memory for that. */
KD_SUBPROGRAM bool kd_begun_leaves(const struct kd_tuple *tuple, const struct kd_tuple *to)
{
	struct kd_tuple leaves;

	return kd_begun_look(tuple, &leaves) && kd_addr_equal(&leaves.src, &to->src);
}

/*
 * As kd_begun_settle(), of a packet that has come. The first answer of a flow becomes `to`, and stays all that is known
 * of it, unless it is to be `noted`: most flows of datagrams end with it. KD_BEGUN_READ: this is so.
 */
KD_FUNCTION int kd_begun_answer(const struct kd_tuple *reply, struct kd_tuple *to, bool noted)
{
	union kd_begun_state state, answered;
	enum kd_begun_found found;
	struct kd_begun *row;

	if (!reply || !to)
		return KD_BEGUN_NONE;
	row = kd_begun_row(reply, &found);
	if (!row)
		return found;
	state = kd_begun_state(row);
	if (state.use == KD_BEGUN_HELD && !noted && kd_begun_is(row, state, reply)) {
		/* If it becomes another's from here on, the turn fails. */
		*to = *reply;
		to->dst = row->pod;
		row->since = kd_now();
		answered = state;
		answered.turn++;
		answered.use = KD_BEGUN_ANSWERED;
		if (kd_begun_turn(row, state, answered))
			return KD_BEGUN_READ;
	}
	if (kd_begun_settle_row(row, reply))
		return KD_BEGUN_SETTLED;
	return kd_begun_read(row, reply, to) ? KD_BEGUN_READ : KD_BEGUN_SETTLED;
}

/*
 * A flow may begin, which claims a row where it leaves. A claim that has to wait for memory has all else wait; what is
 * read here, and not used, comes while the packet goes on its way.
 */
static __always_inline void kd_begun_fetch(const struct kd_tuple *tuple)
{
	struct kd_tuple reply = kd_reversed(tuple);
	struct kd_begun_pair *pair = kd_begun_at(&reply);

	if (pair) {
		kd_begun_state(&pair->first);
		kd_begun_state(&pair->second);
	}
}

static __always_inline bool kd_begun_may_hold(const struct kd_begun *row, const struct kd_tuple *reply)
{
	union kd_begun_state state = kd_begun_state(row);

	return kd_begun_is_claimed(state, reply) || kd_begun_is(row, state, reply);
}

/* Whether a flow that has only begun has this reply, or is about to: of two who write and then ask, one is told so. */
KD_FUNCTION int kd_begun_holds(const struct kd_tuple *reply)
{
	struct kd_begun_pair *pair = reply ? kd_begun_at(reply) : NULL;

	if (!pair)
		return false;
	kd_begun_fence(pair);
	return kd_begun_may_hold(&pair->first, reply) || kd_begun_may_hold(&pair->second, reply);
}

/* As kd_ct_put(), of a reply to an address of this node: it fails if a flow that has only begun has it. */
static __always_inline long kd_begun_put_settled(const struct kd_tuple *reply, const struct kd_ct *ct, __u64 flags)
{
	long failed;

	if (masquerade && kd_begun_holds(reply))
		return -KD_EEXIST;
	failed = kd_ct_put(reply, ct, flags);
	if (failed || !masquerade || !kd_begun_holds(reply))
		return failed;
	kd_ct_remove(reply);
	return -KD_EEXIST;
}

/* NULL: the row is not free. */
static __always_inline struct kd_begun *kd_begun_claim(struct kd_begun *row, const struct kd_tuple *reply,
						       const struct kd_ct *ct, union kd_begun_state *claimed)
{
	union kd_begun_state free = kd_begun_state(row);

	claimed->turn = free.turn + 1;
	claimed->port = reply->dport;
	claimed->use = KD_BEGUN_WRITTEN;
	claimed->told = 0;
	if (free.use != KD_BEGUN_FREE || !kd_begun_turn(row, free, *claimed))
		return NULL;
	row->remote = reply->src;
	row->leaves_as = reply->dst;
	row->pod = ct->to.dst;
	row->remote_port = reply->sport;
	row->port = reply->dport;
	row->since = ct->last_seen;
	return row;
}

/*
 * A reply that is alone, of a flow that keeps its port. -KD_EEXIST: another one has this tuple, or may have it, or a
 * socket; -KD_ENOSPC: there is no room.
 */
KD_FUNCTION int kd_begun_put(struct __sk_buff *skb, const struct kd_tuple *reply, const struct kd_ct *ct)
{
	struct kd_begun_pair *pair = reply ? kd_begun_at(reply) : NULL;
	union kd_begun_state claimed = {}, held;
	struct kd_begun *row, *other;

	if (!pair || !ct || ct->bytes > 0xffff)
		return -KD_ENOSPC;
	if (kd_begun_may_hold(&pair->second, reply))
		return -KD_EEXIST;
	other = &pair->second;
	row = kd_begun_claim(&pair->first, reply, ct, &claimed);
	if (!row) {
		other = &pair->first;
		if (kd_begun_may_hold(other, reply))
			return -KD_EEXIST;
		row = kd_begun_claim(&pair->second, reply, ct, &claimed);
	}
	if (!row)
		return -KD_ENOSPC;
	if (kd_begun_may_hold(other, reply) || kd_socket_uses(skb, reply) || kd_ct_find_untold(reply)) {
		kd_begun_leave(row, claimed);
		return -KD_EEXIST;
	}
	held = claimed;
	held.turn++;
	held.bytes = ct->bytes;
	held.use = KD_BEGUN_HELD;
	held.told = ct->told != 0;
	kd_begun_turn(row, claimed, held);
	return 0;
}

#endif /* KD_BEGUN_H */
