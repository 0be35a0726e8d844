/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Flows that were still alive when the full flow table forgot them, as far as their packets tell. The kernel says
 * nothing when it makes room, and what is forgotten of flows that are over does no harm: so it is counted where a
 * packet meets the gap, and while no flow is lost this costs nothing. Not seen: a flow of datagrams that lost both its
 * directions looks like a new one. Seen as lost: a connection that is older than the table.
 */
#ifndef KD_MAPS_LOSSES_H
#define KD_MAPS_LOSSES_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

enum kd_loss {
	KD_LOSS_HALF = 0, /* one direction; the other had it made again, and the flow goes on as it was */
	KD_LOSS_FLOW = 1, /* the client's or both: begun anew, by a segment, or by a datagram that finds the other one */
	KD_LOSSES,
};

/* enum kd_loss -> how often, per CPU. Written by kd_lost() only. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, KD_LOSSES);
	__type(key, __u32);
	__type(value, __u64);
} kd_losses SEC(".maps");

static const volatile __u32 kd_loss_keys[KD_LOSSES] = { KD_LOSS_HALF, KD_LOSS_FLOW };

/* The key takes no room on the stack, which is scarce. */
static __always_inline void kd_lost(enum kd_loss loss)
{
	__u64 *count = bpf_map_lookup_elem(&kd_losses, (const void *)&kd_loss_keys[loss]);

	if (count)
		++*count;
}

#endif /* KD_MAPS_LOSSES_H */
