// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * Has flows and clients taken over by the tables that they move to (kd/maps/moving.h), some at a time. Never attached:
 * user space writes keys, up to an empty one, and runs a program (k8sdatapath/datapath/flow_move.py).
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <kd/types.h>
#include <kd/maps/affinity.h>
#include <kd/maps/conntrack.h>

#define KD_MOVED_AT_ONCE 512 /* no packet comes in on this CPU meanwhile: half a millisecond */

char _license[] SEC("license") = "Dual BSD/GPL";

/* Keys in kd_conntrack, or of marks in kd_conntrack_to. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, KD_MOVED_AT_ONCE);
	__type(key, __u32);
	__type(value, struct kd_tuple);
} kd_move_flows SEC(".maps");

/* Keys in kd_affinity. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, KD_MOVED_AT_ONCE);
	__type(key, __u32);
	__type(value, struct kd_affinity_key);
} kd_move_clients SEC(".maps");

static long kd_move_flow(__u64 step, __attribute__((unused)) void *context)
{
	__u32 index = step;
	struct kd_tuple *tuple = bpf_map_lookup_elem(&kd_move_flows, &index);

	if (!tuple || !tuple->protocol)
		return 1;
	kd_ct_settle(tuple);
	return 0;
}

static long kd_move_client(__u64 step, __attribute__((unused)) void *context)
{
	__u32 index = step;
	struct kd_affinity_key *client = bpf_map_lookup_elem(&kd_move_clients, &index);

	if (!client || !(client->client.w[0] | client->client.w[1] | client->client.w[2] | client->client.w[3]))
		return 1;
	kd_affinity_find_moving(client);
	return 0;
}

/* The new table takes over what it lacks; or, when nothing is looked for in the old one any more, loses its marks. */
SEC("tc")
int move_flows(__attribute__((unused)) struct __sk_buff *skb)
{
	return bpf_loop(KD_MOVED_AT_ONCE, kd_move_flow, NULL, 0);
}

SEC("tc")
int move_clients(__attribute__((unused)) struct __sk_buff *skb)
{
	return bpf_loop(KD_MOVED_AT_ONCE, kd_move_client, NULL, 0);
}
