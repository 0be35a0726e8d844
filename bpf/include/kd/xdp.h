/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Flows that only pass through this node, continued before the kernel has made a socket buffer of their
 * packets: a client elsewhere, a backend elsewhere, and back out of the device that they came in through.
 *
 * Nothing is decided here. A packet is continued if its flow is in kd_conntrack, the tuple it becomes is not
 * of this node, and the way there is known. All else (new flows, pods of this node, other devices, fragments,
 * options, whatever is odd) passes untouched to the program at tc, which settles it as if this one were not
 * there.
 *
 * Reads and writes kd_conntrack as kd/conntrack.h does; reads kd_endpoints and the node's routes and
 * neighbours. Headers are read and written in place.
 */
#ifndef KD_XDP_H
#define KD_XDP_H

#include <stdbool.h>
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/tcp.h>
#include <linux/udp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include <kd/addr.h>
#include <kd/conntrack.h>
#include <kd/event.h>
#include <kd/forward.h>
#include <kd/packet.h>
#include <kd/rewrite.h>
#include <kd/types.h>
#include <kd/verdict.h>
#include <kd/maps/conntrack.h>
#include <kd/maps/endpoints.h>

/* `len` bytes at `off`; NULL: the packet has no such bytes, or not in one piece with its start. */
static __always_inline void *kd_xdp_bytes(struct xdp_md *ctx, __u32 off, __u32 len)
{
	void *at = (void *)(long)ctx->data + off;

	return at + len <= (void *)(long)ctx->data_end ? at : NULL;
}

/* The first `len` bytes of the TCP or UDP header. */
static __always_inline void *kd_xdp_l4(struct xdp_md *ctx, const struct kd_pkt *pkt, __u32 len)
{
	__u32 off = pkt->l4_off;

	asm volatile("%0 &= 127" : "+r"(off)); /* it is 34 or 54, which the verifier forgets */
	return kd_xdp_bytes(ctx, off, len);
}

static __always_inline bool kd_xdp_parse_ipv4(struct xdp_md *ctx, struct kd_pkt *pkt, __u32 *length)
{
	struct iphdr *ip = kd_xdp_bytes(ctx, ETH_HLEN, sizeof(*ip));

	if (!ip || ip->version != 4 || ip->ihl != 5 || ip->frag_off & bpf_htons(KD_IP_FRAGMENT))
		return false;
	*length = bpf_ntohs(ip->tot_len);
	pkt->l4_off = ETH_HLEN + sizeof(*ip);
	pkt->ttl = ip->ttl;
	pkt->tuple.protocol = ip->protocol;
	kd_addr_set_v4(&pkt->tuple.src, ip->saddr);
	kd_addr_set_v4(&pkt->tuple.dst, ip->daddr);
	return true;
}

static __always_inline bool kd_xdp_parse_ipv6(struct xdp_md *ctx, struct kd_pkt *pkt, __u32 *length)
{
	struct ipv6hdr *ip = kd_xdp_bytes(ctx, ETH_HLEN, sizeof(*ip));

	if (!ip || ip->version != 6)
		return false;
	*length = sizeof(*ip) + bpf_ntohs(ip->payload_len);
	pkt->ipv6 = true;
	pkt->l4_off = ETH_HLEN + sizeof(*ip);
	pkt->ttl = ip->hop_limit;
	pkt->tuple.protocol = ip->nexthdr;
	kd_addr_set_v6(&pkt->tuple.src, &ip->saddr);
	kd_addr_set_v6(&pkt->tuple.dst, &ip->daddr);
	return true;
}

/* The ports, which TCP and UDP have in the same place, and TCP's flags. */
static __always_inline bool kd_xdp_parse_l4(struct xdp_md *ctx, struct kd_pkt *pkt, __u32 length)
{
	bool tcp = pkt->tuple.protocol == IPPROTO_TCP;
	__u32 needed = tcp ? sizeof(struct tcphdr) : sizeof(struct udphdr);
	struct udphdr *udp = kd_xdp_l4(ctx, pkt, sizeof(*udp));
	__u8 *whole = kd_xdp_l4(ctx, pkt, sizeof(struct tcphdr));

	if (!udp || (!tcp && pkt->tuple.protocol != IPPROTO_UDP) || ETH_HLEN + length < pkt->l4_off + needed)
		return false;
	pkt->tuple.sport = udp->source;
	pkt->tuple.dport = udp->dest;
	if (!tcp)
		return true;
	if (!whole)
		return false;
	pkt->tcp_flags = whole[13];
	return true;
}

/* False: not a plain TCP or UDP packet that is all there. `length` is that of the IP packet. */
static __always_inline bool kd_xdp_parse(struct xdp_md *ctx, struct kd_pkt *pkt, __u32 *length)
{
	struct ethhdr *eth = kd_xdp_bytes(ctx, 0, sizeof(*eth));
	bool ip = false;

	if (eth && eth->h_proto == bpf_htons(ETH_P_IP))
		ip = kd_xdp_parse_ipv4(ctx, pkt, length);
	else if (eth && eth->h_proto == bpf_htons(ETH_P_IPV6))
		ip = kd_xdp_parse_ipv6(ctx, pkt, length);
	return ip && ctx->data_end - ctx->data >= ETH_HLEN + *length && kd_xdp_parse_l4(ctx, pkt, *length);
}

/* A checksum after what it sums has grown by `diff`. */
static __always_inline __sum16 kd_csum_add(__sum16 check, __u64 diff)
{
	__u64 sum = (__u16)~check + (diff & 0xffffffff) + (diff >> 32);

#pragma unroll
	for (int i = 0; i < 3; i++)
		sum = (sum & 0xffff) + (sum >> 16);
	return ~sum;
}

static __always_inline int kd_xdp_rewrite_l4(struct xdp_md *ctx, const struct kd_pkt *pkt,
					     const struct kd_tuple *to, __u32 diff)
{
	__u64 all = (__u64)diff + (__u32)~kd_ports(&pkt->tuple) + kd_ports(to);
	struct tcphdr *tcp = kd_xdp_l4(ctx, pkt, sizeof(*tcp));
	struct udphdr *udp = kd_xdp_l4(ctx, pkt, sizeof(*udp));

	if (pkt->tuple.protocol == IPPROTO_TCP) {
		if (!tcp)
			return KD_DROP_REWRITE;
		tcp->source = to->sport;
		tcp->dest = to->dport;
		tcp->check = kd_csum_add(tcp->check, all);
		return KD_CONTINUE;
	}
	if (!udp)
		return KD_DROP_REWRITE;
	udp->source = to->sport;
	udp->dest = to->dport;
	if (udp->check) /* 0 means "none" in UDP; a sum of 0 is written as its other form */
		udp->check = kd_csum_add(udp->check, all) ?: 0xffff;
	return KD_CONTINUE;
}

static __always_inline int kd_xdp_rewrite_ipv4(struct xdp_md *ctx, const struct kd_tuple *to, __u32 diff)
{
	struct iphdr *ip = kd_xdp_bytes(ctx, ETH_HLEN, sizeof(*ip));

	if (!ip)
		return KD_DROP_REWRITE;
	/* The checksum sums 16-bit words, of which the TTL is the first byte: one less. */
	ip->check = kd_csum_add(ip->check, (__u64)diff + (__u16)~bpf_htons(1 << 8));
	ip->ttl--;
	ip->saddr = to->src.w[3];
	ip->daddr = to->dst.w[3];
	return KD_CONTINUE;
}

static __always_inline int kd_xdp_rewrite_ipv6(struct xdp_md *ctx, const struct kd_tuple *to)
{
	struct ipv6hdr *ip = kd_xdp_bytes(ctx, ETH_HLEN, sizeof(*ip));

	if (!ip)
		return KD_DROP_REWRITE;
	ip->hop_limit--;
	__builtin_memcpy(&ip->saddr, &to->src, sizeof(to->src));
	__builtin_memcpy(&ip->daddr, &to->dst, sizeof(to->dst));
	return KD_CONTINUE;
}

static __always_inline int kd_xdp_rewrite(struct xdp_md *ctx, const struct kd_pkt *pkt,
					  const struct kd_tuple *to, const struct bpf_fib_lookup *fib)
{
	struct ethhdr *eth = kd_xdp_bytes(ctx, 0, sizeof(*eth));
	__u32 diff = kd_addrs_diff(&pkt->tuple, to);

	if (!eth || (pkt->ipv6 ? kd_xdp_rewrite_ipv6(ctx, to) : kd_xdp_rewrite_ipv4(ctx, to, diff)) ||
	    kd_xdp_rewrite_l4(ctx, pkt, to, diff))
		return KD_DROP_REWRITE;
	__builtin_memcpy(eth->h_dest, fib->dmac, ETH_ALEN);
	__builtin_memcpy(eth->h_source, fib->smac, ETH_ALEN);
	return KD_TO_DEVICE;
}

static __always_inline bool kd_mac_equal(const __u8 *a, const __u8 *b)
{
	const __u16 *x = (const __u16 *)a, *y = (const __u16 *)b;

	return !((x[0] ^ y[0]) | (x[1] ^ y[1]) | (x[2] ^ y[2]));
}

/* Whether the way to there is known and leads out of this device, which the packet was meant for. */
static __always_inline bool kd_xdp_route(struct xdp_md *ctx, const struct kd_pkt *pkt, __u32 length,
					 const struct kd_tuple *to, struct bpf_fib_lookup *fib)
{
	struct ethhdr *eth = kd_xdp_bytes(ctx, 0, sizeof(*eth));
	__u32 ifindex = ctx->ingress_ifindex;
	struct kd_pkt after = *pkt;

	after.tuple = *to;
	fib->tot_len = length;
	return eth && kd_route(ctx, ifindex, &after, fib) == BPF_FIB_LKUP_RET_SUCCESS &&
	       fib->ifindex == ifindex && kd_mac_equal(eth->h_dest, fib->smac);
}

/* What the event says of a packet that was continued, or could not be. */
static __always_inline void kd_xdp_tell(struct xdp_md *ctx, const struct kd_pkt *pkt, const struct kd_tuple *to,
					int result)
{
	struct kd_scene *scene = events ? kd_scene_of_cpu() : NULL;

	if (!scene)
		return;
	kd_event_ends(scene, &scene->before, to);
	scene->event.protocol = to->protocol;
	scene->event.result = result;
	scene->event.point = KD_AT_DRIVER;
	scene->event.ifindex = ctx->ingress_ifindex;
	scene->told = 0;
	scene->event.ttl = pkt->ttl;
	scene->event.state = pkt->reply ? KD_STATE_REPLY : KD_STATE_UNKNOWN;
	scene->event.icmp_type = 0;
	scene->event.icmp_code = 0;
	scene->event.time = 0;
	if (kd_event_due(scene))
		kd_event_tell(scene);
}

static __always_inline int kd_xdp_continue(struct xdp_md *ctx)
{
	struct bpf_fib_lookup fib = {};
	struct kd_endpoint *pod;
	struct kd_pkt pkt = {};
	struct kd_tuple to __attribute__((aligned(8)));
	struct kd_ct *ct;
	__u32 length = 0;
	int result;

	if (!redirect || !kd_xdp_parse(ctx, &pkt, &length) || pkt.ttl <= 1) {
		KD_TRACE(KD_STEP_LEFT, KD_LEFT_ODD, 0, NULL);
		return KD_PASS;
	}
	KD_TRACE(KD_STEP_PACKET, pkt.tcp_flags, true, &pkt.tuple);
	ct = kd_ct_find(&pkt.tuple);
	if (!ct || kd_ct_over(&pkt, ct)) {
		KD_TRACE(ct ? KD_STEP_OVER : KD_STEP_NO_FLOW, 0, 0, NULL);
		return KD_PASS;
	}
	to = ct->to;
	KD_TRACE(KD_STEP_FLOW, ct->flags, ct->backend, &to);
	pod = bpf_map_lookup_elem(&kd_endpoints, &to.dst);
	if (pod) {
		KD_TRACE(KD_STEP_POD, 0, pod->ifindex, NULL);
		return KD_PASS;
	}
	if (!kd_xdp_route(ctx, &pkt, length, &to, &fib)) {
		KD_TRACE(KD_STEP_LEFT, KD_LEFT_ROUTE, 0, NULL);
		return KD_PASS;
	}
	kd_scene_begin(&pkt.tuple, pkt.tcp_flags, ETH_HLEN + length);
	kd_ct_touch(&pkt, &pkt.tuple, ct);
	KD_TRACE(KD_STEP_REWRITE, 0, 0, &to);
	pkt.reply = ct->flags & KD_CT_REPLY;
	result = kd_xdp_rewrite(ctx, &pkt, &to, &fib);
	kd_xdp_tell(ctx, &pkt, &to, result);
	return result;
}

#endif /* KD_XDP_H */
