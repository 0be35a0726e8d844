/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Making a packet's tuple another one: addresses and ports of both sides, with all checksums.
 *
 * One path for both families, and one whichever side changes: addresses lie side by side in the packet, and so
 * do ports, so that writing both costs no more than one. Checksums are changed by difference, so a wrong one
 * stays wrong and is found by the receiver. The helpers know packets whose checksum the device is to fill in,
 * which stay so.
 */
#ifndef KD_REWRITE_H
#define KD_REWRITE_H

#include <stddef.h>
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/tcp.h>
#include <linux/udp.h>
#include <bpf/bpf_helpers.h>
#include <kd/packet.h>
#include <kd/types.h>
#include <kd/verdict.h>

/* The difference that other addresses make to a checksum. */
static __always_inline __u32 kd_addrs_diff(const struct kd_tuple *from, const struct kd_tuple *to)
{
	__u64 sum = 0;

#pragma unroll
	for (int i = 0; i < 4; i++) {
		sum += (__u64)(__u32)~from->src.w[i] + to->src.w[i];
		sum += (__u64)(__u32)~from->dst.w[i] + to->dst.w[i];
	}
	sum = (sum & 0xffffffff) + (sum >> 32);
	return sum + (sum >> 32);
}

/*
 * The ports of TCP or UDP, and the checksum: addresses count through the pseudo header, ports do not. Most flows that
 * leave for the world keep their ports, and two helpers are not called.
 */
static __always_inline int kd_rewrite_l4(struct __sk_buff *skb, const struct kd_pkt *pkt, __u32 diff,
					 __be32 old_ports, __be32 new_ports)
{
	bool udp = pkt->tuple.protocol == IPPROTO_UDP;
	__u32 off = pkt->l4_off + (udp ? offsetof(struct udphdr, check) : offsetof(struct tcphdr, check));
	__u64 flags = udp ? BPF_F_MARK_MANGLED_0 : 0; /* 0 means "none" in UDP, and stays so */

	/* The checksum first: what has none, or not in its right place, is not changed at all. */
	if (bpf_l4_csum_replace(skb, off, 0, diff, flags | BPF_F_PSEUDO_HDR))
		return KD_DROP_REWRITE;
	if (old_ports != new_ports &&
	    (bpf_l4_csum_replace(skb, off, old_ports, new_ports, flags | sizeof(old_ports)) ||
	     bpf_skb_store_bytes(skb, pkt->l4_off, &new_ports, sizeof(new_ports), 0)))
		return KD_DROP_REWRITE;
	/*
	 * The helper takes the pseudo header for IPv4's, where the header checksum makes up for the address.
	 * In IPv6 nothing does, which a sum that the device computed over the whole packet (if there is one)
	 * must learn.
	 */
	if (pkt->ipv6)
		bpf_csum_update(skb, diff);
	return KD_CONTINUE;
}

/* In place: a helper each costs more than all of it. */
static __always_inline int kd_rewrite_addrs(struct __sk_buff *skb, const struct kd_pkt *pkt,
					    const struct kd_tuple *to, __u32 diff)
{
	struct ipv6hdr *ip6;
	struct iphdr *ip;
	__u32 sum;

	if (pkt->ipv6) {
		ip6 = kd_bytes(skb, ETH_HLEN, sizeof(*ip6));
		if (!ip6)
			return KD_DROP_REWRITE;
		__builtin_memcpy(&ip6->saddr, &to->src, sizeof(to->src));
		__builtin_memcpy(&ip6->daddr, &to->dst, sizeof(to->dst));
		return KD_CONTINUE;
	}
	ip = kd_bytes(skb, ETH_HLEN, sizeof(*ip));
	if (!ip)
		return KD_DROP_REWRITE;
	sum = (__u16)~ip->check + (diff & 0xffff) + (diff >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	ip->check = ~(sum + (sum >> 16));
	ip->saddr = to->src.w[3];
	ip->daddr = to->dst.w[3];
	return KD_CONTINUE;
}

static __always_inline int kd_rewrite(struct __sk_buff *skb, struct kd_pkt *pkt, const struct kd_tuple *to)
{
	__u32 diff = kd_addrs_diff(&pkt->tuple, to);
	/* SCTP's checksum knows of no addresses, and it keeps its ports. */
	bool l4 = !pkt->later && pkt->tuple.protocol != IPPROTO_SCTP;

	if (l4 && kd_rewrite_l4(skb, pkt, diff, kd_ports(&pkt->tuple), kd_ports(to)))
		return KD_DROP_REWRITE;
	if (kd_rewrite_addrs(skb, pkt, to, diff))
		return KD_DROP_REWRITE;
	if (!l4 && pkt->ipv6) /* as in kd_rewrite_l4() */
		bpf_csum_update(skb, diff);
	KD_TRACE(KD_STEP_REWRITE, 0, 0, to);
	pkt->tuple = *to;
	return KD_CONTINUE;
}

#endif /* KD_REWRITE_H */
