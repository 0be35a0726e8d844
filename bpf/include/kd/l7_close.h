/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * How a denied connection ends: with our own response or the server's last one, then both sides close.
 *
 * What the server's socket sends next becomes our response, at the pod's device: the denied bytes themselves, which
 * are handed back for that, or its FIN or RST if it closes first, or an ACK where they had to pass. Our response has a FIN
 * that the socket knows nothing of. If responses of the server are still to come, the last of them gets it instead. The client's next segment
 * that acknowledges the FIN becomes a RST, once: the server's socket is gone then, and what follows meets a port that
 * answers by itself.
 *
 * The end of what a client says is part of what a server acts on: some take half a request for one if nothing follows,
 * others if a read that waits is woken up by a reset and finds nothing (recv() is EAGAIN then, where programs read).
 * So a FIN or RST reaches the server only when all before it was read and no head is incomplete. Else it becomes a byte
 * that no process ever gets: reads fail from there on, see kd_l7_spoil().
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
#include <kd/tuple.h>
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
#define KD_L7_URG 0x20
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
static __always_inline bool kd_l7_close(const struct kd_tuple *way, enum kd_l7_stage stage, __u32 end, bool by_ack)
{
	struct kd_l7_closing closing = { .stage = stage, .end = end, .by_ack = by_ack };
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

/* What makes programs look at a segment of a connection that is not being closed. URG wakes up who waits, too. */
#define KD_L7_ENDING (KD_L7_FIN | KD_L7_RST | KD_L7_URG)

/* Whether a packet whose network header is at an offset may be such a segment, at first sight. */
static __always_inline bool kd_l7_may_end(struct __sk_buff *skb, __u32 begin)
{
	const __u8 *data = (const __u8 *)(long)skb->data, *end = (const __u8 *)(long)skb->data_end;
	__u32 at = begin + sizeof(struct ipv6hdr);

	if (data + at > end)
		return true;
	if (skb->protocol == bpf_htons(ETH_P_IP))
		at = begin + 4 * (data[begin] & 0xf);
	else if (data[begin + offsetof(struct ipv6hdr, nexthdr)] != IPPROTO_TCP)
		return true;
	at += KD_L7_TCP_FLAGS + 1;
	return data + at + 1 > end || data[at] & KD_L7_ENDING;
}

/* Read a TCP segment whose network header is at an offset; false: it is none, or of a kind that is not seen every day. */
static __always_inline bool kd_l7_segment(struct __sk_buff *skb, __u32 begin, struct kd_l7_segment *segment)
{
	struct tcphdr tcp;
	__u32 end;

	if (skb->protocol == bpf_htons(ETH_P_IP)) {
		struct iphdr ip;

		if (bpf_skb_load_bytes(skb, begin, &ip, sizeof(ip)) || ip.protocol != IPPROTO_TCP ||
		    ip.frag_off & bpf_htons(0x3fff))
			return false;
		kd_addr_set_v4(&segment->way.src, ip.saddr);
		kd_addr_set_v4(&segment->way.dst, ip.daddr);
		segment->offset = begin + 4 * ip.ihl;
		end = begin + bpf_ntohs(ip.tot_len);
	} else if (skb->protocol == bpf_htons(ETH_P_IPV6)) {
		struct ipv6hdr ip;

		if (bpf_skb_load_bytes(skb, begin, &ip, sizeof(ip)) || ip.nexthdr != IPPROTO_TCP)
			return false;
		kd_addr_set_v6(&segment->way.src, &ip.saddr);
		kd_addr_set_v6(&segment->way.dst, &ip.daddr);
		segment->offset = begin + sizeof(ip);
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
static __always_inline void kd_l7_set_length(struct __sk_buff *skb, const struct kd_l7_segment *segment, __u32 payload)
{
	bool ipv4 = skb->protocol == bpf_htons(ETH_P_IP);
	__u32 header = segment->begin - segment->offset, at = ETH_HLEN + 2, base = ETH_HLEN;
	__be16 old = 0, new, before, after;

	if (!ipv4) {
		at = ETH_HLEN + offsetof(struct ipv6hdr, payload_len);
		base = segment->offset;
	}
	before = bpf_htons(header + segment->payload);
	after = bpf_htons(header + payload);
	new = bpf_htons(segment->begin - base + payload);
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
	kd_l7_set_length(skb, segment, KD_L7_FORBIDDEN_SIZE);
	kd_l7_set_flags(skb, segment,
			(segment->flags & ~bpf_htons(KD_L7_ALL_FLAGS)) |
				bpf_htons(KD_L7_FIN | KD_L7_PSH | KD_L7_ACK));
	return true;
}

/* Bytes that come before our response are sent again, perhaps with others; false: there are none. */
static __always_inline bool kd_l7_repeat(struct __sk_buff *skb, const struct kd_l7_segment *segment, __u32 response)
{
	__u32 payload = response - segment->seq;

	if ((__s32)payload <= 0 || segment->flags & bpf_htons(KD_L7_RST))
		return false;
	if (payload < segment->payload) {
		if (bpf_skb_change_tail(skb, segment->begin + payload, 0))
			return false;
		kd_l7_set_length(skb, segment, payload);
	}
	kd_l7_set_flags(skb, segment, segment->flags & ~bpf_htons(KD_L7_FIN));
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
	if (!pending || !*pending || !kd_l7_segment(skb, ETH_HLEN, &segment))
		return true;
	closing = bpf_map_lookup_elem(&kd_l7_closing, &segment.way);
	if (!closing || segment.flags & bpf_htons(KD_L7_SYN))
		return true;
	sends = segment.payload || closing->by_ack || segment.flags & bpf_htons(KD_L7_FIN | KD_L7_RST);
	switch (closing->stage) {
	case KD_L7_WILL_ANSWER:
		if (!sends)
			return true;
		closing->end = segment.seq + KD_L7_FORBIDDEN_SIZE + 1;
		closing->stage = KD_L7_ANSWERED;
		kd_l7_count(KD_HTTP_REFUSED);
		return kd_l7_answer(skb, &segment);
	case KD_L7_ANSWERED: /* and again if it was lost, as what comes before it; all that is behind it is never sent */
		if (sends && segment.seq + KD_L7_FORBIDDEN_SIZE + 1 == closing->end)
			return kd_l7_answer(skb, &segment);
		return !sends || kd_l7_repeat(skb, &segment, closing->end - KD_L7_FORBIDDEN_SIZE - 1);
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

/* What is to become of a client's FIN or RST. */
enum kd_l7_ending {
	KD_L7_END_PASSES,
	KD_L7_END_WAITS, /* for what comes before it to be read; the client repeats it */
	KD_L7_END_SPOILS, /* what comes before it is not to be acted on */
};

static __always_inline enum kd_l7_ending kd_l7_ending_of(const struct kd_l7_segment *segment, const struct bpf_tcp_sock *tcp,
							 const struct kd_l7_conn *conn)
{
	if (conn && conn->flags & (KD_L7_CLIENT | KD_L7_AUDITED))
		return KD_L7_END_PASSES;
	if (conn && conn->flags & KD_L7_ENDED && !(conn->flags & KD_L7_BEGUN))
		return KD_L7_END_PASSES;
	if (!tcp || segment->payload || segment->seq != tcp->rcv_nxt)
		return KD_L7_END_WAITS;
	if (!conn || conn->flags & KD_L7_ENDED)
		return KD_L7_END_SPOILS;
	if (conn->received < tcp->bytes_received) /* nobody has accepted the connection yet */
		return segment->flags & bpf_htons(KD_L7_RST) ? KD_L7_END_SPOILS : KD_L7_END_WAITS;
	return kd_l7_in_head(&conn->requests) ? KD_L7_END_SPOILS : KD_L7_END_PASSES;
}

/* Whether a segment may reach a socket that is read, at the socket: what has to be changed was changed before. */
static __always_inline bool kd_l7_may_arrive(struct bpf_sock *sk, const struct kd_l7_sock *mark,
					     const struct kd_l7_segment *segment)
{
	__u64 cookie = mark->cookie;

	if (segment->flags & bpf_htons(KD_L7_URG))
		return false;
	if (!(segment->flags & bpf_htons(KD_L7_FIN | KD_L7_RST)))
		return true;
	return kd_l7_ending_of(segment, bpf_tcp_sock(sk), bpf_map_lookup_elem(&kd_l7_conns, &cookie)) ==
	       KD_L7_END_PASSES;
}

/* A segment without payload becomes one byte, in the place of what it was; false: it could not. */
static __always_inline bool kd_l7_to_byte(struct __sk_buff *skb, const struct kd_l7_segment *segment, __u32 ack)
{
	__u32 at = segment->offset + offsetof(struct tcphdr, check);
	__be32 old = bpf_htonl(segment->ack), new = bpf_htonl(ack);
	__u8 byte = 'X';

	if (bpf_skb_change_tail(skb, segment->begin + sizeof(byte), 0) ||
	    bpf_skb_store_bytes(skb, segment->begin, &byte, sizeof(byte), 0) ||
	    bpf_skb_store_bytes(skb, segment->offset + offsetof(struct tcphdr, ack_seq), &new, sizeof(new), 0))
		return false;
	bpf_l4_csum_replace(skb, at, old, new, sizeof(new));
	bpf_l4_csum_replace(skb, at, 0, bpf_htons(byte << 8), sizeof(__be16));
	kd_l7_set_length(skb, segment, sizeof(byte));
	kd_l7_set_flags(skb, segment,
			(segment->flags & ~bpf_htons(KD_L7_ALL_FLAGS)) | bpf_htons(KD_L7_PSH | KD_L7_ACK));
	return true;
}

/* A FIN, RST or URG for a socket that is read; true: it is not for it. */
static __always_inline bool kd_l7_end_arriving(struct __sk_buff *skb, const struct kd_l7_segment *segment,
					       struct bpf_sock *sk, const struct kd_l7_sock *mark)
{
	struct bpf_tcp_sock *tcp = bpf_tcp_sock(sk);
	__be16 plain = segment->flags & ~bpf_htons(KD_L7_URG);
	__u64 cookie = mark->cookie;
	struct kd_l7_conn *conn;

	if (!(segment->flags & bpf_htons(KD_L7_FIN | KD_L7_RST))) {
		kd_l7_set_flags(skb, segment, plain);
		return false;
	}
	conn = bpf_map_lookup_elem(&kd_l7_conns, &cookie);
	switch (kd_l7_ending_of(segment, tcp, conn)) {
	case KD_L7_END_PASSES:
		kd_l7_set_flags(skb, segment, plain);
		return false;
	case KD_L7_END_SPOILS:
		if (conn && !(conn->flags & KD_L7_ENDED)) {
			conn->ended_at = bpf_ktime_get_ns();
			conn->flags |= KD_L7_ENDED | KD_L7_BEGUN;
		}
		return !tcp || !kd_l7_to_byte(skb, segment, tcp->snd_una);
	case KD_L7_END_WAITS:
		break;
	}
	if (segment->flags & bpf_htons(KD_L7_RST)) { /* nobody repeats it unless he is asked, as one is who sends a SYN */
		kd_l7_set_flags(skb, segment, (segment->flags & ~bpf_htons(KD_L7_ALL_FLAGS)) | bpf_htons(KD_L7_SYN));
		return segment->payload;
	}
	kd_l7_set_flags(skb, segment, plain & ~bpf_htons(KD_L7_FIN));
	return !segment->payload;
}

static __always_inline struct bpf_sock *kd_l7_sock_of(struct __sk_buff *skb, const struct kd_l7_segment *segment)
{
	struct bpf_sock_tuple tuple = {};

	if (skb->protocol == bpf_htons(ETH_P_IP)) {
		tuple.ipv4.saddr = segment->way.src.w[3];
		tuple.ipv4.daddr = segment->way.dst.w[3];
		tuple.ipv4.sport = segment->way.sport;
		tuple.ipv4.dport = segment->way.dport;
		return bpf_sk_lookup_tcp(skb, &tuple, sizeof(tuple.ipv4), BPF_F_CURRENT_NETNS, 0);
	}
	__builtin_memcpy(tuple.ipv6.saddr, segment->way.src.w, sizeof(tuple.ipv6.saddr));
	__builtin_memcpy(tuple.ipv6.daddr, segment->way.dst.w, sizeof(tuple.ipv6.daddr));
	tuple.ipv6.sport = segment->way.sport;
	tuple.ipv6.dport = segment->way.dport;
	return bpf_sk_lookup_tcp(skb, &tuple, sizeof(tuple.ipv6), BPF_F_CURRENT_NETNS, 0);
}

/* A pod receives: has the client seen the end, or does it say that it has said all? True: its socket gets nothing. */
static __always_inline bool kd_l7_close_arriving(struct __sk_buff *skb)
{
	struct kd_l7_segment segment = {};
	struct kd_l7_closing *closing;
	__u64 *pending = kd_l7_pending_count();
	struct kd_l7_sock *mark;
	struct kd_tuple way;
	struct bpf_sock *sk;
	bool kept;

	if (!pending || (!*pending && !kd_l7_may_end(skb, ETH_HLEN)) || !kd_l7_segment(skb, ETH_HLEN, &segment) ||
	    segment.flags & bpf_htons(KD_L7_SYN))
		return false;
	way = kd_reversed(&segment.way);
	closing = segment.flags & bpf_htons(KD_L7_RST) ? NULL : bpf_map_lookup_elem(&kd_l7_closing, &way);
	if (closing && (closing->stage == KD_L7_ANSWERED || closing->stage == KD_L7_END_SENT) &&
	    (__s32)(segment.ack - closing->end) >= 0) {
		kd_l7_close_forget(&way);
		kd_l7_set_flags(skb, &segment, (segment.flags & ~bpf_htons(KD_L7_ALL_FLAGS)) | bpf_htons(KD_L7_RST));
		return false;
	}
	if (!(segment.flags & bpf_htons(KD_L7_ENDING)))
		return false;
	sk = kd_l7_sock_of(skb, &segment);
	if (!sk)
		return false;
	mark = bpf_sk_storage_get(&kd_l7_sock, sk, NULL, 0);
	kept = mark && mark->flags == KD_L7_READ && kd_l7_end_arriving(skb, &segment, sk, mark);
	bpf_sk_release(sk);
	return kept;
}

#endif /* KD_L7_CLOSE_H */
