/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Echo requests and replies as flows: the number that both have stands where a request's source port would be, and a
 * reply's destination port; the other port is 0. So what is translated by its source is also pinged with.
 *
 * Reads and writes kd_fragments as kd/packet.h does.
 */
#ifndef KD_ECHO_H
#define KD_ECHO_H

#include <stdbool.h>
#include <stddef.h>
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <kd/config.h>
#include <kd/icmp.h>
#include <kd/packet.h>
#include <kd/rewrite.h>
#include <kd/types.h>
#include <kd/verdict.h>

#define KD_ECHO_NUMBER (offsetof(struct kd_icmp, rest))

static __always_inline __u8 kd_echo_type(bool ipv6, bool request)
{
	if (ipv6)
		return request ? KD_ICMPV6_ECHO : KD_ICMPV6_ECHO_REPLY;
	return request ? KD_ICMP_ECHO : KD_ICMP_ECHO_REPLY;
}

/* The tuple of an echo request, or of a reply. False: it is none. */
KD_SUBPROGRAM bool kd_echo_parse(struct __sk_buff *skb, struct kd_pkt *pkt, bool request)
{
	__be16 echo[4]; /* type and code, checksum, number, sequence */

	if (pkt->later)
		return kd_fragment_find(pkt);
	if (bpf_skb_load_bytes(skb, pkt->l4_off, echo, sizeof(echo)) ||
	    *(__u8 *)echo != kd_echo_type(pkt->ipv6, request))
		return false;
	pkt->tuple.sport = request ? echo[2] : 0;
	pkt->tuple.dport = request ? 0 : echo[2];
	return true;
}

/* Make its tuple another one: addresses and number, with the checksums. One of the ports is 0 before and after. */
KD_FUNCTION int kd_echo_become(struct __sk_buff *skb, struct kd_pkt *pkt, const struct kd_tuple *to)
{
	__be16 before, after;
	__u32 diff, check;

	if (!pkt || !to)
		return KD_DROP_REWRITE;
	if (pkt->fragment && !pkt->later)
		kd_fragment_keep(pkt);
	diff = kd_addrs_diff(&pkt->tuple, to);
	check = pkt->l4_off + offsetof(struct kd_icmp, checksum);
	before = pkt->tuple.sport | pkt->tuple.dport;
	after = to->sport | to->dport;
	if (!pkt->later) {
		if (bpf_l4_csum_replace(skb, check, before, after, sizeof(after)) ||
		    bpf_skb_store_bytes(skb, pkt->l4_off + KD_ECHO_NUMBER, &after, sizeof(after), 0) ||
		    (pkt->ipv6 && bpf_l4_csum_replace(skb, check, 0, diff, BPF_F_PSEUDO_HDR)))
			return KD_DROP_REWRITE;
	}
	if (pkt->ipv6) /* as in kd_rewrite_l4() */
		bpf_csum_update(skb, diff);
	if (kd_rewrite_addrs(skb, pkt, to, diff))
		return KD_DROP_REWRITE;
	pkt->tuple = *to;
	return KD_CONTINUE;
}

#endif /* KD_ECHO_H */
