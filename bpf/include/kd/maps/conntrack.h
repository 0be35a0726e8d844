/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Flows that were load-balanced per packet, one entry per direction. */
#ifndef KD_MAPS_CONNTRACK_H
#define KD_MAPS_CONNTRACK_H

#include <stdbool.h>
#include <stddef.h>
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <kd/config.h>
#include <kd/trace.h>
#include <kd/types.h>
#include <kd/maps/moving.h>

/*
 * tuple -> translation. Writers: programs (user space only deletes). Full: the least recently used
 * entry goes; a flow that lost one direction is remade whole by its next packet.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 262144);
	__type(key, struct kd_tuple);
	__type(value, struct kd_ct);
} kd_conntrack SEC(".maps");

/*
 * While flows move (kd/maps/moving.h) the table that they move to; else nothing. `kd_conntrack` is the old one then.
 *
 * Until KD_MOVE_TAKING the old table is right, and the new one has nothing that the old one lacks. From then on the new
 * one is right: an entry that only the old one has is taken over when it is first asked for, by whoever asks first,
 * and user space asks for all (move_flows()). Nobody writes to the old one any more, so no entry is ever copied that is
 * not current. What is removed stays in the new one as KD_CT_GONE, or it would be taken over again; by KD_MOVE_NEW it
 * cannot be, and user space has these marks taken away.
 *
 * Entries are changed in place through pointers, and who has a pointer into the old table may not know yet that it is
 * over. So whoever changes an entry looks for its twin in the new table afterwards, and who copies an entry looks for
 * changes afterwards: one of them sees the other.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1);
	__type(key, struct kd_tuple);
	__type(value, struct kd_ct);
} kd_conntrack_to SEC(".maps");

#define KD_EEXIST 17

/* The entry that the new table has after all, or of the old one if there is no room. */
static __always_inline struct kd_ct *kd_ct_take(const struct kd_tuple *tuple)
{
	struct kd_ct *old = bpf_map_lookup_elem(&kd_conntrack, tuple);
	struct kd_ct *ct;
	__u32 flags;

	if (!old)
		return NULL;
	flags = *(volatile __u32 *)&old->flags;
	bpf_map_update_elem(&kd_conntrack_to, tuple, old, BPF_NOEXIST);
	ct = bpf_map_lookup_elem(&kd_conntrack_to, tuple);
	if (!ct)
		return old;
	flags = *(volatile __u32 *)&old->flags & ~flags;
	if (flags)
		__sync_fetch_and_or(&ct->flags, flags);
	return ct;
}

static __always_inline struct kd_ct *kd_ct_look(const struct kd_tuple *tuple)
{
	enum kd_move move = kd_move();
	struct kd_ct *ct;

	if (move < KD_MOVE_TAKING)
		return bpf_map_lookup_elem(&kd_conntrack, tuple);
	ct = bpf_map_lookup_elem(&kd_conntrack_to, tuple);
	if (!ct && move == KD_MOVE_TAKING)
		ct = kd_ct_take(tuple);
	return ct && ct->flags & KD_CT_GONE ? NULL : ct;
}

KD_SUBPROGRAM struct kd_ct *kd_ct_find_moving(const struct kd_tuple *tuple)
{
	return kd_ct_look(tuple);
}

/* Take away the mark of an entry that was removed; false: somebody else does. */
static __always_inline bool kd_ct_bury(const struct kd_tuple *tuple, struct kd_ct *gone)
{
	__u32 flags = *(volatile __u32 *)&gone->flags;

	if ((flags & (KD_CT_GONE | KD_CT_BURIED)) != KD_CT_GONE ||
	    __sync_val_compare_and_swap(&gone->flags, flags, flags | KD_CT_BURIED) != flags)
		return false;
	bpf_map_delete_elem(&kd_conntrack_to, tuple);
	return true;
}

static __always_inline long kd_ct_put_new(const struct kd_tuple *tuple, const struct kd_ct *ct, __u64 flags)
{
	struct kd_ct *there = bpf_map_lookup_elem(&kd_conntrack_to, tuple);

	if (there && there->flags & KD_CT_GONE && !kd_ct_bury(tuple, there) && flags == BPF_NOEXIST)
		return -KD_EEXIST;
	return bpf_map_update_elem(&kd_conntrack_to, tuple, ct, flags);
}

KD_SUBPROGRAM long kd_ct_put_moving(const struct kd_tuple *tuple, const struct kd_ct *ct, __u64 flags)
{
	enum kd_move move = kd_move();
	long failed;

	if (move >= KD_MOVE_TAKING) {
		if (flags == BPF_NOEXIST && kd_ct_look(tuple))
			return -KD_EEXIST;
		return kd_ct_put_new(tuple, ct, flags);
	}
	failed = bpf_map_update_elem(&kd_conntrack, tuple, ct, flags);
	if (failed || move == KD_MOVE_OLD)
		return failed;
	failed = kd_ct_put_new(tuple, ct, flags);
	if (failed) /* somebody is a step ahead and was faster */
		bpf_map_delete_elem(&kd_conntrack, tuple);
	return failed;
}

KD_SUBPROGRAM void kd_ct_remove_moving(const struct kd_tuple *tuple)
{
	enum kd_move move = kd_move();
	struct kd_ct *ct = NULL;

	if (move >= KD_MOVE_NEW) {
		bpf_map_delete_elem(&kd_conntrack_to, tuple);
		return;
	}
	if (move >= KD_MOVE_BOTH)
		ct = bpf_map_lookup_elem(&kd_conntrack_to, tuple);
	if (move >= KD_MOVE_BOTH && !ct)
		ct = kd_ct_take(tuple);
	if (ct)
		__sync_fetch_and_or(&ct->flags, KD_CT_GONE);
	if (move <= KD_MOVE_BOTH)
		bpf_map_delete_elem(&kd_conntrack, tuple);
}

/* Of user space, for each tuple: that the new table has what is to move, and in the end no marks any more. */
static __always_inline void kd_ct_settle(const struct kd_tuple *tuple)
{
	struct kd_ct *gone;

	if (kd_move() < KD_MOVE_NEW) {
		kd_ct_find_moving(tuple);
		return;
	}
	gone = bpf_map_lookup_elem(&kd_conntrack_to, tuple);
	if (gone)
		kd_ct_bury(tuple, gone);
}

/* Where a change to an entry has to be made a second time, if anywhere: after the first, and whatever step it is. */
static __always_inline struct kd_ct *kd_ct_twin(const struct kd_tuple *tuple, const struct kd_ct *ct)
{
	struct kd_ct *twin = moving ? bpf_map_lookup_elem(&kd_conntrack_to, tuple) : NULL;

	return twin != ct ? twin : NULL;
}

/* As kd_ct_find(), where there is no room on the stack to tell of it. */
static __always_inline struct kd_ct *kd_ct_find_untold(const struct kd_tuple *tuple)
{
	return moving ? kd_ct_find_moving(tuple) : bpf_map_lookup_elem(&kd_conntrack, tuple);
}

static __always_inline struct kd_ct *kd_ct_find(const struct kd_tuple *tuple)
{
	KD_TRACE(KD_STEP_LOOKUP, 0, 0, tuple);
	return kd_ct_find_untold(tuple);
}

static __always_inline long kd_ct_put(const struct kd_tuple *tuple, const struct kd_ct *ct, __u64 flags)
{
	return moving ? kd_ct_put_moving(tuple, ct, flags) : bpf_map_update_elem(&kd_conntrack, tuple, ct, flags);
}

static __always_inline void kd_ct_remove(const struct kd_tuple *tuple)
{
	if (moving)
		kd_ct_remove_moving(tuple);
	else
		bpf_map_delete_elem(&kd_conntrack, tuple);
}

/* Each entry, told to long callback(map, tuple, entry, context). For user space to ask for, not while it copies. */
#define kd_ct_each(callback, context) bpf_for_each_map_elem(&kd_conntrack, callback, context, 0)

#endif /* KD_MAPS_CONNTRACK_H */
