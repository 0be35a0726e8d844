/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Telling a client that nobody serves where it sent to, or that policies deny it. A TCP segment becomes a RST; everything
 * else, and a segment with IP options, an ICMP error that quotes it, "port unreachable" or "administratively prohibited". Either goes back through the device
 * that the packet came from, so connect() fails with ECONNREFUSED at once: a RST is also heard by a socket that
 * is still busy sending its SYN.
 *
 * The answer comes from the address that was dialled, so that whatever is between translates it back. ICMP quotes
 * IP's headers, and of TCP or UDP the header. Reads and writes kd_rejects: a CPU sends `reject_rate` answers a
 * second, a few more at first.
 */
#ifndef KD_REJECT_H
#define KD_REJECT_H

#include <stdbool.h>
#include <stddef.h>
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/tcp.h>
#include <linux/udp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include <kd/config.h>
#include <kd/packet.h>
#include <kd/verdict.h>
#include <kd/maps/rejects.h>

KD_CONFIG(__u32, reject_rate, "rejections that each CPU may send in a second; 0: any number") = 1000;

#define KD_REJECT_BURST 50
#define KD_REJECT_TTL 64
#define KD_QUOTE_MAX 96 /* who has more headers than that is dropped */

static __always_inline bool kd_reject_allowed(void)
{
	__u32 zero = 0;
	__u64 *next = bpf_map_lookup_elem(&kd_rejects, &zero);
	__u64 step = reject_rate ? 1000000000 / reject_rate : 0;
	__u64 now = bpf_ktime_get_ns();

	if (!next || *next > now)
		return false;
	if (*next + KD_REJECT_BURST * step < now)
		*next = now - KD_REJECT_BURST * step;
	*next += step;
	return true;
}

static __always_inline __u16 kd_csum_fold(__u32 sum)
{
	sum = (sum & 0xffff) + (sum >> 16);
	return ~(sum + (sum >> 16));
}

static __always_inline __u32 kd_csum(const void *data, __u32 len, __u32 sum)
{
	return bpf_csum_diff(NULL, 0, (__be32 *)data, len, sum);
}

static __always_inline long kd_error_ipv4(struct __sk_buff *skb, const struct kd_tuple *tuple,
					  const struct kd_icmp *error, __u32 quoted, __u32 sum)
{
	struct {
		struct iphdr ip;
		struct kd_icmp icmp;
	} head = {
		.ip = {
			.version = 4,
			.ihl = 5,
			.tot_len = bpf_htons(sizeof(head) + quoted),
			.ttl = KD_REJECT_TTL,
			.protocol = IPPROTO_ICMP,
			.saddr = tuple->dst.w[3],
			.daddr = tuple->src.w[3],
		},
		.icmp = *error,
	};

	head.ip.check = kd_csum_fold(kd_csum(&head.ip, sizeof(head.ip), 0));
	head.icmp.checksum = kd_csum_fold(kd_csum(&head.icmp, sizeof(head.icmp), sum));
	return bpf_skb_store_bytes(skb, ETH_HLEN, &head, sizeof(head), 0);
}

static __always_inline long kd_error_ipv6(struct __sk_buff *skb, const struct kd_tuple *tuple,
					  const struct kd_icmp *error, __u32 quoted, __u32 sum)
{
	struct {
		struct ipv6hdr ip;
		struct kd_icmp icmp;
	} head = {
		.ip = {
			.version = 6,
			.payload_len = bpf_htons(sizeof(head.icmp) + quoted),
			.nexthdr = IPPROTO_ICMPV6,
			.hop_limit = KD_REJECT_TTL,
		},
		.icmp = *error,
	};
	__be32 pseudo[2] = { bpf_htonl(sizeof(head.icmp) + quoted), bpf_htonl(IPPROTO_ICMPV6) };

	__builtin_memcpy(&head.ip.saddr, &tuple->dst, sizeof(tuple->dst));
	__builtin_memcpy(&head.ip.daddr, &tuple->src, sizeof(tuple->src));
	sum = kd_csum(pseudo, sizeof(pseudo), sum);
	sum = kd_csum(&head.ip.saddr, sizeof(head.ip.saddr) + sizeof(head.ip.daddr), sum);
	head.icmp.checksum = kd_csum_fold(kd_csum(&head.icmp, sizeof(head.icmp), sum));
	return bpf_skb_store_bytes(skb, ETH_HLEN, &head, sizeof(head), 0);
}

/* The packet becomes an ICMP error about itself, from where it was to go. */
KD_SUBPROGRAM long kd_become_error(struct __sk_buff *skb, const struct kd_pkt *pkt, const struct kd_icmp *error)
{
	__u32 room = (pkt->ipv6 ? sizeof(struct ipv6hdr) : sizeof(struct iphdr)) + sizeof(struct kd_icmp);
	bool tcp = pkt->tuple.protocol == IPPROTO_TCP && !pkt->fragment;
	__u32 l4 = tcp ? sizeof(struct tcphdr) : sizeof(struct udphdr);
	__u32 quoted = pkt->l4_off - ETH_HLEN + l4;
	__u8 quote[KD_QUOTE_MAX];
	__u32 sum;

	if (bpf_skb_change_tail(skb, ETH_HLEN + quoted, 0))
		return -1;
	if (quoted < sizeof(struct iphdr) || quoted > sizeof(quote) ||
	    bpf_skb_load_bytes(skb, ETH_HLEN, quote, quoted))
		return -1;
	sum = kd_csum(quote, quoted, 0);
	if (bpf_skb_adjust_room(skb, room, BPF_ADJ_ROOM_MAC, 0))
		return -1;
	return pkt->ipv6 ? kd_error_ipv6(skb, &pkt->tuple, error, quoted, sum) :
			   kd_error_ipv4(skb, &pkt->tuple, error, quoted, sum);
}

static __always_inline long kd_reject_unreachable(struct __sk_buff *skb, const struct kd_pkt *pkt, bool denied)
{
	struct kd_icmp error = {
		.type = pkt->ipv6 ? KD_ICMPV6_UNREACHABLE : KD_ICMP_UNREACHABLE,
		.code = pkt->ipv6 ? KD_ICMPV6_UNREACHABLE_PORT : KD_ICMP_UNREACHABLE_PORT,
	};

	if (denied)
		error.code = pkt->ipv6 ? KD_ICMPV6_UNREACHABLE_PROHIBITED : KD_ICMP_UNREACHABLE_PROHIBITED;
	return kd_become_error(skb, pkt, &error);
}

/* Back through the device that it came from. */
static __always_inline long kd_return(struct __sk_buff *skb)
{
	__u8 macs[2][ETH_ALEN], back[2][ETH_ALEN];

	if (bpf_skb_load_bytes(skb, 0, macs, sizeof(macs)))
		return -1;
	__builtin_memcpy(back[0], macs[1], ETH_ALEN);
	__builtin_memcpy(back[1], macs[0], ETH_ALEN);
	if (bpf_skb_store_bytes(skb, 0, back, sizeof(back), 0))
		return -1;
	bpf_redirect(skb->ifindex, 0);
	return 0;
}

/* Whether the device is to fill in the checksum: then the helper leaves alone what is not the pseudo header. */
static __always_inline bool kd_is_partial(struct __sk_buff *skb, __u32 check_off, __u16 check)
{
	__u16 after = check;

	bpf_l4_csum_replace(skb, check_off, 0, bpf_htons(1), sizeof(after));
	bpf_skb_load_bytes(skb, check_off, &after, sizeof(after));
	return after == check;
}

/* The packet goes back to its sender, with so many bytes behind a plain header. */
static __always_inline long kd_answer_ip(struct __sk_buff *skb, const struct kd_pkt *pkt, __u16 length)
{
	struct ipv6hdr ip6 = {
		.version = 6,
		.payload_len = bpf_htons(length),
		.nexthdr = pkt->tuple.protocol,
		.hop_limit = KD_REJECT_TTL,
	};
	struct iphdr ip4 = {
		.version = 4,
		.ihl = 5,
		.tot_len = bpf_htons(sizeof(ip4) + length),
		.ttl = KD_REJECT_TTL,
		.protocol = pkt->tuple.protocol,
		.saddr = pkt->tuple.dst.w[3],
		.daddr = pkt->tuple.src.w[3],
	};

	if (!pkt->ipv6) {
		ip4.check = kd_csum_fold(kd_csum(&ip4, sizeof(ip4), 0));
		return bpf_skb_store_bytes(skb, ETH_HLEN, &ip4, sizeof(ip4), 0);
	}
	__builtin_memcpy(&ip6.saddr, &pkt->tuple.dst, sizeof(ip6.saddr));
	__builtin_memcpy(&ip6.daddr, &pkt->tuple.src, sizeof(ip6.daddr));
	return bpf_skb_store_bytes(skb, ETH_HLEN, &ip6, sizeof(ip6), 0);
}

/* The segment becomes the RST that RFC 9293 asks for (3.10.7.1). */
KD_SUBPROGRAM long kd_reject_reset(struct __sk_buff *skb, const struct kd_pkt *pkt)
{
	__be32 pseudo[2] = { bpf_htonl(sizeof(struct tcphdr)), bpf_htonl(IPPROTO_TCP) };
	__u32 check_off = pkt->l4_off + offsetof(struct tcphdr, check);
	struct tcphdr reset = { .doff = sizeof(reset) / 4, .rst = 1 };
	struct tcphdr tcp;
	__u32 sum;

	if (pkt->tcp_flags & KD_TCP_RST || bpf_skb_load_bytes(skb, pkt->l4_off, &tcp, sizeof(tcp)) ||
	    bpf_skb_change_tail(skb, pkt->l4_off + sizeof(reset), 0))
		return -1;
	reset.source = tcp.dest;
	reset.dest = tcp.source;
	if (tcp.ack) {
		reset.seq = tcp.ack_seq;
	} else {
		reset.ack = 1;
		reset.ack_seq = bpf_htonl(bpf_ntohl(tcp.seq) + 1);
	}
	/* A mapped IPv4 address sums to itself and 0xffff, which is as good as 0. */
	sum = kd_csum(&pkt->tuple, sizeof(pkt->tuple.src) + sizeof(pkt->tuple.dst), 0);
	sum = kd_csum(pseudo, sizeof(pseudo), sum);
	reset.check = kd_is_partial(skb, check_off, tcp.check) ?
			      (__u16)~kd_csum_fold(sum) :
			      kd_csum_fold(kd_csum(&reset, sizeof(reset), sum));
	if (bpf_skb_store_bytes(skb, pkt->l4_off, &reset, sizeof(reset), 0))
		return -1;
	return kd_answer_ip(skb, pkt, sizeof(reset));
}

KD_FUNCTION int kd_reject(struct __sk_buff *skb, const struct kd_pkt *pkt, int result)
{
	bool reset, denied;
	__u32 plain_off;

	if (!pkt)
		return KD_DROP_REJECT;
	plain_off = ETH_HLEN + (pkt->ipv6 ? sizeof(struct ipv6hdr) : sizeof(struct iphdr));
	reset = pkt->tuple.protocol == IPPROTO_TCP && !pkt->fragment && pkt->l4_off == plain_off;
	denied = result == KD_REJECT_DENIED;
	if (!kd_reject_allowed() ||
	    (reset ? kd_reject_reset(skb, pkt) : kd_reject_unreachable(skb, pkt, denied)) || kd_return(skb))
		return denied ? KD_DROP_POLICY_DENIED : KD_DROP_REJECT;
	return result;
}

#endif /* KD_REJECT_H */
