/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Services: does this destination belong to one, and which backend gets a new connection?
 *
 * frontend -> service -> set -> slot -> backend. Reads kd_frontends, kd_sets, kd_slots, kd_backends; writes
 * nothing but the backend's count of flows, the frontend's turn in round robin, and kd_affinity for services that
 * keep clients. Four lookups, three of them in arrays, whatever the number of services. User space writes in an order that keeps every step of the way valid (see
 * kd/maps/services.h); a slot that names a row of another generation is refused all the same.
 */
#ifndef KD_SERVICE_H
#define KD_SERVICE_H

#include <asm/byteorder.h>
#include <stdbool.h>
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <kd/addr.h>
#include <kd/clock.h>
#include <kd/config.h>
#include <kd/trace.h>
#include <kd/types.h>
#include <kd/verdict.h>
#include <kd/maps/affinity.h>
#include <kd/maps/services.h>
#include <kd/maps/sources.h>

KD_CONFIG(struct kd_network, service_ipv4, "every address in it is a cluster IP, in use or not") = KD_NO_NETWORK;
KD_CONFIG(struct kd_network, service_ipv6, "every address in it is a cluster IP, in use or not") = KD_NO_NETWORK;

static __always_inline struct kd_frontend *kd_frontend_find(const struct kd_addr *addr, __be16 port,
							    __u8 protocol)
{
	struct kd_frontend_key key = { .addr = *addr, .port = port, .protocol = protocol };

	return bpf_map_lookup_elem(&kd_frontends, &key);
}

static __always_inline bool kd_is_cluster_ip(const struct kd_addr *addr)
{
	return kd_addr_in(addr, &service_ipv4) || kd_addr_in(addr, &service_ipv6);
}

/* The address belongs to services only: nobody behind us could answer there. */
static __always_inline bool kd_is_of_services(const struct kd_addr *addr)
{
	return kd_is_cluster_ip(addr) || kd_frontend_find(addr, 0, 0);
}

/*
 * No frontend is dialled here: nothing to us, unless the address belongs to services only. Clients of a cluster IP
 * are told, as those of a network of them are where there is none; strangers who knock at the rest are not.
 */
static __always_inline int kd_frontend_missing(const struct kd_addr *addr)
{
	struct kd_frontend *whole;

	if (kd_is_cluster_ip(addr))
		return KD_REJECT_NO_SERVICE;
	whole = kd_frontend_find(addr, 0, 0);
	if (!whole)
		return KD_PASS;
	return whole->kind == KD_CLUSTER_IP ? KD_REJECT_NO_SERVICE : KD_DROP_NO_SERVICE;
}

/*
 * Which set answers. A cluster IP asks internalTrafficPolicy; everything else externalTrafficPolicy, and that
 * of clients from outside only: the node and its pods are nobody whose address is to be kept.
 */
static __always_inline enum kd_scope kd_scope_of(const struct kd_frontend *frontend, bool outside)
{
	__u16 local = outside ? KD_FRONTEND_EXTERNAL_LOCAL : 0;

	if (frontend->kind == KD_CLUSTER_IP)
		local = KD_FRONTEND_INTERNAL_LOCAL;
	return frontend->flags & local ? KD_SCOPE_LOCAL : KD_SCOPE_CLUSTER;
}

/* Ranges restrict the load balancer's address only, for whoever asks. */
static __always_inline bool kd_has_sources(const struct kd_frontend *frontend)
{
	return frontend->kind == KD_LOAD_BALANCER && frontend->flags & KD_FRONTEND_SOURCE_RANGES;
}

static __always_inline bool kd_lets_in(const struct kd_frontend *frontend, const struct kd_addr *source)
{
	struct kd_source_key key = {
		.prefixlen = 8 * (sizeof(key.service) + sizeof(key.addr)),
		.service = frontend->service,
		.addr = *source,
	};

	return !kd_has_sources(frontend) || bpf_map_lookup_elem(&kd_sources, &key);
}

/* The row of this very backend; NULL when it serves another now. */
static __always_inline struct kd_backend *kd_backend_find(__u32 id)
{
	__u32 index = id & KD_BACKEND_INDEX_MASK;
	struct kd_backend *backend = bpf_map_lookup_elem(&kd_backends, &index);

	return backend && backend->id == id ? backend : NULL;
}

/*
 * Whether a flow that remembers this backend may stay with it: it still belongs to its service. A new flow
 * does not ask: the slot that names the backend was current a moment ago, and a row is not given to another
 * before every program that could have read the slot has ended.
 */
static __always_inline bool kd_backend_stays(__u32 id)
{
	struct kd_backend *backend = kd_backend_find(id);

	return backend && (backend->status & KD_BACKEND_STATE) != KD_BACKEND_FREE;
}

/*
 * A flow's number for Maglev: MurmurHash3_x86_32 with seed 0 over the 40 bytes of its struct kd_tuple
 * (addresses as 16 bytes, ports in network order, pads zero). The same on every node, of either byte
 * order, and easily said again elsewhere: slot = hash % count. With affinity the client's port is 0 in it, so
 * that all flows of a client have one number, whichever node they come to.
 */
static __always_inline __u32 kd_flow_hash(const struct kd_tuple *tuple)
{
	const __u32 *words = (const __u32 *)tuple;
	__u32 hash = 0;

#pragma unroll
	for (__u32 i = 0; i < sizeof(*tuple) / sizeof(*words); i++) {
		__u32 word = __le32_to_cpu(words[i]) * 0xcc9e2d51;

		word = (word << 15) | (word >> 17);
		hash ^= word * 0x1b873593;
		hash = (hash << 13) | (hash >> 19);
		hash = hash * 5 + 0xe6546b64;
	}
	hash ^= sizeof(*tuple);
	hash = (hash ^ (hash >> 16)) * 0x85ebca6b;
	hash = (hash ^ (hash >> 13)) * 0xc2b2ae35;
	return hash ^ (hash >> 16);
}

/* In one load, as user space writes it in one store: never an offset with another's count. */
static __always_inline struct kd_set kd_set_read(const struct kd_set *set)
{
	union {
		__u64 whole;
		struct kd_set set;
	} read = { .whole = *(const volatile __u64 *)set };

	return read.set;
}

/* The backend in the service's slot `number` % count, or in round robin the one whose turn it is. */
static __always_inline int kd_backend_pick(struct kd_frontend *frontend, enum kd_scope scope,
					   __u32 number, struct kd_backend **picked)
{
	__u32 index = kd_set_index(frontend->service, scope);
	struct kd_set *set = bpf_map_lookup_elem(&kd_sets, &index);
	struct kd_slots *slots;
	struct kd_set run;
	__u32 slot, block;

	if (!set)
		return KD_REJECT_NO_BACKEND;
	run = kd_set_read(set);
	if (!run.count) /* kube-proxy's difference: somebody else may serve, which a load balancer finds out */
		return frontend->flags & KD_FRONTEND_HAS_ENDPOINTS ? KD_DROP_NOT_LOCAL : KD_REJECT_NO_BACKEND;
	if (frontend->selection == KD_SELECT_ROUND_ROBIN)
		number = KD_EXPLAINING ? frontend->turn : __sync_fetch_and_add(&frontend->turn, 1);
	KD_TRACE(KD_STEP_SLOT, number % run.count, run.count, NULL);
	slot = run.offset + number % run.count;
	block = slot / KD_SLOTS_PER_BLOCK;
	slots = bpf_map_lookup_elem(&kd_slots, &block);
	if (!slots)
		return KD_DROP_STALE_SLOT;
	*picked = kd_backend_find(slots->backend[slot % KD_SLOTS_PER_BLOCK]);
	return *picked ? KD_CONTINUE : KD_DROP_STALE_SLOT;
}

/* The backend that the client had last time, if it may have it again. */
static __always_inline struct kd_backend *kd_backend_pinned(const struct kd_frontend *frontend,
							    enum kd_scope scope, __u32 now,
							    const struct kd_affinity_key *client,
							    struct kd_affinity *pin)
{
	__u8 wanted = KD_BACKEND_ACTIVE | KD_BACKEND_IN(scope);
	struct kd_backend *backend;

	/* Signed: another CPU may be a second ahead. */
	if ((__s32)(now - pin->last_seen) > (__s32)frontend->affinity_timeout)
		return NULL;
	backend = kd_backend_find(pin->backend);
	if (!backend || (backend->status & (KD_BACKEND_STATE | KD_BACKEND_IN(scope))) != wanted)
		return NULL;
	kd_affinity_seen(client, pin, now);
	return backend;
}

/*
 * The backend for a new flow of `client`, whose key lacks the service yet. A client of a service with affinity
 * gets the backend of its last flow, unless that is too long ago, or the backend is not one for new flows of this
 * scope any more.
 */
static __always_inline int kd_backend_choose(struct kd_frontend *frontend, enum kd_scope scope,
					     struct kd_affinity_key *client, __u32 number,
					     struct kd_backend **chosen)
{
	struct kd_affinity fresh = { .last_seen = kd_now() };
	struct kd_affinity *pin;
	int result;

	if (!frontend->affinity_timeout)
		return kd_backend_pick(frontend, scope, number, chosen);
	client->service = frontend->service;
	pin = kd_affinity_find(client);
	*chosen = pin ? kd_backend_pinned(frontend, scope, fresh.last_seen, client, pin) : NULL;
	KD_TRACE(KD_STEP_AFFINITY, *chosen != NULL, frontend->service, NULL);
	if (*chosen)
		return KD_CONTINUE;
	result = kd_backend_pick(frontend, scope, number, chosen);
	if (result != KD_CONTINUE)
		return result;
	fresh.backend = (*chosen)->id;
	kd_affinity_put(client, &fresh);
	return KD_CONTINUE;
}

static __always_inline void kd_backend_count(struct kd_backend *backend)
{
	if (!KD_EXPLAINING)
		__sync_fetch_and_add(&backend->flows, 1);
}

#endif /* KD_SERVICE_H */
