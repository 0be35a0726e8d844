/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Flows that were load-balanced per packet, one entry per direction. */
#ifndef KD_MAPS_CONNTRACK_H
#define KD_MAPS_CONNTRACK_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <kd/config.h>
#include <kd/trace.h>
#include <kd/types.h>

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
 * While the table gets another size, the new one; else nothing. Programs that are `moving` stand between those
 * which know the old table only and those which know the new one only: they find what either has made, and what
 * they make both will find. User space copies the rest (k8sdatapath/node/resizing.py).
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1);
	__type(key, struct kd_tuple);
	__type(value, struct kd_ct);
} kd_conntrack_to SEC(".maps");

KD_CONFIG(bool, moving, "the flow table gets another size: flows are in kd_conntrack_to as well") = false;

/* As kd_ct_find(), where there is no room on the stack to tell of it. */
static __always_inline struct kd_ct *kd_ct_find_untold(const struct kd_tuple *tuple)
{
	struct kd_ct *ct = bpf_map_lookup_elem(&kd_conntrack, tuple);

	if (moving && !ct)
		ct = bpf_map_lookup_elem(&kd_conntrack_to, tuple);
	return ct;
}

static __always_inline struct kd_ct *kd_ct_find(const struct kd_tuple *tuple)
{
	KD_TRACE(KD_STEP_LOOKUP, 0, 0, tuple);
	return kd_ct_find_untold(tuple);
}

static __always_inline long kd_ct_put(const struct kd_tuple *tuple, const struct kd_ct *ct, __u64 flags)
{
	long failed = bpf_map_update_elem(&kd_conntrack, tuple, ct, flags);

	if (moving && !failed)
		bpf_map_update_elem(&kd_conntrack_to, tuple, ct, BPF_ANY);
	return failed;
}

static __always_inline void kd_ct_remove(const struct kd_tuple *tuple)
{
	bpf_map_delete_elem(&kd_conntrack, tuple);
	if (moving)
		bpf_map_delete_elem(&kd_conntrack_to, tuple);
}

/* Each entry, told to long callback(map, tuple, entry, context). For user space to ask for, not while it copies. */
#define kd_ct_each(callback, context) bpf_for_each_map_elem(&kd_conntrack, callback, context, 0)

#endif /* KD_MAPS_CONNTRACK_H */
