/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Which backend a client stays with, for services with session affinity. */
#ifndef KD_MAPS_AFFINITY_H
#define KD_MAPS_AFFINITY_H

#include <stddef.h>
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <kd/config.h>
#include <kd/types.h>
#include <kd/maps/moving.h>

/*
 * (service, client) -> backend. Writers: programs. Full: the client that was silent longest is forgotten. An
 * entry is checked whenever it is used, so none has to be taken away when a backend goes.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 65536);
	__type(key, struct kd_affinity_key);
	__type(value, struct kd_affinity);
} kd_affinity SEC(".maps");

/* While clients move, the table that they move to, as with flows (kd/maps/conntrack.h); only that none is removed. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1);
	__type(key, struct kd_affinity_key);
	__type(value, struct kd_affinity);
} kd_affinity_to SEC(".maps");

KD_SUBPROGRAM struct kd_affinity *kd_affinity_find_moving(const struct kd_affinity_key *client)
{
	enum kd_move move = kd_move();
	struct kd_affinity *old, *pin;

	if (move < KD_MOVE_TAKING)
		return bpf_map_lookup_elem(&kd_affinity, client);
	pin = bpf_map_lookup_elem(&kd_affinity_to, client);
	if (pin || move > KD_MOVE_TAKING)
		return pin;
	old = bpf_map_lookup_elem(&kd_affinity, client);
	if (!old)
		return NULL;
	bpf_map_update_elem(&kd_affinity_to, client, old, BPF_NOEXIST);
	return bpf_map_lookup_elem(&kd_affinity_to, client);
}

KD_SUBPROGRAM void kd_affinity_put_moving(const struct kd_affinity_key *client, const struct kd_affinity *pin)
{
	enum kd_move move = kd_move();

	if (move < KD_MOVE_TAKING)
		bpf_map_update_elem(&kd_affinity, client, pin, BPF_ANY);
	if (move > KD_MOVE_OLD)
		bpf_map_update_elem(&kd_affinity_to, client, pin, BPF_ANY);
}

static __always_inline struct kd_affinity *kd_affinity_find(const struct kd_affinity_key *client)
{
	return moving ? kd_affinity_find_moving(client) : bpf_map_lookup_elem(&kd_affinity, client);
}

static __always_inline void kd_affinity_put(const struct kd_affinity_key *client, const struct kd_affinity *pin)
{
	if (moving)
		kd_affinity_put_moving(client, pin);
	else
		bpf_map_update_elem(&kd_affinity, client, pin, BPF_ANY);
}

/* The client has come again. */
static __always_inline void kd_affinity_seen(const struct kd_affinity_key *client, struct kd_affinity *pin, __u32 now)
{
	struct kd_affinity *twin;

	pin->last_seen = now;
	twin = moving ? bpf_map_lookup_elem(&kd_affinity_to, client) : NULL;
	if (twin)
		twin->last_seen = now;
}

#endif /* KD_MAPS_AFFINITY_H */
