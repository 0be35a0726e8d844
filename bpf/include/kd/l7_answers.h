/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * What servers answer, read in the packets that their sockets send: so that it is known how many responses are still to
 * come, of which none must be taken for our own, and to be told.
 *
 * A socket sends its bytes in order, and some of them again. What was read of them is in the socket's storage.
 */
#ifndef KD_L7_ANSWERS_H
#define KD_L7_ANSWERS_H

#include <stdbool.h>
#include <stddef.h>
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/tcp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include <kd/http.h>
#include <kd/l7_close.h>
#include <kd/l7_stream.h>

/*
 * Heads are read by the line where they can be: nearly none matters. The automaton, which knows all, reads what begins at
 * one that is not as most are.
 */
#define KD_L7_NAME_CONTENT 0x2d746e65746e6f63ull /* content- */
#define KD_L7_NAME_LENGTH 0x00006874676e656cull /* length */
#define KD_L7_NAME_TRANSFER 0x726566736e617274ull /* transfer */
#define KD_L7_MAX_DIGITS 17

static __always_inline __u64 kd_l7_lower(const struct kd_l7_conn *conn, __u32 at)
{
	return kd_l7_word(conn, at) | KD_HTTP_EACH(0x20);
}

/* Behind the end of a line; 0: there is none, or another control character before it. */
static __always_inline __u32 kd_l7_line_end(const struct kd_l7_conn *conn, __u32 at, __u32 size)
{
	__u64 found = 0;

	for (__u32 i = 0; i < KD_L7_AHEAD / 8; i++) {
		found = kd_http_control(kd_l7_word(conn, at));
		if (found || at >= size)
			break;
		at += 8;
	}
	at += kd_http_before(found);
	return at + 2 <= size && (__u16)kd_l7_word(conn, at) == KD_L7_CRLF ? at + 2 : 0;
}

/* A response's first line; likewise. */
static __always_inline __u32 kd_l7_status_line(struct kd_l7_conn *conn, __u32 at, __u32 size)
{
	__u64 code = kd_l7_word(conn, at + 8);
	__u32 status = 0;

	if (kd_l7_word(conn, at) != KD_HTTP_VERSION_11 || (__u8)code != ' ')
		return 0;
#pragma unroll
	for (int i = 0; i < 3; i++) {
		__u32 digit = (__u8)(code >>= 8) - '0';

		if (digit > 9)
			return 0;
		status = 10 * status + digit;
	}
	if (status < 100)
		return 0;
	at = kd_l7_line_end(conn, at + 12, size);
	if (at)
		conn->responses.number = status;
	return at;
}

/* Content-Length, whose digits begin there or behind one space; likewise. */
static __always_inline __u32 kd_l7_length_line(struct kd_l7_conn *conn, __u32 at, __u32 size)
{
	struct kd_l7_stream *stream = &conn->responses;
	__u64 length = 0;
	__u32 begin, digit;

	if (stream->flags & (KD_L7_HAS_LENGTH | KD_L7_HAS_ENCODING))
		return 0;
	at += (__u8)kd_l7_word(conn, at) == ' ';
	begin = at;
	for (__u32 i = 0; i < KD_L7_MAX_DIGITS; i++) {
		digit = (__u8)kd_l7_word(conn, at) - '0';
		if (digit > 9)
			break;
		length = 10 * length + digit;
		at++;
	}
	if (at == begin || at + 2 > size || (__u16)kd_l7_word(conn, at) != KD_L7_CRLF)
		return 0;
	stream->length = length;
	stream->flags |= KD_L7_HAS_LENGTH;
	return at + 2;
}

/* Read a line of what is ahead, to its end; 0: it is for the automaton. */
KD_FUNCTION int kd_l7_line(struct kd_l7_conn *conn, __u32 at, __u32 size)
{
	__u64 name;

	if (!conn)
		return 0;
	if (!conn->responses.number)
		return kd_l7_status_line(conn, at, size);
	if (at + 2 <= size && (__u16)kd_l7_word(conn, at) == KD_L7_CRLF)
		return at + 2;
	name = kd_l7_lower(conn, at);
	if ((__u8)kd_l7_word(conn, at) <= ' ' || name == KD_L7_NAME_TRANSFER)
		return 0;
	if (name != KD_L7_NAME_CONTENT || (kd_l7_lower(conn, at + 8) & 0xffffffffffff) != KD_L7_NAME_LENGTH)
		return kd_l7_line_end(conn, at, size);
	return (__u8)kd_l7_word(conn, at + 14) == ':' ? kd_l7_length_line(conn, at + 15, size) : 0;
}

/* The head of a response is complete. */
static __always_inline void kd_l7_responded(struct kd_l7_conn *conn, __u64 cookie)
{
	struct kd_l7_stream *stream = &conn->responses;
	__u32 status = stream->number;
	bool empty = status == 204 || status == 304 || conn->heads >> (conn->answered & 63) & 1;

	if (status / 100 == 1) { /* another one follows */
		stream->head = 0;
		return;
	}
	if (conn->flags & KD_L7_OBSERVED)
		kd_l7_tell(conn, cookie, KD_L7_RESPONDED, conn->asked == conn->answered + 1 ? conn->size : 0);
	if (!empty && !(stream->flags & (KD_L7_HAS_LENGTH | KD_L7_HAS_ENCODING))) {
		stream->flags |= KD_L7_UNKNOWN; /* it goes on until the connection ends */
		return;
	}
	if (!kd_http_enter_body(stream, empty))
		conn->answered++;
}

/* Do what the last byte of a window asks for; false: this is no response that we understand. */
static __always_inline bool kd_l7_response_act(struct kd_l7_conn *conn, __u64 cookie, __u32 cell)
{
	struct kd_l7_stream *stream = &conn->responses;
	const struct kd_l7_row *row;
	__u32 arg = cell & 0xf, next = cell >> 8;

	switch (cell >> 4 & 0xf) {
	case KD_L7_GO:
		return true;
	case KD_L7_STATUS:
		stream->number = 10 * stream->number + arg;
		return true;
	case KD_L7_DIGIT:
		if (stream->length < KD_HTTP_MAX_BODY)
			stream->length = 10 * stream->length + arg;
		return true;
	case KD_L7_HEADER:
		row = kd_http_row(KD_L7_COMMON, next);
		if (!row)
			return false;
		stream->state = row->next;
		return !kd_http_framing(stream, row->flags);
	case KD_L7_HEAD:
		kd_l7_responded(conn, cookie);
		return true;
	case KD_L7_HEX:
		stream->length = stream->length << 4 | arg;
		return stream->length < KD_HTTP_MAX_BODY;
	case KD_L7_CHUNK:
		stream->body = stream->length;
		stream->length = 0;
		return stream->body || kd_http_enter(stream, KD_L7_COMMON, KD_L7_LAST);
	case KD_L7_BODY:
		stream->flags &= ~KD_L7_IN_BODY;
		conn->answered++;
		return true;
	}
	return false;
}

/* Read a line of a head; false: it is for the automaton, and what follows. */
static __always_inline bool kd_l7_read_line(struct kd_l7_reading *reading)
{
	struct kd_l7_conn *conn = reading->conn;
	struct kd_l7_stream *stream = &conn->responses;
	__u32 at = conn->sent - conn->ahead_at, end;

	if (at >= conn->ahead_size) {
		at = 0;
		if (!kd_l7_look_ahead(reading, conn->sent))
			return false;
	}
	end = kd_l7_line(conn, at, conn->ahead_size);
	if (!end) {
		conn->ahead_size = 0; /* there may be more of it than was ahead */
		return at;
	}
	end -= at;
	conn->sent += end;
	reading->window.at += end; /* perhaps beyond its end */
	if (!stream->head && !kd_http_enter(stream, KD_L7_COMMON, KD_L7_ANSWER))
		stream->flags |= KD_L7_UNKNOWN;
	stream->head += end;
	if (end == 2) {
		stream->flags &= ~KD_L7_BY_LINE;
		kd_l7_responded(conn, reading->cookie);
	}
	return true;
}

static long kd_l7_response(__u32 index __attribute__((unused)), struct kd_l7_reading *reading)
{
	struct kd_l7_conn *conn = reading->conn;
	struct kd_l7_stream *stream = &conn->responses;
	struct kd_http_window *window = &reading->window;
	__u32 before;
	__u64 size;

	if (conn->sent >= reading->end || stream->flags & KD_L7_UNKNOWN)
		return 1;
	if (kd_l7_skip(stream, &reading->window, &conn->sent, reading->end)) {
		if (!(stream->flags & KD_L7_IN_BODY))
			conn->answered++;
		return 0;
	}
	if (!stream->head && !(stream->flags & KD_L7_IN_BODY)) {
		kd_http_begin(stream);
		if (!kd_http_enter(stream, KD_L7_COMMON, KD_L7_RESPONSE))
			return 1;
		stream->flags |= KD_L7_BY_LINE;
	}
	if (stream->flags & KD_L7_BY_LINE) {
		if (kd_l7_read_line(reading))
			return 0;
		stream->flags &= ~KD_L7_BY_LINE;
	}
	if (window->at >= window->length) {
		size = kd_l7_next(conn->sent, reading->end);
		if (size < 1 || size > KD_HTTP_WINDOW)
			return 1;
		if (bpf_skb_load_bytes(reading->from, conn->sent, window->bytes, size))
			goto unknown;
		window->length = size;
		window->at = 0;
	}
	before = window->at;
	window->automaton = stream->automaton;
	window->state = stream->state;
	if (kd_http_scan(window))
		goto unknown;
	stream->state = window->state;
	conn->sent += window->at - before;
	if (!(stream->flags & KD_L7_IN_BODY))
		stream->head += window->at - before;
	if (kd_l7_response_act(conn, reading->cookie, window->cell))
		return 0;

unknown:
	stream->flags |= KD_L7_UNKNOWN;
	return 1;
}

/* Where a packet of a socket, which begins with its network header, has its payload; 0: nobody knows. */
static __always_inline __u32 kd_l7_payload(struct __sk_buff *skb, __u32 *seq)
{
	const __u8 *data = (const __u8 *)(long)skb->data, *end = (const __u8 *)(long)skb->data_end;
	const struct tcphdr *tcp;
	__u32 at = sizeof(struct ipv6hdr);

	if (data + sizeof(struct ipv6hdr) > end)
		return 0;
	if (skb->protocol == bpf_htons(ETH_P_IP))
		at = 4 * (data[0] & 0xf);
	else if (data[offsetof(struct ipv6hdr, nexthdr)] != IPPROTO_TCP)
		return 0;
	tcp = (const struct tcphdr *)(data + at);
	if ((const __u8 *)(tcp + 1) > end)
		return 0;
	*seq = bpf_ntohl(tcp->seq);
	return at + 4 * tcp->doff;
}

/* Read what a packet of a server has that was not read before. */
static __always_inline void kd_l7_hear(struct kd_l7_reading *reading, struct kd_l7_sock *mark, __u32 seq, __u32 begin)
{
	struct kd_l7_conn *conn = reading->conn;
	__u32 known = mark->end - seq;

	if (!begin || (__s32)known < 0) { /* something was sent that we have not seen */
		conn->responses.flags |= KD_L7_UNKNOWN;
		return;
	}
	if (begin + known >= reading->end)
		return;
	mark->end = seq + reading->end - begin;
	conn->sent = begin + known;
	conn->ahead_size = 0;
	bpf_loop(KD_L7_MAX_STEPS, kd_l7_response, reading, 0);
	if (conn->flags & KD_L7_ENDED && conn->flags & KD_L7_CLOSES && conn->asked == conn->answered)
		kd_l7_close(&conn->way, KD_L7_WILL_END, mark->end, false);
}

#endif /* KD_L7_ANSWERS_H */
