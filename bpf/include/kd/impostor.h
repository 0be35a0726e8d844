/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Who speaks from outside under the address of a pod. Policies know pods by their addresses, so nobody else may.
 *
 * A pod of this node is never outside. A pod of another node is where the network is routed; there the routers have to
 * see to it. Where pods meet through a tunnel, what comes for a pod of this node comes through that.
 *
 * Reads kd_endpoints and kd_ipcache.
 */
#ifndef KD_IMPOSTOR_H
#define KD_IMPOSTOR_H

#include <stdbool.h>
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <kd/enforce.h>
#include <kd/overlay.h>
#include <kd/packet.h>
#include <kd/rules.h>
#include <kd/types.h>
#include <kd/maps/endpoints.h>
#include <kd/maps/policy.h>

static __always_inline bool kd_is_impostor(const struct kd_pkt *pkt)
{
	struct kd_party *party;

	if (!enforce)
		return false;
	if (bpf_map_lookup_elem(&kd_endpoints, &pkt->tuple.src))
		return true;
	if (!tunnel_device || !bpf_map_lookup_elem(&kd_endpoints, &pkt->tuple.dst))
		return false;
	party = bpf_map_lookup_elem(&kd_ipcache, &pkt->tuple.src);
	return party && kd_is_pod_identity(party->identity);
}

#endif /* KD_IMPOSTOR_H */
