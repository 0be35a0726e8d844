/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Rewriting one side of a packet: its source or its destination, address and port, with all checksums.
 *
 * One path for both families. Checksums are changed by difference, so a wrong one stays wrong and is found by
 * the receiver. The helpers know packets whose checksum the device is to fill in, which stay so.
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

struct kd_nat {
	struct kd_addr addr;
	__be16 port;
	bool source; /* which side is rewritten */
};

/* Checksum of TCP or UDP: the addresses count through the pseudo header, the port does not. */
static __always_inline int kd_rewrite_l4_csum(struct __sk_buff *skb, const struct kd_pkt *pkt, __s64 diff,
					      __be16 old_port, __be16 new_port)
{
	bool udp = pkt->tuple.protocol == IPPROTO_UDP;
	__u32 off = pkt->l4_off + (udp ? offsetof(struct udphdr, check) : offsetof(struct tcphdr, check));
	__u64 flags = udp ? BPF_F_MARK_MANGLED_0 : 0; /* 0 means "none" in UDP, and stays so */

	if (bpf_l4_csum_replace(skb, off, 0, diff, flags | BPF_F_PSEUDO_HDR) ||
	    bpf_l4_csum_replace(skb, off, old_port, new_port, flags | sizeof(old_port)))
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

static __always_inline int kd_rewrite_addr(struct __sk_buff *skb, const struct kd_pkt *pkt,
					   const struct kd_nat *nat, __s64 diff)
{
	__u32 off = ETH_HLEN;

	if (pkt->ipv6) {
		off += nat->source ? offsetof(struct ipv6hdr, saddr) : offsetof(struct ipv6hdr, daddr);
		return bpf_skb_store_bytes(skb, off, &nat->addr, sizeof(nat->addr), 0);
	}
	off += nat->source ? offsetof(struct iphdr, saddr) : offsetof(struct iphdr, daddr);
	if (bpf_l3_csum_replace(skb, ETH_HLEN + offsetof(struct iphdr, check), 0, diff, 0))
		return KD_DROP_REWRITE;
	return bpf_skb_store_bytes(skb, off, &nat->addr.w[3], sizeof(nat->addr.w[3]), 0);
}

static __always_inline int kd_rewrite(struct __sk_buff *skb, struct kd_pkt *pkt, const struct kd_nat *nat)
{
	__u32 port_off = nat->source ? offsetof(struct udphdr, source) : offsetof(struct udphdr, dest);
	struct kd_addr *addr = nat->source ? &pkt->tuple.src : &pkt->tuple.dst;
	__be16 *port = nat->source ? &pkt->tuple.sport : &pkt->tuple.dport;
	__s64 diff = bpf_csum_diff(addr->w, sizeof(*addr), (__be32 *)nat->addr.w, sizeof(nat->addr), 0);

	if (kd_rewrite_l4_csum(skb, pkt, diff, *port, nat->port) || kd_rewrite_addr(skb, pkt, nat, diff) ||
	    bpf_skb_store_bytes(skb, pkt->l4_off + port_off, &nat->port, sizeof(nat->port), 0))
		return KD_DROP_REWRITE;
	*addr = nat->addr;
	*port = nat->port;
	return KD_CONTINUE;
}

#endif /* KD_REWRITE_H */
