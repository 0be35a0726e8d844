/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * How a denied connection ends: with our own response or the server's last one, then both sides close.
 *
 * What the server's socket sends next becomes our response, at the pod's device: the denied bytes themselves, which
 * are handed back for that, or its FIN or RST if it closes first. Our response has a FIN that the socket knows
 * nothing of. If responses of the server are still to come, the last of them gets it instead. The client's next segment
 * that acknowledges the FIN becomes a RST, once: the server's socket is gone then, and what follows meets a port that
 * answers by itself.
 *
 * Assumes tc hooks of the device inside of the pod: packets of neighbours go around the other end.
 */
#ifndef KD_L7_CLOSE_H
#define KD_L7_CLOSE_H

#include <stdbool.h>
#include <stddef.h>
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/pkt_cls.h>
#include <linux/tcp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include <kd/addr.h>
#include <kd/l7_reason.h>
#include <kd/l7_types.h>
#include <kd/maps/l7.h>

#define KD_L7_FORBIDDEN_SIZE 106

/* Zeros behind it make it a whole number of words, as checksums are computed. */
static const char kd_l7_forbidden[(KD_L7_FORBIDDEN_SIZE + 3) & ~3] = "HTTP/1.1 403 Forbidden\r\n"
								      "content-length: 15\r\n"
								      "content-type: text/plain\r\n"
								      "connection: close\r\n"
								      "\r\n"
								      "Access denied\r\n";

#define KD_L7_TCP_FLAGS 12 /* with the data offset, 16 bits */
#define KD_L7_FIN 0x01
#define KD_L7_SYN 0x02
#define KD_L7_RST 0x04
#define KD_L7_PSH 0x08
#define KD_L7_ACK 0x10
#define KD_L7_ALL_FLAGS 0xff

struct kd_l7_segment {
	struct kd_tuple way;
	__u32 offset; /* of the TCP header */
	__u32 begin; /* of the payload */
	__u32 payload;
	__u32 seq;
	__u32 ack;
	__be16 flags;
};

static __always_inline __u64 *kd_l7_pending_count(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&kd_l7_pending, &zero);
}

/* A denied connection is to be closed from here on, if it is not already. */
static __always_inline bool kd_l7_close(const struct kd_tuple *way, enum kd_l7_stage stage, __u32 end)
{
	struct kd_l7_closing closing = { .stage = stage, .end = end };
	__u64 *pending = kd_l7_pending_count();

	if (!pending || bpf_map_update_elem(&kd_l7_closing, way, &closing, BPF_NOEXIST))
		return false;
	__sync_fetch_and_add(pending, 1);
	return true;
}

/* It is closed, or its tuple is another connection's from here on. */
static __always_inline void kd_l7_close_forget(const struct kd_tuple *way)
{
	__u64 *pending = kd_l7_pending_count();

	if (!bpf_map_delete_elem(&kd_l7_closing, way) && pending)
		__sync_fetch_and_add(pending, -1);
}

/* Read a TCP segment; false: it is none, or one with a header that a pod's device does not see every day. */
static __always_inline bool kd_l7_segment(struct __sk_buff *skb, struct kd_l7_segment *segment)
{
	struct tcphdr tcp;
	__u32 end;

	if (skb->protocol == bpf_htons(ETH_P_IP)) {
		struct iphdr ip;

		if (bpf_skb_load_bytes(skb, ETH_HLEN, &ip, sizeof(ip)) || ip.protocol != IPPROTO_TCP ||
		    ip.frag_off & bpf_htons(0x3fff))
			return false;
		kd_addr_set_v4(&segment->way.src, ip.saddr);
		kd_addr_set_v4(&segment->way.dst, ip.daddr);
		segment->offset = ETH_HLEN + 4 * ip.ihl;
		end = ETH_HLEN + bpf_ntohs(ip.tot_len);
	} else if (skb->protocol == bpf_htons(ETH_P_IPV6)) {
		struct ipv6hdr ip;

		if (bpf_skb_load_bytes(skb, ETH_HLEN, &ip, sizeof(ip)) || ip.nexthdr != IPPROTO_TCP)
			return false;
		kd_addr_set_v6(&segment->way.src, &ip.saddr);
		kd_addr_set_v6(&segment->way.dst, &ip.daddr);
		segment->offset = ETH_HLEN + sizeof(ip);
		end = segment->offset + bpf_ntohs(ip.payload_len);
	} else {
		return false;
	}
	if (bpf_skb_load_bytes(skb, segment->offset, &tcp, sizeof(tcp)))
		return false;
	segment->way.sport = tcp.source;
	segment->way.dport = tcp.dest;
	segment->way.protocol = IPPROTO_TCP;
	segment->seq = bpf_ntohl(tcp.seq);
	segment->ack = bpf_ntohl(tcp.ack_seq);
	segment->begin = segment->offset + 4 * tcp.doff;
	segment->payload = end - segment->begin;
	return !bpf_skb_load_bytes(skb, segment->offset + KD_L7_TCP_FLAGS, &segment->flags, sizeof(segment->flags));
}

static __always_inline void kd_l7_set_flags(struct __sk_buff *skb, const struct kd_l7_segment *segment, __be16 flags)
{
	if (!bpf_skb_store_bytes(skb, segment->offset + KD_L7_TCP_FLAGS, &flags, sizeof(flags), 0))
		bpf_l4_csum_replace(skb, segment->offset + offsetof(struct tcphdr, check), segment->flags, flags,
				    sizeof(flags));
}

/* The length in the header of IP, and what is summed up of it. */
static __always_inline void kd_l7_set_length(struct __sk_buff *skb, const struct kd_l7_segment *segment)
{
	bool ipv4 = skb->protocol == bpf_htons(ETH_P_IP);
	__u32 header = segment->begin - segment->offset, at = ETH_HLEN + 2, base = ETH_HLEN;
	__be16 old = 0, new, before, after;

	if (!ipv4) {
		at = ETH_HLEN + offsetof(struct ipv6hdr, payload_len);
		base = segment->offset;
	}
	before = bpf_htons(header + segment->payload);
	after = bpf_htons(header + KD_L7_FORBIDDEN_SIZE);
	new = bpf_htons(segment->begin - base + KD_L7_FORBIDDEN_SIZE);
	bpf_skb_load_bytes(skb, at, &old, sizeof(old));
	bpf_skb_store_bytes(skb, at, &new, sizeof(new), 0);
	if (ipv4)
		bpf_l3_csum_replace(skb, ETH_HLEN + offsetof(struct iphdr, check), old, new, sizeof(new));
	bpf_l4_csum_replace(skb, segment->offset + offsetof(struct tcphdr, check), before, after,
			    BPF_F_PSEUDO_HDR | sizeof(after));
}

/* A segment becomes our response; false: it could not. */
static __always_inline bool kd_l7_answer(struct __sk_buff *skb, const struct kd_l7_segment *segment)
{
	char text[sizeof(kd_l7_forbidden)];
	__s64 sum;

	__builtin_memcpy(text, kd_l7_forbidden, sizeof(text));
	sum = bpf_csum_diff(NULL, 0, (__be32 *)text, sizeof(text), 0);
	if ((segment->payload && bpf_skb_change_tail(skb, segment->begin, 0)) ||
	    bpf_skb_change_tail(skb, segment->begin + KD_L7_FORBIDDEN_SIZE, 0) ||
	    bpf_skb_store_bytes(skb, segment->begin, text, KD_L7_FORBIDDEN_SIZE, 0))
		return false;
	bpf_l4_csum_replace(skb, segment->offset + offsetof(struct tcphdr, check), 0, sum, 0);
	kd_l7_set_length(skb, segment);
	kd_l7_set_flags(skb, segment,
			(segment->flags & ~bpf_htons(KD_L7_ALL_FLAGS)) |
				bpf_htons(KD_L7_FIN | KD_L7_PSH | KD_L7_ACK));
	return true;
}

/* A pod sends, on a connection that is to be closed; false: it must not. */
static __always_inline bool kd_l7_close_leaving(struct __sk_buff *skb)
{
	struct kd_l7_segment segment = {};
	struct kd_l7_closing *closing;
	__u64 *pending;
	bool sends;

	pending = kd_l7_pending_count();
	if (!pending || !*pending || !kd_l7_segment(skb, &segment))
		return true;
	closing = bpf_map_lookup_elem(&kd_l7_closing, &segment.way);
	if (!closing || segment.flags & bpf_htons(KD_L7_SYN))
		return true;
	sends = segment.payload || segment.flags & bpf_htons(KD_L7_FIN | KD_L7_RST);
	switch (closing->stage) {
	case KD_L7_WILL_ANSWER:
		if (!sends)
			return true;
		closing->end = segment.seq + KD_L7_FORBIDDEN_SIZE + 1;
		closing->stage = KD_L7_ANSWERED;
		kd_l7_count(KD_HTTP_REFUSED);
		return kd_l7_answer(skb, &segment);
	case KD_L7_ANSWERED: /* and again if it was lost; all that is behind it is never sent */
		if (sends && segment.seq + KD_L7_FORBIDDEN_SIZE + 1 == closing->end)
			return kd_l7_answer(skb, &segment);
		return !sends;
	case KD_L7_WILL_END:
		if (segment.seq + segment.payload != closing->end)
			return true;
		closing->end++;
		closing->stage = KD_L7_END_SENT;
		kd_l7_set_flags(skb, &segment, segment.flags | bpf_htons(KD_L7_FIN));
		return true;
	case KD_L7_END_SENT:
		if (segment.payload && segment.seq + segment.payload + 1 == closing->end)
			kd_l7_set_flags(skb, &segment, segment.flags | bpf_htons(KD_L7_FIN));
		return true;
	}
	return true;
}

/* A pod receives: has the client seen the end? */
static __always_inline void kd_l7_close_arriving(struct __sk_buff *skb)
{
	struct kd_l7_segment segment = {};
	struct kd_l7_closing *closing;
	struct kd_addr client;
	__u64 *pending;
	__be16 port;

	pending = kd_l7_pending_count();
	if (!pending || !*pending || !kd_l7_segment(skb, &segment))
		return;
	client = segment.way.src;
	segment.way.src = segment.way.dst;
	segment.way.dst = client;
	port = segment.way.sport;
	segment.way.sport = segment.way.dport;
	segment.way.dport = port;
	closing = bpf_map_lookup_elem(&kd_l7_closing, &segment.way);
	if (!closing || (closing->stage != KD_L7_ANSWERED && closing->stage != KD_L7_END_SENT) || segment.flags & bpf_htons(KD_L7_SYN | KD_L7_RST) ||
	    (__s32)(segment.ack - closing->end) < 0)
		return;
	kd_l7_close_forget(&segment.way);
	kd_l7_set_flags(skb, &segment, (segment.flags & ~bpf_htons(KD_L7_ALL_FLAGS)) | bpf_htons(KD_L7_RST));
}

#endif /* KD_L7_CLOSE_H */
