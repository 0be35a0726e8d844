/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Forwarding a packet to where it is addressed now, past the node's stack: straight into a pod of this node,
 * else out of the device that the node's routes name. What this cannot settle (no route, forwarding off,
 * local delivery, a packet too big or at the end of its life) is left to the stack, unchanged, which knows
 * what to answer.
 *
 * Reads kd_endpoints and the node's routes and neighbours. Assumes a tc ingress hook: only there can a packet
 * be put into a pod directly.
 */
#ifndef KD_FORWARD_H
#define KD_FORWARD_H

#include <stddef.h>
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include <kd/addr.h>
#include <kd/config.h>
#include <kd/packet.h>
#include <kd/types.h>
#include <kd/verdict.h>
#include <kd/maps/endpoints.h>

KD_CONFIG(bool, redirect, "hand translated packets to their device directly, past the node's stack") = true;

#define KD_AF_INET 2
#define KD_AF_INET6 10

struct kd_macs {
	__u8 dst[ETH_ALEN];
	__u8 src[ETH_ALEN];
};

static __always_inline int kd_decrement_ttl(struct __sk_buff *skb, const struct kd_pkt *pkt)
{
	__u8 ttl = pkt->ttl - 1;

	if (pkt->ipv6)
		return bpf_skb_store_bytes(skb, ETH_HLEN + offsetof(struct ipv6hdr, hop_limit), &ttl, 1, 0);
	/* The checksum sums 16-bit words, of which the TTL is the first byte. */
	if (bpf_l3_csum_replace(skb, ETH_HLEN + offsetof(struct iphdr, check), bpf_htons(pkt->ttl << 8),
				bpf_htons(ttl << 8), sizeof(__be16)))
		return KD_DROP_REWRITE;
	return bpf_skb_store_bytes(skb, ETH_HLEN + offsetof(struct iphdr, ttl), &ttl, 1, 0);
}

static __always_inline int kd_forward_to_pod(struct __sk_buff *skb, const struct kd_pkt *pkt,
					     const struct kd_endpoint *pod)
{
	struct kd_macs macs;

	__builtin_memcpy(macs.dst, pod->pod_mac, ETH_ALEN);
	__builtin_memcpy(macs.src, pod->host_mac, ETH_ALEN);
	if (kd_decrement_ttl(skb, pkt) || bpf_skb_store_bytes(skb, 0, &macs, sizeof(macs), 0))
		return KD_DROP_REWRITE;
	if (skb->pkt_type != PACKET_HOST) /* heard on a bridge port: the pod would take it for somebody else's */
		bpf_skb_change_type(skb, PACKET_HOST);
	KD_TRACE(KD_STEP_POD, 0, pod->ifindex, NULL);
	bpf_redirect_peer(pod->ifindex, 0);
	return KD_TO_POD;
}

/* `ctx` is the program's own, whatever its kind; the packet came in through `ifindex`. */
static __always_inline long kd_route(void *ctx, __u32 ifindex, const struct kd_pkt *pkt,
				     struct bpf_fib_lookup *fib)
{
	const struct kd_tuple *tuple = &pkt->tuple;

	fib->family = pkt->ipv6 ? KD_AF_INET6 : KD_AF_INET;
	fib->l4_protocol = tuple->protocol;
	fib->sport = tuple->sport;
	fib->dport = tuple->dport;
	fib->ifindex = ifindex;
	if (pkt->ipv6) {
		__builtin_memcpy(fib->ipv6_src, &tuple->src, sizeof(tuple->src));
		__builtin_memcpy(fib->ipv6_dst, &tuple->dst, sizeof(tuple->dst));
	} else {
		fib->ipv4_src = tuple->src.w[3];
		fib->ipv4_dst = tuple->dst.w[3];
	}
	return bpf_fib_lookup(ctx, fib, sizeof(*fib), 0);
}

/* The route has a next hop whose MAC the node does not know: the kernel asks for it and sends then. */
static __always_inline int kd_forward_to_neighbour(struct __sk_buff *skb, const struct kd_pkt *pkt,
						   const struct bpf_fib_lookup *fib)
{
	struct bpf_redir_neigh next_hop = { .nh_family = fib->family };

	__builtin_memcpy(next_hop.ipv6_nh, fib->ipv6_dst, sizeof(next_hop.ipv6_nh));
	if (kd_decrement_ttl(skb, pkt))
		return KD_DROP_REWRITE;
	bpf_redirect_neigh(fib->ifindex, &next_hop, sizeof(next_hop), 0);
	return KD_TO_DEVICE;
}

/* Along a route whose next hop is known. */
static __always_inline int kd_send(struct __sk_buff *skb, const struct kd_pkt *pkt,
				   const struct bpf_fib_lookup *fib)
{
	struct kd_macs macs;

	__builtin_memcpy(macs.dst, fib->dmac, ETH_ALEN);
	__builtin_memcpy(macs.src, fib->smac, ETH_ALEN);
	if (kd_decrement_ttl(skb, pkt) || bpf_skb_store_bytes(skb, 0, &macs, sizeof(macs), 0))
		return KD_DROP_REWRITE;
	bpf_redirect(fib->ifindex, 0);
	return KD_TO_DEVICE;
}

KD_SUBPROGRAM int kd_forward_by_route(struct __sk_buff *skb, const struct kd_pkt *pkt)
{
	struct bpf_fib_lookup fib = {}; /* tot_len stays 0: what gets segmented may be longer than the MTU */
	long found = kd_route(skb, skb->ifindex, pkt, &fib);

	KD_TRACE(KD_STEP_ROUTE, found, fib.ifindex, NULL);
	if (found == BPF_FIB_LKUP_RET_NO_NEIGH)
		return kd_forward_to_neighbour(skb, pkt, &fib);
	if (found != BPF_FIB_LKUP_RET_SUCCESS)
		return KD_TO_STACK;
	return kd_send(skb, pkt, &fib);
}

static __always_inline int kd_forward(struct __sk_buff *skb, const struct kd_pkt *pkt)
{
	struct kd_endpoint *pod;

	if (!redirect || pkt->ttl <= 1)
		return KD_TO_STACK;
	pod = bpf_map_lookup_elem(&kd_endpoints, &pkt->tuple.dst);
	if (pod)
		return kd_forward_to_pod(skb, pkt, pod);
	return kd_forward_by_route(skb, pkt);
}

#endif /* KD_FORWARD_H */
