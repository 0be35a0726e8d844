/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * A packet from elsewhere that is too big for its way on. It goes on under this node's own name, mostly, so the stack
 * would tell nobody but itself, or take it for forged. So the sender is told here, by the ICMP error that says what
 * fits: as if it had come from where the sender has sent to, and quoting what that one has sent (kd/icmp.h).
 *
 * What may be cut is: by the tunnel, or by the stack. Reads kd_conntrack; its answers count as rejections do.
 */
#ifndef KD_TOO_BIG_H
#define KD_TOO_BIG_H

#include <stdbool.h>
#include <stddef.h>
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include <kd/config.h>
#include <kd/forward.h>
#include <kd/icmp.h>
#include <kd/packet.h>
#include <kd/reject.h>
#include <kd/verdict.h>

/* The packet and `pkt` become the error, still about the packet as it was to go on. */
KD_SUBPROGRAM long kd_become_too_big(struct __sk_buff *skb, struct kd_pkt *pkt)
{
	struct kd_icmp error = {
		.type = pkt->ipv6 ? KD_ICMPV6_TOO_BIG : KD_ICMP_UNREACHABLE,
		.code = pkt->ipv6 ? 0 : KD_ICMP_UNREACHABLE_TOO_BIG,
		.rest = bpf_htonl(pkt->mtu),
	};
	struct kd_tuple back = kd_reversed(&pkt->tuple);

	if (kd_become_error(skb, pkt, &error))
		return -1;
	pkt->tuple = back;
	pkt->l4_off = ETH_HLEN + (pkt->ipv6 ? sizeof(struct ipv6hdr) : sizeof(struct iphdr));
	pkt->end = skb->len;
	return 0;
}

static __always_inline int kd_tell_too_big(struct __sk_buff *skb, struct kd_pkt *pkt)
{
	__be16 cut = 0;

	if (!pkt->ipv6 && bpf_skb_load_bytes(skb, ETH_HLEN + offsetof(struct iphdr, frag_off), &cut, sizeof(cut)))
		return KD_DROP_REWRITE;
	if (!pkt->ipv6 && !(cut & bpf_htons(KD_IP_WHOLE))) {
		if (!tunnel_device || !kd_peer_of(&pkt->tuple.dst))
			return KD_TO_STACK;
		bpf_redirect(tunnel_device, 0);
		return kd_decrement_ttl(skb, pkt) ? KD_DROP_REWRITE : KD_TO_DEVICE;
	}
	if (!kd_reject_allowed() || kd_become_too_big(skb, pkt) || kd_icmp_error(skb, pkt) != KD_CONTINUE ||
	    kd_return(skb))
		return KD_DROP_REJECT;
	return KD_TOO_BIG;
}

#endif /* KD_TOO_BIG_H */
