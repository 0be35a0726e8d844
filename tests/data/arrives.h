/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* A pod comes to an address, of the map `arrives`, between what policies are asked and the delivery. */
#ifndef ARRIVES_H
#define ARRIVES_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <kd/forward.h>

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4);
	__type(key, struct kd_addr);
	__type(value, struct kd_endpoint);
} arrives SEC(".maps");

static __always_inline void arrive(const struct kd_pkt *pkt)
{
	struct kd_endpoint *pod = bpf_map_lookup_elem(&arrives, &pkt->tuple.dst);

	if (pod)
		bpf_map_update_elem(&kd_endpoints, &pkt->tuple.dst, pod, BPF_ANY);
}

static __always_inline int arriving_forward(struct __sk_buff *skb, struct kd_pkt *pkt)
{
	arrive(pkt);
	return kd_forward(skb, pkt);
}

static __always_inline int arriving_leave_tunnel(struct __sk_buff *skb, const struct kd_pkt *pkt)
{
	arrive(pkt);
	return kd_leave_tunnel(skb, pkt);
}

#define kd_forward arriving_forward
#define kd_leave_tunnel arriving_leave_tunnel

#endif /* ARRIVES_H */
