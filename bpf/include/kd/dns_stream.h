/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Names that pods may ask name servers for over TCP, segment by segment.
 *
 * The server's SYN-ACK says where a connection begins. From there on each byte is read in its turn, however questions
 * are cut into segments: a server cannot act on one that is incomplete, so all but the segment that completes it passes
 * undecided. What has passed is kept, and passes again only if it is the same, byte by byte: whatever of it is lost on the
 * way, the server puts together what was read here. So nothing passes that leaves a gap, is urgent (which takes a byte out
 * of the stream), comes with the SYN, or belongs to MPTCP, where other segments have the same bytes.
 *
 * A question for another name becomes the answer that it is refused, with our FIN: the connection is over, since server
 * and client have not the same numbers any more. The client's acknowledgement of the FIN becomes a RST for the server.
 *
 * Reads kd_dns_sets and kd_dns_table; writes kd_dns_streams and kd_dns_room.
 */
#ifndef KD_DNS_STREAM_H
#define KD_DNS_STREAM_H

#include <stdbool.h>
#include <stddef.h>
#include <linux/bpf.h>
#include <linux/tcp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include <kd/dns.h>
#include <kd/dns_rules.h>
#include <kd/packet.h>
#include <kd/reject.h>
#include <kd/talks.h>
#include <kd/tuple.h>
#include <kd/verdict.h>
#include <kd/maps/dns.h>

#define KD_DNS_PREFIX 2 /* the length in front of a message */
#define KD_DNS_LARGEST 65535 /* more than a segment says */
#define KD_DNS_OPTIONS 40 /* bytes of them that TCP has room for */
#define KD_DNS_COOKIE_SIZES 4 /* of segments, that a SYN cookie tells apart */
#define KD_DNS_OPTION_END 0
#define KD_DNS_OPTION_NONE 1
#define KD_DNS_OPTION_MPTCP 30

/* What is read, and where it is kept. */
struct kd_dns_reader {
	struct kd_dns_stream *stream;
	struct kd_dns_record *record; /* its message is the payload */
	const struct kd_dns_set *set;
};

/* One byte of a message; 1: no more is read. */
static __always_inline long kd_dns_run_read(struct kd_dns_run *run, const struct kd_dns_set *set, __u8 byte)
{
	__u32 at = run->at++;

	if (at < KD_DNS_PREFIX) {
		run->length = run->length << 8 | byte;
		if (at && run->length < KD_DNS_HEADER + 1 + KD_DNS_KIND)
			goto malformed;
		return 0;
	}
	at -= KD_DNS_PREFIX;
	if (at >= run->length || (at == 2 && byte & KD_DNS_NO_QUERY) || (at == 4 && byte) || (at == 5 && byte != 1))
		goto malformed;
	if (at < KD_DNS_HEADER)
		return 0;
	if (!run->name.complete) {
		if (at >= KD_DNS_HEADER + KD_DNS_NAME || !kd_dns_name_byte(&run->name, set, byte))
			goto malformed;
		return 0;
	}
	if (++run->kind < KD_DNS_KIND)
		return 0;
	if (!(run->name.state & KD_DNS_FITS)) {
		run->result = KD_REJECT_NAME;
		if (!run->audited)
			return 1;
	}
	run->left = run->length - at - 1;
	run->at = 0;
	run->length = 0;
	run->kind = 0;
	run->name.state = KD_DNS_START;
	run->name.begun = false;
	run->name.complete = false;
	return 0;

malformed:
	run->result = KD_REJECT_DENIED;
	return 1;
}

static long kd_dns_run_byte(__u32 index, struct kd_dns_reader *reader)
{
	struct kd_dns_run *run = &reader->record->run;
	__u8 *kept = &reader->stream->bytes[(run->first + index) & (KD_DNS_KEPT - 1)];

	if (index >= run->size)
		return 1;
	if (index >= run->known)
		*kept = reader->record->message[(index - run->known + run->skip) & (KD_DNS_MAX - 1)];
	if (run->left) {
		run->left--;
		return 0;
	}
	if (!run->at)
		run->start = index;
	return kd_dns_run_read(run, reader->set, *kept);
}

/* Whether a byte that has passed before is the same. */
static long kd_dns_run_compare(__u32 index, struct kd_dns_reader *reader)
{
	struct kd_dns_run *run = &reader->record->run;

	if (index >= run->skip)
		return 1;
	if (reader->stream->bytes[(run->first + index) & (KD_DNS_KEPT - 1)] ==
	    reader->record->message[index & (KD_DNS_MAX - 1)])
		return 0;
	run->result = KD_DROP_NAME;
	return 1;
}

/* The message that was read last, as far as it was. */
static long kd_dns_run_copy(__u32 index, struct kd_dns_reader *reader)
{
	const struct kd_dns_run *run = &reader->record->run;

	if (index >= run->at)
		return 1;
	reader->record->message[index & (KD_DNS_MAX - 1)] =
		reader->stream->bytes[(run->first + run->start + index) & (KD_DNS_KEPT - 1)];
	return 0;
}

/* Read what is new, and take note of it if it passes. */
static __always_inline int kd_dns_run_take(struct kd_dns_reader *reader)
{
	struct kd_dns_run *run = &reader->record->run;
	struct kd_dns_stream *stream = reader->stream;

	run->first = stream->next - stream->undecided;
	run->known = stream->undecided;
	run->size += run->known;
	run->left = stream->left;
	run->name.state = KD_DNS_START;
	bpf_loop(KD_DNS_KEPT + KD_DNS_MAX, kd_dns_run_byte, reader, 0);
	if (stream->state == KD_DNS_STREAM_DENIED && !run->result) /* it was something else before */
		run->result = KD_REJECT_DENIED;
	if (run->result && (!run->audited || run->result != KD_REJECT_NAME)) {
		stream->state = run->audited ? KD_DNS_STREAM_LOST : KD_DNS_STREAM_DENIED;
		if (run->result == KD_REJECT_NAME) {
			bpf_loop(KD_DNS_READ, kd_dns_run_copy, reader, 0);
			reader->record->question = run->at;
		}
		return run->result;
	}
	stream->next = run->first + run->size;
	stream->kept += run->size - run->known;
	if (stream->kept > KD_DNS_KEPT)
		stream->kept = KD_DNS_KEPT;
	stream->undecided = run->at;
	stream->left = run->left;
	return run->result;
}

/*
 * Whether a segment acknowledges what the server has said in this connection. A server that is out of room forgets whom it
 * has agreed with (SYN cookies), and takes up any of these connections, which begin at other bytes, when it is answered.
 *
 * Nor does it know where one begins: Linux takes the number of the segment that answers for it, if the rest of the cookie
 * is one of four sizes of segments, to which that number is added. Until it has acknowledged something, nothing is to come
 * first that begins a few bytes late.
 */
static __always_inline bool kd_dns_is_of(const struct kd_dns_stream *stream, const struct tcphdr *tcp)
{
	if (stream->state >= KD_DNS_STREAM_DENIED)
		return true;
	if (!stream->begun && bpf_ntohl(tcp->seq) - stream->origin - 1 < KD_DNS_COOKIE_SIZES - 1)
		return false;
	return tcp->ack && bpf_ntohl(tcp->ack_seq) - stream->first <= stream->end - stream->first;
}

/* The bytes of a segment, of a connection that nobody else is at. */
static __always_inline int kd_dns_run(struct __sk_buff *skb, const struct kd_pkt *pkt, struct kd_dns_reader *reader)
{
	struct kd_dns_run *run = &reader->record->run;
	struct kd_dns_stream *stream = reader->stream;
	__u32 begin, size, behind;
	struct tcphdr tcp;

	size = kd_dns_payload(skb, pkt, &tcp, &begin);
	if (stream->state == KD_DNS_STREAM_CUT || stream->state == KD_DNS_STREAM_LOST)
		return KD_REJECT_DENIED;
	asm volatile("" : "+r"(size)); /* the verifier is to see this very number checked */
	if (tcp.urg || tcp.rst || !kd_dns_is_of(stream, &tcp) || size - 1 >= KD_DNS_MAX ||
	    bpf_skb_load_bytes(skb, begin, reader->record->message, size)) {
		stream->state = run->audited ? KD_DNS_STREAM_LOST : stream->state;
		return KD_DROP_NAME;
	}
	behind = stream->next - bpf_ntohl(tcp.seq);
	if (stream->state == KD_DNS_STREAM_DENIED && behind)
		return KD_REJECT_DENIED;
	if (behind > stream->kept)
		return KD_DROP_NAME;
	run->first = bpf_ntohl(tcp.seq);
	run->skip = behind < size ? behind : size;
	bpf_loop(KD_DNS_KEPT, kd_dns_run_compare, reader, 0);
	if (run->result || run->skip == size)
		return run->result;
	run->size = size - run->skip;
	return stream->over ? KD_REJECT_DENIED : kd_dns_run_take(reader);
}

/*
 * Whether a segment with a payload asks for nothing but some names: KD_CONTINUE, or KD_REJECT_NAME; KD_REJECT_DENIED if
 * there is something else, or the connection is over or not known from its beginning; KD_DROP_NAME if it may come once
 * more, and better.
 */
KD_FUNCTION int kd_dns_stream_ask(struct __sk_buff *skb, const struct kd_pkt *pkt, const struct kd_tuple *way, __u32 number,
				  __u32 audited)
{
	struct kd_dns_reader reader = {};
	int result;

	if (!pkt || !way || pkt->fragment || pkt->tcp_flags & KD_TCP_SYN)
		return KD_DROP_NAME;
	reader.record = bpf_map_lookup_elem(&kd_dns_room, (const void *)&kd_dns_first);
	reader.set = bpf_map_lookup_elem(&kd_dns_sets, &number);
	if (!reader.record || !reader.set || !reader.set->size)
		return KD_DROP_NAME;
	reader.record->question = 0;
	__builtin_memset(&reader.record->run, 0, sizeof(reader.record->run));
	reader.record->run.audited = audited;
	reader.stream = bpf_map_lookup_elem(&kd_dns_streams, way);
	if (!reader.stream)
		return KD_REJECT_DENIED;
	if (__sync_lock_test_and_set(&reader.stream->busy, 1))
		return KD_DROP_NAME;
	result = kd_dns_run(skb, pkt, &reader);
	__sync_lock_test_and_set(&reader.stream->busy, 0);
	return result;
}

/* Whether a segment of TCP says nothing, now or later. */
static __always_inline bool kd_dns_is_silent(struct __sk_buff *skb, const struct kd_pkt *pkt)
{
	struct tcphdr tcp;
	__u32 begin;

	return !pkt->fragment && !kd_dns_payload(skb, pkt, &tcp, &begin) && !tcp.urg;
}

/* A segment without payload: if it acknowledges our FIN, the server is to know that the connection is over. */
KD_FUNCTION int kd_dns_stream_end(struct __sk_buff *skb, const struct kd_pkt *pkt, const struct kd_tuple *way)
{
	struct kd_dns_stream *stream;
	__be16 before, after;
	__u32 check_off;
	struct tcphdr tcp;
	__be32 next;

	if (!pkt || !way)
		return KD_DROP_NAME;
	stream = bpf_map_lookup_elem(&kd_dns_streams, way);
	if (!stream || pkt->tcp_flags & KD_TCP_SYN)
		return KD_CONTINUE;
	if (pkt->tcp_flags & KD_TCP_RST) {
		stream->over = 1;
		return KD_CONTINUE;
	}
	if (bpf_skb_load_bytes(skb, pkt->l4_off, &tcp, sizeof(tcp)) || !kd_dns_is_of(stream, &tcp))
		return KD_DROP_NAME;
	if (stream->state != KD_DNS_STREAM_DENIED || bpf_ntohl(tcp.ack_seq) != stream->end)
		return KD_CONTINUE;
	check_off = pkt->l4_off + offsetof(struct tcphdr, check);
	next = bpf_htonl(stream->next);
	if (bpf_skb_load_bytes(skb, pkt->l4_off + KD_TCP_WORDS, &before, sizeof(before)))
		return KD_DROP_NAME;
	after = (before & bpf_htons(0xf000)) | bpf_htons(KD_TCP_RST);
	if (bpf_l4_csum_replace(skb, check_off, tcp.seq, next, sizeof(next)) ||
	    bpf_l4_csum_replace(skb, check_off, before, after, sizeof(after)) ||
	    bpf_skb_store_bytes(skb, pkt->l4_off + offsetof(struct tcphdr, seq), &next, sizeof(next), 0) ||
	    bpf_skb_store_bytes(skb, pkt->l4_off + KD_TCP_WORDS, &after, sizeof(after), 0))
		return KD_DROP_NAME;
	stream->state = KD_DNS_STREAM_CUT;
	return KD_CONTINUE;
}

/* Whether a segment has an option of MPTCP. */
static __always_inline bool kd_dns_is_multipath(struct __sk_buff *skb, const struct kd_pkt *pkt, __u32 end)
{
	__u32 at = pkt->l4_off + sizeof(struct tcphdr);
	__u8 kind, size;

	for (int i = 0; i < KD_DNS_OPTIONS && at < end; i++) {
		if (bpf_skb_load_bytes(skb, at, &kind, sizeof(kind)) || kind == KD_DNS_OPTION_MPTCP)
			return true;
		if (kind == KD_DNS_OPTION_END)
			return false;
		size = 1;
		if (kind != KD_DNS_OPTION_NONE && (bpf_skb_load_bytes(skb, at + 1, &size, sizeof(size)) || size < 2))
			return true;
		at += size;
	}
	return false;
}

/* The server agrees to a connection: it begins with what it acknowledges. */
KD_SUBPROGRAM int kd_dns_stream_open(struct __sk_buff *skb, const struct kd_pkt *pkt, const struct kd_tuple *key,
				     struct kd_dns_stream *stream)
{
	struct kd_dns_record *record = bpf_map_lookup_elem(&kd_dns_room, (const void *)&kd_dns_first);
	struct kd_dns_stream *blank;
	struct tcphdr tcp;
	__u32 origin, first, begin;

	if (!record || kd_dns_payload(skb, pkt, &tcp, &begin))
		return KD_DROP_NAME;
	if (kd_dns_is_multipath(skb, pkt, begin)) {
		bpf_map_delete_elem(&kd_dns_streams, key);
		return KD_CONTINUE;
	}
	origin = bpf_ntohl(tcp.ack_seq);
	first = bpf_ntohl(tcp.seq) + 1;
	if (stream && stream->origin == origin && (stream->first == first || stream->next != origin)) /* it says so again */
		return KD_CONTINUE;
	if (stream && __sync_lock_test_and_set(&stream->busy, 1))
		return KD_DROP_NAME;
	blank = stream ? stream : (struct kd_dns_stream *)record->message;
	blank->origin = origin;
	blank->next = origin;
	blank->kept = 0;
	blank->undecided = 0;
	blank->left = 0;
	blank->first = first;
	blank->end = first;
	blank->over = 0;
	blank->begun = 0;
	blank->state = KD_DNS_STREAM_READ;
	if (stream) {
		__sync_lock_test_and_set(&stream->busy, 0);
		return KD_CONTINUE;
	}
	blank->busy = 0;
	bpf_map_update_elem(&kd_dns_streams, key, blank, BPF_NOEXIST);
	return KD_CONTINUE;
}

/* How much the server has said by now. */
static __always_inline int kd_dns_stream_hear(struct __sk_buff *skb, const struct kd_pkt *pkt, struct kd_dns_stream *stream)
{
	struct tcphdr tcp;
	__u32 begin, size;

	if (pkt->later)
		return KD_CONTINUE;
	size = kd_dns_payload(skb, pkt, &tcp, &begin);
	if (size > pkt->end)
		return KD_DROP_NAME;
	if (tcp.ack && !tcp.rst && bpf_ntohl(tcp.ack_seq) - stream->origin - 1 < stream->next - stream->origin &&
	    bpf_ntohl(tcp.seq) - stream->first <= stream->end - stream->first)
		stream->begun = 1;
	if (pkt->fragment && stream->begun)
		size = KD_DNS_LARGEST; /* what the others have is not known */
	size += bpf_ntohl(tcp.seq) + tcp.fin;
	if ((__s32)(size - stream->end) > 0)
		stream->end = size;
	return KD_CONTINUE;
}

/* What a server says to a pod over TCP: KD_CONTINUE, or KD_DROP_NAME if it cannot be meant for it any more. */
KD_SUBPROGRAM int kd_dns_stream_reply(struct __sk_buff *skb, const struct kd_pkt *pkt, struct kd_asking *ask)
{
	struct kd_dns_stream *stream;

	ask->key = kd_reversed(&ask->way); /* the talk's is not used any more */
	stream = bpf_map_lookup_elem(&kd_dns_streams, &ask->key);
	if (pkt->tcp_flags & KD_TCP_SYN)
		return kd_dns_stream_open(skb, pkt, &ask->key, stream);
	if (!stream)
		return KD_CONTINUE;
	if (pkt->tcp_flags & (KD_TCP_FIN | KD_TCP_RST))
		stream->over = 1;
	if (stream->state >= KD_DNS_STREAM_DENIED)
		return pkt->tcp_flags & KD_TCP_RST ? KD_CONTINUE : KD_DROP_NAME;
	return kd_dns_stream_hear(skb, pkt, stream);
}

/* The segment that has completed the question that was read last becomes the answer that it is refused, and the end. */
KD_FUNCTION int kd_dns_stream_refuse(struct __sk_buff *skb, const struct kd_pkt *pkt)
{
	struct kd_dns_record *record = bpf_map_lookup_elem(&kd_dns_room, (const void *)&kd_dns_first);
	struct kd_asking *ask = bpf_map_lookup_elem(&kd_asking, (const void *)&kd_dns_first);
	struct tcphdr tcp, answer = { .doff = sizeof(answer) / 4, .ack = 1, .psh = 1, .fin = 1 };
	__be32 pseudo[2] = { 0, bpf_htonl(IPPROTO_TCP) };
	struct kd_dns_stream *stream;
	__u32 check_off, size, sum, begin;

	if (!pkt || !record || !ask ||
	    pkt->l4_off != ETH_HLEN + (pkt->ipv6 ? sizeof(struct ipv6hdr) : sizeof(struct iphdr)) ||
	    !kd_reject_allowed())
		return KD_DROP_NAME;
	stream = bpf_map_lookup_elem(&kd_dns_streams, &ask->way);
	check_off = pkt->l4_off + offsetof(struct tcphdr, check);
	sum = kd_dns_payload(skb, pkt, &tcp, &begin);
	answer.ack_seq = bpf_htonl(bpf_ntohl(tcp.seq) + sum + tcp.fin);
	size = record->question;
	asm volatile("" : "+r"(size));
	if (!stream || size < KD_DNS_HEADER || size > KD_DNS_READ ||
	    bpf_skb_change_tail(skb, pkt->l4_off + sizeof(tcp) + size, 0))
		return KD_DROP_NAME;
	kd_dns_become_refusal(record->message + KD_DNS_PREFIX);
	record->message[0] = (size - KD_DNS_PREFIX) >> 8;
	record->message[1] = size - KD_DNS_PREFIX;
	__builtin_memset(record->message + size, 0, 3); /* which the checksum reads, in words */
	answer.source = tcp.dest;
	answer.dest = tcp.source;
	answer.seq = tcp.ack_seq;
	answer.window = tcp.window;
	pseudo[0] = bpf_htonl(sizeof(tcp) + size);
	/* As in kd_reject_reset(). */
	sum = kd_csum(&pkt->tuple, sizeof(pkt->tuple.src) + sizeof(pkt->tuple.dst), 0);
	sum = kd_csum(pseudo, sizeof(pseudo), sum);
	if (kd_is_partial(skb, check_off, tcp.check))
		answer.check = ~kd_csum_fold(sum);
	else
		answer.check = kd_csum_fold(kd_csum(record->message, (size + 3) & ~3u, kd_csum(&answer, sizeof(answer), sum)));
	if (bpf_skb_store_bytes(skb, pkt->l4_off, &answer, sizeof(answer), 0) ||
	    bpf_skb_store_bytes(skb, pkt->l4_off + sizeof(answer), record->message, size, 0) ||
	    kd_answer_ip(skb, pkt, sizeof(answer) + size) || kd_return(skb))
		return KD_DROP_NAME;
	stream->end = bpf_ntohl(answer.seq) + size + 1;
	return KD_REJECT_NAME;
}

#endif /* KD_DNS_STREAM_H */
