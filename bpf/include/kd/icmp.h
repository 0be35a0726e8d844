/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * ICMP: errors about packets of translated flows, and echo requests to addresses of services.
 *
 * An error quotes the packet that it is about, as that was where it met the error. Answers to that packet are of
 * a flow in kd_conntrack, if it is a translated one, and what its entry makes of an answer is made of the error:
 * it goes to whom the answer would go to and quotes what that one has sent. It keeps its source, unless that is
 * the flow's other end itself, which is then seen as in every answer. One that is for somebody else than who has
 * sent what it quotes is no error of the flow, and passes. The checksum of TCP or UDP in a quote stays
 * as it is: most of what it sums is not there, and nobody looks.
 *
 * Reads kd_conntrack and kd_frontends. Flows are not kept alive by errors.
 */
#ifndef KD_ICMP_H
#define KD_ICMP_H

#include <stdbool.h>
#include <stddef.h>
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include <kd/addr.h>
#include <kd/begun.h>
#include <kd/config.h>
#include <kd/conntrack.h>
#include <kd/packet.h>
#include <kd/rewrite.h>
#include <kd/service.h>
#include <kd/types.h>
#include <kd/verdict.h>
#include <kd/maps/conntrack.h>

#define KD_ICMP_ECHO_REPLY 0
#define KD_ICMP_ECHO 8
#define KD_ICMP_TIME_EXCEEDED 11
#define KD_ICMP_PARAMETER_PROBLEM 12
#define KD_ICMPV6_PARAMETER_PROBLEM 4 /* the last of the errors, which begin with 1 */
#define KD_ICMPV6_ECHO 128
#define KD_ICMPV6_ECHO_REPLY 129

static __always_inline bool kd_icmp_is_error(bool ipv6, __u8 type)
{
	if (ipv6)
		return type >= KD_ICMPV6_UNREACHABLE && type <= KD_ICMPV6_PARAMETER_PROBLEM;
	return type == KD_ICMP_UNREACHABLE || type == KD_ICMP_TIME_EXCEEDED || type == KD_ICMP_PARAMETER_PROBLEM;
}

/* What follows the IPv6 header at `off`, and any others behind it; false: no ports do, as in a later fragment. */
static __always_inline bool kd_icmp_skip_ext(struct __sk_buff *skb, struct kd_rest *rest)
{
	struct kd_pkt quoted = {};

	if (!kd_is_ipv6_ext(rest->protocol))
		return true;
	return kd_skip_ipv6_ext(skb, &quoted, rest) == KD_CONTINUE && !quoted.later;
}

/*
 * The tuple of the packet quoted at `off`; its ports are at `*ports_off`. False: not one that has any. An echo request
 * has its number for a port (kd/echo.h), behind which stands `*sequence`.
 */
static __always_inline bool kd_icmp_quoted(struct __sk_buff *skb, bool ipv6, __u32 off, struct kd_tuple *tuple,
					   __u32 *ports_off, __be16 *sequence)
{
	struct kd_rest rest = {};
	struct ipv6hdr ip6;
	struct iphdr ip4;
	__be16 ports[2];
	__u8 type;

	if (ipv6) {
		if (bpf_skb_load_bytes(skb, off, &ip6, sizeof(ip6)) || ip6.version != 6)
			return false;
		kd_addr_set_v6(&tuple->src, &ip6.saddr);
		kd_addr_set_v6(&tuple->dst, &ip6.daddr);
		rest.off = off + sizeof(ip6);
		rest.protocol = ip6.nexthdr;
		if (!kd_icmp_skip_ext(skb, &rest))
			return false;
		tuple->protocol = rest.protocol;
		*ports_off = rest.off;
	} else {
		if (bpf_skb_load_bytes(skb, off, &ip4, sizeof(ip4)) || ip4.version != 4 || ip4.ihl < 5 ||
		    ip4.frag_off & bpf_htons(KD_IP_OFFSET))
			return false;
		kd_addr_set_v4(&tuple->src, ip4.saddr);
		kd_addr_set_v4(&tuple->dst, ip4.daddr);
		tuple->protocol = ip4.protocol;
		*ports_off = off + ip4.ihl * 4;
	}
	if (tuple->protocol == (ipv6 ? IPPROTO_ICMPV6 : IPPROTO_ICMP)) {
		if (bpf_skb_load_bytes(skb, *ports_off, &type, sizeof(type)) ||
		    type != (ipv6 ? KD_ICMPV6_ECHO : KD_ICMP_ECHO))
			return false;
		*ports_off += offsetof(struct kd_icmp, rest);
	} else if (tuple->protocol != IPPROTO_TCP && tuple->protocol != IPPROTO_UDP &&
		   tuple->protocol != IPPROTO_SCTP) {
		return false;
	}
	if (bpf_skb_load_bytes(skb, *ports_off, ports, sizeof(ports)))
		return false;
	tuple->sport = ports[0];
	tuple->dport = ports[1];
	if (tuple->protocol == IPPROTO_ICMP || tuple->protocol == IPPROTO_ICMPV6) {
		tuple->dport = 0;
		*sequence = ports[1];
	}
	return true;
}

/* Other addresses in the IP header at `off`; of IPv4 with its checksum. */
static __always_inline long kd_icmp_write_addrs(struct __sk_buff *skb, bool ipv6, __u32 off,
						const struct kd_tuple *to, __u32 diff)
{
	__be32 both[2] = { to->src.w[3], to->dst.w[3] };

	if (ipv6)
		return bpf_skb_store_bytes(skb, off + offsetof(struct ipv6hdr, saddr), &to->src,
					   sizeof(to->src) + sizeof(to->dst), 0);
	if (bpf_l3_csum_replace(skb, off + offsetof(struct iphdr, check), 0, diff, 0))
		return -1;
	return bpf_skb_store_bytes(skb, off + offsetof(struct iphdr, saddr), both, sizeof(both), 0);
}

KD_FUNCTION int kd_icmp_error(struct __sk_buff *skb, struct kd_pkt *pkt)
{
	struct kd_tuple quoted = {}, to, back;
	__u32 check_off, quote_off, ports_off, diff, outer;
	struct kd_ct *answer;
	__be16 sequence = 0;
	__be32 ports;

	if (!pkt)
		return KD_DROP_MALFORMED;
	check_off = pkt->l4_off + offsetof(struct kd_icmp, checksum);
	quote_off = pkt->l4_off + sizeof(struct kd_icmp);
	if (!kd_icmp_quoted(skb, pkt->ipv6, quote_off, &quoted, &ports_off, &sequence) ||
	    ports_off + sizeof(ports) > pkt->end || !kd_addr_equal(&pkt->tuple.dst, &quoted.src))
		return KD_PASS;
	to = kd_reversed(&quoted);
	answer = kd_ct_find(&to);
	if (answer)
		back = answer->to;
	else if (!masquerade || !kd_begun_look(&to, &back))
		return KD_PASS;
	to = kd_reversed(&back);
	KD_TRACE(KD_STEP_ICMP, 0, 0, &to);
	diff = kd_addrs_diff(&quoted, &to);
	quoted.dport |= sequence;
	to.dport |= sequence;
	ports = kd_ports(&to);
	if (kd_icmp_write_addrs(skb, pkt->ipv6, quote_off, &to, diff) ||
	    bpf_skb_store_bytes(skb, ports_off, &ports, sizeof(ports), 0) ||
	    bpf_l4_csum_replace(skb, check_off, kd_ports(&quoted), ports, sizeof(ports)))
		return KD_DROP_REWRITE;

	to.src = kd_addr_equal(&pkt->tuple.src, &quoted.dst) ? back.src : pkt->tuple.src;
	to.dst = back.dst;
	outer = kd_addrs_diff(&pkt->tuple, &to);
	/* In IPv6 all addresses count, in IPv4 none: outside not at all, and inside their checksum makes up. */
	if (kd_icmp_write_addrs(skb, pkt->ipv6, ETH_HLEN, &to, outer) ||
	    (pkt->ipv6 && (bpf_l4_csum_replace(skb, check_off, 0, diff, 0) ||
			   bpf_l4_csum_replace(skb, check_off, 0, outer, 0))))
		return KD_DROP_REWRITE;
	pkt->tuple.src = to.src;
	pkt->tuple.dst = to.dst;
	return KD_CONTINUE;
}

/* An address that belongs to services only is nobody's who could answer: the packet goes back as the reply. */
KD_SUBPROGRAM int kd_icmp_echo(struct __sk_buff *skb, const struct kd_pkt *pkt)
{
	__u8 reply = pkt->ipv6 ? KD_ICMPV6_ECHO_REPLY : KD_ICMP_ECHO_REPLY;
	__u8 request = pkt->ipv6 ? KD_ICMPV6_ECHO : KD_ICMP_ECHO;
	struct kd_tuple back = kd_reversed(&pkt->tuple);
	__u8 macs[2][ETH_ALEN], swapped[2][ETH_ALEN];

	if (!kd_is_of_services(&pkt->tuple.dst))
		return KD_PASS;
	if (bpf_skb_load_bytes(skb, 0, macs, sizeof(macs)))
		return KD_DROP_REWRITE;
	__builtin_memcpy(swapped[0], macs[1], ETH_ALEN);
	__builtin_memcpy(swapped[1], macs[0], ETH_ALEN);
	if (bpf_skb_store_bytes(skb, pkt->l4_off, &reply, sizeof(reply), 0) ||
	    bpf_l4_csum_replace(skb, pkt->l4_off + offsetof(struct kd_icmp, checksum), bpf_htons(request << 8),
				bpf_htons(reply << 8), sizeof(__be16)) ||
	    kd_icmp_write_addrs(skb, pkt->ipv6, ETH_HLEN, &back, 0) ||
	    bpf_skb_store_bytes(skb, 0, swapped, sizeof(swapped), 0))
		return KD_DROP_REWRITE;
	bpf_redirect(skb->ifindex, 0);
	return KD_ECHO;
}

/* An ICMP packet that goes out: answered is what comes in. */
static __always_inline int kd_icmp_translate_error(struct __sk_buff *skb, struct kd_pkt *pkt)
{
	__u8 type;

	if (pkt->fragment)
		return KD_PASS;
	if (bpf_skb_load_bytes(skb, pkt->l4_off, &type, sizeof(type)))
		return KD_DROP_MALFORMED;
	return kd_icmp_is_error(pkt->ipv6, type) ? kd_icmp_error(skb, pkt) : KD_PASS;
}

/* An ICMP packet that comes in. */
static __always_inline int kd_icmp_translate(struct __sk_buff *skb, struct kd_pkt *pkt)
{
	__u8 type;

	if (pkt->fragment)
		return KD_PASS;
	if (bpf_skb_load_bytes(skb, pkt->l4_off, &type, sizeof(type)))
		return KD_DROP_MALFORMED;
	if (kd_icmp_is_error(pkt->ipv6, type))
		return kd_icmp_error(skb, pkt);
	return type == (pkt->ipv6 ? KD_ICMPV6_ECHO : KD_ICMP_ECHO) ? kd_icmp_echo(skb, pkt) : KD_PASS;
}

#endif /* KD_ICMP_H */
