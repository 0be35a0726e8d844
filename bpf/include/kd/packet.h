/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * A packet, parsed once.
 *
 * kd_parse() decides whether a packet at a tc hook is one that services can concern: unfragmented TCP, UDP,
 * SCTP or ICMP over IPv4 or IPv6, addressed to this node, or a fragment of such. Everything else passes.
 * Later stages read struct kd_pkt only and never look at headers again.
 *
 * It assumes an Ethernet device. IP options and IPv6 extension headers are stepped over. Lengths are
 * checked here, against the data that is there and against each other: a packet that gets through has
 * its ports, and for TCP its flags, inside what IP says belongs to it. Later fragments have none, see
 * kd_fragment_find().
 */
#ifndef KD_PACKET_H
#define KD_PACKET_H

#include <stdbool.h>
#include <stddef.h>
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/tcp.h>
#include <linux/udp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include <kd/addr.h>
#include <kd/config.h>
#include <kd/scene.h>
#include <kd/types.h>
#include <kd/verdict.h>
#include <kd/maps/fragments.h>

struct kd_pkt {
	struct kd_tuple tuple __attribute__((aligned(8))); /* as the packet reads now: a rewrite changes it too */
	__u32 l4_off; /* of the TCP, UDP or ICMP header */
	__u32 end; /* of the IP packet: what the link has added may follow */
	__u8 ttl; /* or hop limit */
	__u8 tcp_flags; /* KD_TCP_*; 0 for UDP and for fragments, of SCTP what is like them */
	bool ipv6;
	bool fragment; /* of several */
	bool later; /* and not the first: what it has of TCP or UDP is remembered */
	bool reply : 1; /* of a translated flow, found by kd_flow_find() */
	bool tunnelled : 1; /* cb[0] of its socket buffer is the identity of its source */
	__u16 mtu; /* of its way on, if it is too big for that */
	__be32 ident; /* of a fragment's datagram */
};

/* Of ICMP and ICMPv6; <linux/icmp.h> asks for a C library. */
struct kd_icmp {
	__u8 type;
	__u8 code;
	__be16 checksum;
	__be32 rest;
};

#define KD_ICMP_UNREACHABLE 3
#define KD_ICMP_UNREACHABLE_PORT 3
#define KD_ICMP_UNREACHABLE_TOO_BIG 4
#define KD_ICMP_UNREACHABLE_PROHIBITED 13 /* by administration, as ICMPv6's */
#define KD_ICMPV6_UNREACHABLE 1
#define KD_ICMPV6_UNREACHABLE_PROHIBITED 1
#define KD_ICMPV6_UNREACHABLE_PORT 4
#define KD_ICMPV6_TOO_BIG 2

/* How a packet of SCTP begins: the header, and the first of the chunks that follow. */
struct kd_sctp {
	__be16 source;
	__be16 dest;
	__be32 tag;
	__le32 checksum; /* CRC32c of all but the IP header: other addresses leave it right, other ports do not */
	__u8 chunk;
	__u8 flags;
	__be16 length;
};

#define KD_SCTP_INIT 1
#define KD_SCTP_INIT_ACK 2
#define KD_SCTP_ABORT 6
#define KD_SCTP_SHUTDOWN_COMPLETE 14

#define KD_TCP_WORDS 12 /* where TCP's header has its length, in the upper half of a byte */
#define KD_TCP_FIN 0x01
#define KD_TCP_SYN 0x02
#define KD_TCP_RST 0x04
#define KD_TCP_PSH 0x08
#define KD_TCP_ACK 0x10
#define KD_TOLD_FLAGS (KD_TCP_SYN | KD_TCP_FIN | KD_TCP_RST) /* each is news once in a direction */

#define KD_IP_FRAGMENT 0x3fff /* more fragments follow, or this is not the first */
#define KD_IP_OFFSET 0x1fff
#define KD_IP_WHOLE 0x4000 /* it must not be cut */
#define KD_IPV6_FRAGMENT 0xfff9
#define KD_IPV6_OFFSET 0xfff8

/* What is left of the IP packet when its header is read. */
struct kd_rest {
	__u32 off; /* of the header that comes next */
	__u32 end; /* of the packet, says IP */
	__u8 protocol;
};

/*
 * A pointer field of the context, which is 32 bits wide on paper and a pointer in truth: left to itself, the
 * compiler keeps the 32 bits and extends them again, and the verifier loses the pointer.
 */
#define KD_SKB_POINTER(skb, field)                                                \
	({                                                                        \
		void *pointer;                                                    \
		asm volatile("%0 = *(u32 *)(%1 + %2)"                             \
			     : "=r"(pointer)                                      \
			     : "r"(skb), "i"(offsetof(struct __sk_buff, field))); \
		pointer;                                                          \
	})

#define KD_HEADERS_MAX 0x3fff /* more than all the headers take that are looked through */

/* `len` bytes at `off`, pulled into one piece if they are not; NULL: the packet has no such bytes. */
static __always_inline void *kd_bytes(struct __sk_buff *skb, __u32 off, __u32 len)
{
	void *at;

	asm volatile("%0 &= %1" : "+r"(off) : "i"(KD_HEADERS_MAX)); /* the verifier may have lost sight of it */
	at = KD_SKB_POINTER(skb, data) + off;
	if (at + len <= KD_SKB_POINTER(skb, data_end))
		return at;
	if (bpf_skb_pull_data(skb, off + len))
		return NULL;
	at = KD_SKB_POINTER(skb, data) + off;
	return at + len <= KD_SKB_POINTER(skb, data_end) ? at : NULL;
}

/* IP's length field; 0 stands in a segmentation offload packet for one that is too long for the field. */
static __always_inline __u32 kd_end(struct __sk_buff *skb, __be16 length, __u32 header)
{
	if (!length && skb->gso_size)
		return skb->len;
	return ETH_HLEN + header + bpf_ntohs(length);
}

static __always_inline int kd_parse_ipv4(struct __sk_buff *skb, struct kd_pkt *pkt, struct kd_rest *rest)
{
	struct iphdr *ip = kd_bytes(skb, ETH_HLEN, sizeof(*ip));
	__u16 fragment;

	if (!ip || ip->version != 4 || ip->ihl < 5)
		return KD_DROP_MALFORMED;
	fragment = bpf_ntohs(ip->frag_off);
	pkt->fragment = fragment & KD_IP_FRAGMENT;
	pkt->later = fragment & KD_IP_OFFSET;
	pkt->ident = ip->id;
	pkt->ttl = ip->ttl;
	kd_addr_set_v4(&pkt->tuple.src, ip->saddr);
	kd_addr_set_v4(&pkt->tuple.dst, ip->daddr);
	rest->off = ETH_HLEN + ip->ihl * 4;
	rest->end = kd_end(skb, ip->tot_len, 0);
	rest->protocol = ip->protocol;
	return KD_CONTINUE;
}

/* The first bytes of an IPv6 extension header. */
struct kd_ipv6_ext {
	__u8 next;
	__u8 len; /* in 8 bytes, without the first 8; a fragment header has none */
	__be16 fragment; /* of a fragment header; the low byte of a routing header's is segments left */
};

/*
 * Not ours to translate; but policies know protocols by their numbers, of which 0 is none, and ICMP of the other
 * family is not ICMP.
 */
static __always_inline int kd_parse_other(struct kd_pkt *pkt, const struct kd_rest *rest)
{
	bool known = rest->protocol && rest->protocol != IPPROTO_ICMP && rest->protocol != IPPROTO_ICMPV6;

	pkt->tuple.protocol = known ? rest->protocol : IPPROTO_RAW;
	return KD_PASS;
}

#define KD_IPV6_EXT_MAX 6 /* RFC 8200 names five that may precede TCP or UDP; the rest pass as unknown */

static __always_inline bool kd_is_ipv6_ext(__u8 protocol)
{
	return protocol == IPPROTO_HOPOPTS || protocol == IPPROTO_ROUTING || protocol == IPPROTO_FRAGMENT ||
	       protocol == IPPROTO_DSTOPTS;
}

/* A function of its own: few packets have any, and its loop is verified once instead of with all that follows. */
KD_FUNCTION int kd_skip_ipv6_ext(struct __sk_buff *skb, struct kd_pkt *pkt, struct kd_rest *rest)
{
	struct kd_ipv6_ext ext;

	if (!pkt || !rest)
		return KD_DROP_MALFORMED;
	for (int i = 0; i < KD_IPV6_EXT_MAX && kd_is_ipv6_ext(rest->protocol); i++) {
		if (bpf_skb_load_bytes(skb, rest->off, &ext, sizeof(ext)))
			return KD_DROP_MALFORMED;
		if (rest->protocol == IPPROTO_FRAGMENT) {
			pkt->fragment = ext.fragment & bpf_htons(KD_IPV6_FRAGMENT);
			pkt->later = ext.fragment & bpf_htons(KD_IPV6_OFFSET);
			if (bpf_skb_load_bytes(skb, rest->off + sizeof(ext), &pkt->ident, sizeof(pkt->ident)))
				return KD_DROP_MALFORMED;
			ext.len = 0;
		}
		/* A source route that is not at its end: the destination is but a waypoint. */
		if (rest->protocol == IPPROTO_ROUTING && ext.fragment & bpf_htons(0xff))
			return kd_parse_other(pkt, rest);
		rest->off += (ext.len + 1) * 8;
		rest->protocol = ext.next;
		if (pkt->later)
			return KD_CONTINUE;
	}
	return KD_CONTINUE;
}

static __always_inline int kd_parse_ipv6(struct __sk_buff *skb, struct kd_pkt *pkt, struct kd_rest *rest)
{
	struct ipv6hdr *ip = kd_bytes(skb, ETH_HLEN, sizeof(*ip));

	if (!ip || ip->version != 6)
		return KD_DROP_MALFORMED;
	pkt->ipv6 = true;
	pkt->ttl = ip->hop_limit;
	kd_addr_set_v6(&pkt->tuple.src, &ip->saddr);
	kd_addr_set_v6(&pkt->tuple.dst, &ip->daddr);
	rest->off = ETH_HLEN + sizeof(*ip);
	rest->end = kd_end(skb, ip->payload_len, sizeof(*ip));
	rest->protocol = ip->nexthdr;
	if (!kd_is_ipv6_ext(rest->protocol))
		return KD_CONTINUE;
	return kd_skip_ipv6_ext(skb, pkt, rest);
}

static __always_inline bool kd_is_icmp(const struct kd_pkt *pkt)
{
	return pkt->tuple.protocol == IPPROTO_ICMP || pkt->tuple.protocol == IPPROTO_ICMPV6;
}

/* The key of the datagram that a fragment is of. */
static __always_inline struct kd_tuple kd_datagram(const struct kd_pkt *pkt)
{
	struct kd_tuple datagram = pkt->tuple;

	datagram.sport = pkt->ident >> 16;
	datagram.dport = pkt->ident;
	return datagram;
}

/* The ports of a first fragment, for those that follow it. */
KD_SUBPROGRAM void kd_fragment_keep(const struct kd_pkt *pkt)
{
	struct kd_tuple datagram = kd_datagram(pkt);
	__be32 ports = kd_ports(&pkt->tuple);

	bpf_map_update_elem(&kd_fragments, &datagram, &ports, BPF_ANY);
}

/* A later fragment gets its ports from the first. False: no first fragment of its datagram was translated. */
KD_SUBPROGRAM bool kd_fragment_find(struct kd_pkt *pkt)
{
	struct kd_tuple datagram = kd_datagram(pkt);
	__be32 *ports = bpf_map_lookup_elem(&kd_fragments, &datagram);

	if (ports)
		kd_set_ports(&pkt->tuple, *ports);
	return ports;
}

/* SCTP is TCP's kin: its first chunk says what flags say there. Others bundled behind it are not looked at. */
KD_SUBPROGRAM int kd_parse_sctp(struct __sk_buff *skb, struct kd_pkt *pkt)
{
	struct kd_sctp sctp;

	if (bpf_skb_load_bytes(skb, pkt->l4_off, &sctp, sizeof(sctp)))
		return KD_DROP_MALFORMED;
	if (sctp.chunk == KD_SCTP_INIT)
		pkt->tcp_flags = KD_TCP_SYN;
	else if (sctp.chunk == KD_SCTP_INIT_ACK)
		pkt->tcp_flags = KD_TCP_SYN | KD_TCP_ACK;
	else if (sctp.chunk == KD_SCTP_ABORT || sctp.chunk == KD_SCTP_SHUTDOWN_COMPLETE)
		pkt->tcp_flags = KD_TCP_RST;
	else
		pkt->tcp_flags = KD_TCP_ACK;
	return KD_CONTINUE;
}

static __always_inline int kd_parse_ports(struct __sk_buff *skb, struct kd_pkt *pkt,
					  const struct kd_rest *rest)
{
	__u32 needed = sizeof(struct udphdr);
	struct tcphdr *tcp;
	struct udphdr *udp;

	if (rest->protocol == (pkt->ipv6 ? IPPROTO_ICMPV6 : IPPROTO_ICMP))
		needed = sizeof(struct kd_icmp); /* which is no more: ports it has none */
	else if (rest->protocol == IPPROTO_SCTP)
		needed = sizeof(struct kd_sctp);
	else if (rest->protocol != IPPROTO_TCP && rest->protocol != IPPROTO_UDP)
		return kd_parse_other(pkt, rest);
	if (rest->protocol == IPPROTO_TCP && !pkt->fragment)
		needed = sizeof(*tcp);
	if (pkt->later)
		needed = 0;
	if (rest->end > skb->len || rest->off + needed > rest->end)
		return KD_DROP_MALFORMED;

	pkt->tuple.protocol = rest->protocol;
	pkt->l4_off = rest->off;
	pkt->end = rest->end;
	if (kd_is_icmp(pkt) || pkt->later)
		return KD_CONTINUE;
	udp = kd_bytes(skb, rest->off, sizeof(*udp)); /* TCP and SCTP have their ports in the same place */
	if (!udp)
		return KD_DROP_MALFORMED;
	pkt->tuple.sport = udp->source;
	pkt->tuple.dport = udp->dest;
	if (needed == sizeof(struct kd_sctp))
		return kd_parse_sctp(skb, pkt);
	if (needed != sizeof(*tcp))
		return KD_CONTINUE;

	tcp = kd_bytes(skb, rest->off, sizeof(*tcp));
	if (!tcp)
		return KD_DROP_MALFORMED;
	pkt->tcp_flags = ((__u8 *)tcp)[13];
	return KD_CONTINUE;
}

/* A device that listens in hears what is for other hosts. */
static __always_inline bool kd_overheard(const struct __sk_buff *skb)
{
	return skb->pkt_type == PACKET_OTHERHOST;
}

static __always_inline int kd_parse_headers(struct __sk_buff *skb, struct kd_pkt *pkt)
{
	struct kd_rest rest = {};
	int result = KD_PASS;

	if (skb->vlan_present) /* for the VLAN device above this one */
		return KD_PASS;
	if (skb->protocol == bpf_htons(ETH_P_IP))
		result = kd_parse_ipv4(skb, pkt, &rest);
	else if (skb->protocol == bpf_htons(ETH_P_IPV6))
		result = kd_parse_ipv6(skb, pkt, &rest);
	if (result != KD_CONTINUE)
		return result;
	return kd_parse_ports(skb, pkt, &rest);
}

static __always_inline int kd_parse(struct __sk_buff *skb, struct kd_pkt *pkt)
{
	int result = kd_parse_headers(skb, pkt);

	kd_scene_begin(&pkt->tuple, pkt->tcp_flags, skb->len);
	return result;
}

#endif /* KD_PACKET_H */
