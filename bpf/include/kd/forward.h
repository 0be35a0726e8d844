/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Forwarding a packet to where it is addressed now, past the node's stack: straight into a pod of this node, into
 * the tunnel to one of another node, else out of the device that the node's routes name. What this cannot settle
 * (no route, forwarding off, local delivery, a packet at the end of its life) is left to the stack, unchanged, which
 * knows what to answer. So it does if a packet is too big, unless it was sent under the node's own name: kd/too_big.h.
 *
 * Reads kd_endpoints, kd_peers and the node's routes and neighbours. Assumes a tc ingress hook: only there can a
 * packet be put into a pod directly.
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
#include <kd/scene.h>
#include <kd/types.h>
#include <kd/verdict.h>
#include <kd/maps/endpoints.h>
#include <kd/maps/peers.h>

KD_CONFIG(bool, redirect, "hand translated packets to their device directly, past the node's stack") = true;
KD_CONFIG(__u32, tunnel_device, "number of the device that leads to pods of other nodes; 0: there is none") = 0;

/*
 * In tc_index: policies were asked about both ends, and the receiver is behind this device, or is no pod of this node.
 * It is wiped before anybody else sees it.
 */
#define KD_JUDGED 0x8000
#define KD_JUDGED_FOR_NOBODY 2 /* kd_known_pod() is 1 */

static __always_inline __u16 kd_judged_for(__u32 ifindex)
{
	return KD_JUDGED | (ifindex & ~KD_JUDGED);
}

struct kd_macs {
	__u8 dst[ETH_ALEN];
	__u8 src[ETH_ALEN];
};

/* One hop less, written in place: a helper each costs more than all of it. */
static __always_inline int kd_decrement_ttl(struct __sk_buff *skb, const struct kd_pkt *pkt)
{
	struct ipv6hdr *ip6;
	struct iphdr *ip;
	__u32 check;

	if (pkt->ipv6) {
		ip6 = kd_bytes(skb, ETH_HLEN, sizeof(*ip6));
		if (!ip6)
			return KD_DROP_REWRITE;
		ip6->hop_limit = pkt->ttl - 1;
		return 0;
	}
	ip = kd_bytes(skb, ETH_HLEN, sizeof(*ip));
	if (!ip)
		return KD_DROP_REWRITE;
	check = ip->check + bpf_htons(0x0100); /* the TTL is the first byte of a word that is one less */
	ip->check = check + (check >= 0xffff);
	ip->ttl = pkt->ttl - 1;
	return 0;
}

/* To the next hop. */
static __always_inline int kd_hop(struct __sk_buff *skb, const struct kd_pkt *pkt, const struct kd_macs *macs)
{
	struct kd_macs *eth;

	if (kd_decrement_ttl(skb, pkt))
		return KD_DROP_REWRITE;
	eth = kd_bytes(skb, 0, ETH_HLEN);
	if (!eth)
		return KD_DROP_REWRITE;
	*eth = *macs;
	return 0;
}

/*
 * Policies were asked about another receiver, or none: a pod has come to the address since. The stack leads there as
 * well, and to_pod asks; but it knows nothing of a tunnel.
 */
static __always_inline bool kd_is_not_for(const struct __sk_buff *skb, const struct kd_endpoint *pod)
{
	return skb->tc_index >= KD_JUDGED_FOR_NOBODY && skb->tc_index != kd_judged_for(pod->ifindex);
}

static __always_inline int kd_forward_to_pod(struct __sk_buff *skb, const struct kd_pkt *pkt,
					     const struct kd_endpoint *pod)
{
	struct kd_macs macs;

	if (kd_is_not_for(skb, pod))
		return pkt->tunnelled ? KD_DROP_POLICY_DENIED : KD_TO_STACK;
	__builtin_memcpy(macs.dst, pod->pod_mac, ETH_ALEN);
	__builtin_memcpy(macs.src, pod->host_mac, ETH_ALEN);
	if (kd_hop(skb, pkt, &macs))
		return KD_DROP_REWRITE;
	if (skb->pkt_type != PACKET_HOST) /* heard on a bridge port: the pod would take it for somebody else's */
		bpf_skb_change_type(skb, PACKET_HOST);
	skb->tc_index = 0;
	kd_scene_to(pod);
	KD_TRACE(KD_STEP_POD, 0, pod->ifindex, NULL);
	bpf_redirect_peer(pod->ifindex, 0);
	return KD_TO_POD;
}

/* How long a packet is to its way; one that is to be cut into segments as long as each of these, 0: not known. */
static __always_inline __u16 kd_length(struct __sk_buff *skb, const struct kd_pkt *pkt)
{
	__u32 header = pkt->l4_off - ETH_HLEN;
	__u8 words;

	if (!skb->gso_size)
		return pkt->end - ETH_HLEN;
	if (pkt->tuple.protocol == IPPROTO_UDP)
		return header + sizeof(struct udphdr) + skb->gso_size;
	if (pkt->tuple.protocol != IPPROTO_TCP || bpf_skb_load_bytes(skb, pkt->l4_off + KD_TCP_WORDS, &words, 1))
		return 0;
	return header + (words >> 4) * 4 + skb->gso_size;
}

/*
 * `ctx` is the program's own, whatever its kind; the packet came in through `ifindex`. If `fib` has its length, that is
 * held against what its way lets through.
 */
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
	if (kd_hop(skb, pkt, &macs))
		return KD_DROP_REWRITE;
	bpf_redirect(fib->ifindex, 0);
	return KD_TO_DEVICE;
}

/* Whether a device takes the packet; of one that is to be segmented, the segments. */
static __always_inline bool kd_fits(struct __sk_buff *skb, __u32 device, struct kd_pkt *pkt)
{
	__u32 mtu = 0;

	if (!bpf_check_mtu(skb, device, &mtu, 0, BPF_MTU_CHK_SEGS))
		return true;
	pkt->mtu = mtu;
	return false;
}

KD_SUBPROGRAM int kd_forward_by_route(struct __sk_buff *skb, struct kd_pkt *pkt)
{
	struct bpf_fib_lookup fib = { .tot_len = kd_length(skb, pkt) };
	long found = kd_route(skb, skb->ifindex, pkt, &fib);

	KD_TRACE(KD_STEP_ROUTE, found, fib.ifindex, NULL);
	if (found == BPF_FIB_LKUP_RET_FRAG_NEEDED) {
		pkt->mtu = fib.mtu_result;
		return KD_TOO_BIG;
	}
	if (found != BPF_FIB_LKUP_RET_SUCCESS && found != BPF_FIB_LKUP_RET_NO_NEIGH)
		return KD_TO_STACK;
	if (skb->gso_size && !kd_fits(skb, fib.ifindex, pkt))
		return KD_TOO_BIG;
	if (found == BPF_FIB_LKUP_RET_NO_NEIGH)
		return kd_forward_to_neighbour(skb, pkt, &fib);
	return kd_send(skb, pkt, &fib);
}

/* Of whom a packet is that leaves this node. */
static __always_inline __u32 kd_identity_of(const struct __sk_buff *skb, const struct kd_addr *src)
{
	struct kd_endpoint *pod = bpf_map_lookup_elem(&kd_endpoints, src);

	if (pod)
		return pod->identity;
	return skb->ingress_ifindex ? KD_IDENTITY_WORLD : KD_IDENTITY_HOST;
}

/* The node whose pod an address is; NULL: none that there is a tunnel to. */
static __always_inline struct kd_peer *kd_peer_of(const struct kd_addr *addr)
{
	struct kd_peer_key key = { .prefixlen = 8 * sizeof(key.addr), .addr = *addr };

	return bpf_map_lookup_elem(&kd_peers, &key);
}

/* Into the tunnel, whose own program looks up where to. PASS: the destination is behind none. */
KD_SUBPROGRAM int kd_forward_to_peer(struct __sk_buff *skb, struct kd_pkt *pkt)
{
	struct kd_peer *peer = kd_peer_of(&pkt->tuple.dst);

	if (!peer)
		return KD_PASS;
	KD_TRACE(KD_STEP_PEER, kd_identity_of(skb, &pkt->tuple.src), tunnel_device,
		 &(struct kd_tuple){ .src = pkt->tuple.src, .dst = peer->node });
	if (!kd_fits(skb, tunnel_device, pkt))
		return KD_TOO_BIG;
	if (kd_decrement_ttl(skb, pkt))
		return KD_DROP_REWRITE;
	bpf_redirect(tunnel_device, 0);
	return KD_TO_DEVICE;
}

/* A packet that was translated. */
static __always_inline int kd_forward(struct __sk_buff *skb, struct kd_pkt *pkt)
{
	struct kd_endpoint *pod;
	int result = KD_PASS;

	if (!redirect || pkt->ttl <= 1)
		return KD_TO_STACK;
	pod = bpf_map_lookup_elem(&kd_endpoints, &pkt->tuple.dst);
	if (pod)
		return kd_forward_to_pod(skb, pkt, pod);
	if (tunnel_device)
		result = kd_forward_to_peer(skb, pkt);
	return result == KD_PASS ? kd_forward_by_route(skb, pkt) : result;
}

/*
 * A packet that nothing was to be done with is the stack's, unless it is between pods of two nodes: then the tunnel's
 * two ends are all that it meets.
 */
static __always_inline int kd_enter_tunnel(struct __sk_buff *skb, struct kd_pkt *pkt)
{
	int result = KD_PASS;

	if (tunnel_device && redirect && pkt->ttl > 1)
		result = kd_forward_to_peer(skb, pkt);
	return result == KD_TOO_BIG ? KD_PASS : result;
}

/* And at the other end. */
static __always_inline int kd_leave_tunnel(struct __sk_buff *skb, const struct kd_pkt *pkt)
{
	struct kd_endpoint *pod = NULL;

	if (redirect && pkt->ttl > 1)
		pod = bpf_map_lookup_elem(&kd_endpoints, &pkt->tuple.dst);
	return pod ? kd_forward_to_pod(skb, pkt, pod) : KD_PASS;
}

#endif /* KD_FORWARD_H */
