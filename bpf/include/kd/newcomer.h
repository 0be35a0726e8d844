/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Pods of this node that nobody has told of yet. A pod may send as soon as it has a device, which is before anything
 * can know of that; but its address is of the networks that are for pods of this node, and nobody is known to have it.
 * So it is cut off wherever a device of ours is met: what it sends at uplinks, the tunnel and devices of pods, and what
 * it is sent where policies are asked, and at uplinks. Without such networks nobody is taken for one.
 *
 * Reads kd_pod_networks, kd_endpoints and kd_ipcache.
 */
#ifndef KD_NEWCOMER_H
#define KD_NEWCOMER_H

#include <stdbool.h>
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <kd/addr.h>
#include <kd/enforce.h>
#include <kd/packet.h>
#include <kd/types.h>
#include <kd/maps/endpoints.h>
#include <kd/maps/pod_networks.h>
#include <kd/maps/policy.h>

/* In tc_index: the device of a pod that is known has sent it, under one of its addresses. */
static __always_inline __u16 kd_known_pod(void)
{
	return enforce ? 1 : 0;
}

static __always_inline bool kd_is_of_pods(const struct kd_addr *addr)
{
	const struct kd_network *network;
	__u32 family = !kd_is_v4(addr);

	if (!enforce)
		return false;
	network = bpf_map_lookup_elem(&kd_pod_networks, &family);
	return network && kd_addr_in(addr, network) && network->mask.w[0];
}

/* Whose identity is known is none: the node itself, or a pod of another one, which has an address from here. */
static __always_inline bool kd_is_newcomer(const struct kd_addr *addr)
{
	return kd_is_of_pods(addr) && !bpf_map_lookup_elem(&kd_endpoints, addr) &&
	       !bpf_map_lookup_elem(&kd_ipcache, addr);
}

/*
 * The node forwards what a newcomer has sent. It may have the address of a pod whose device has gone, which is not
 * forgotten yet.
 */
static __always_inline bool kd_is_from_newcomer(const struct __sk_buff *skb, const struct kd_pkt *pkt)
{
	const struct kd_addr *src = &pkt->tuple.src;

	if (!skb->ingress_ifindex || !kd_is_of_pods(src))
		return false;
	if (bpf_map_lookup_elem(&kd_endpoints, src))
		return !skb->tc_index;
	return !bpf_map_lookup_elem(&kd_ipcache, src);
}

#endif /* KD_NEWCOMER_H */
