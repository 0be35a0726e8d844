/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Requests of HTTP/2: frames told apart, and heads held to the rules of HTTP/1.
 *
 * A head is written down as HTTP/1 has it (kd/http2.h) while its bytes pass, and the automaton reads that before the
 * last one does. No server can act on less, and all after it is dropped: the table of the server is not the client's any
 * more. Bodies are skipped by the length of their frames. Responses are not read.
 */
#ifndef KD_L7_HTTP2_H
#define KD_L7_HTTP2_H

#include <stdbool.h>
#include <linux/bpf.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include <kd/http.h>
#include <kd/http2.h>
#include <kd/l7_reason.h>
#include <kd/maps/http2.h>

#define KD_H2_HEADER 9
#define KD_H2_NONSENSE 5 /* over and over it is a push, and longer than a frame may be: no server goes on */
#define KD_H2_SPENT (1 << 20) /* bytes of heads that a packet may come to */

enum kd_h2_frame {
	KD_H2_DATA = 0,
	KD_H2_HEADERS = 1,
	KD_H2_RANK = 2,
	KD_H2_RESET = 3,
	KD_H2_SETTINGS = 4,
	KD_H2_PING = 6,
	KD_H2_GOAWAY = 7,
	KD_H2_WINDOW = 8,
	KD_H2_RANKS = 16,
};

enum kd_h2_frame_flags {
	KD_H2_END_HEADERS = 0x04,
	KD_H2_PADDED = 0x08,
	KD_H2_RANKED = 0x20,
};

#define KD_H2_PREFACE_SIZE 19 /* behind PRI and a star */

/* 32 bytes would go to a section of their own, of constants that linkers merge. */
static const char kd_h2_preface[33] = " HTTP/2.0\r\n\r\nSM\r\n\r\n";

/* All zero: larger than a stack may be. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_RDONLY_PROG);
	__type(key, __u32);
	__type(value, struct kd_h2);
} kd_l7_blank2 SEC(".maps");

/* The first five bytes of a connection are those of HTTP/2. */
KD_FUNCTION int kd_l7_h2_enter(struct kd_l7_conn *conn, __u64 cookie)
{
	struct kd_h2 *h2;
	__u32 zero = 0;

	if (!conn || conn->flags & KD_L7_HTTP2 || conn->asked)
		return KD_HTTP_HTTP2;
	h2 = bpf_map_lookup_elem(&kd_l7_blank2, &zero);
	if (!h2 || bpf_map_update_elem(&kd_l7_http2, &cookie, h2, BPF_ANY))
		return KD_HTTP_NO_ROOM;
	h2 = bpf_map_lookup_elem(&kd_l7_http2, &cookie);
	if (!h2)
		return KD_HTTP_NO_ROOM;
	h2->limit = KD_H2_TABLE;
	conn->flags |= KD_L7_HTTP2;
	conn->responses.flags |= KD_L7_UNKNOWN;
	return 0;
}

/* The header of a frame is complete: is it one of those that are understood? */
static __always_inline int kd_l7_h2_frame(struct kd_l7_conn *conn, __u64 cookie, struct kd_h2 *h2)
{
	struct kd_l7_stream *stream = &conn->requests;
	const __u8 *header = h2->header;
	__u32 size = header[0] << 16 | header[1] << 8 | header[2], flags = header[4], begin = conn->begin, number;
	int reason;

	switch (header[3]) {
	case KD_H2_HEADERS:
		break;
	case KD_H2_DATA:
	case KD_H2_RANK:
	case KD_H2_RESET:
	case KD_H2_SETTINGS:
	case KD_H2_PING:
	case KD_H2_GOAWAY:
	case KD_H2_WINDOW:
	case KD_H2_RANKS:
		stream->head = 0;
		stream->body = size;
		if (size)
			stream->flags |= KD_L7_IN_BODY;
		return 0;
	default:
		return KD_HTTP_FRAME;
	}
	number = (header[5] & 0x7f) << 24 | header[6] << 16 | header[7] << 8 | header[8];
	if (!(number & 1) || !(flags & KD_H2_END_HEADERS) || flags & KD_H2_PADDED)
		return KD_HTTP_FRAME;
	if (number <= h2->stream)
		return KD_HTTP_TRAILER;
	if (size > KD_HTTP_MAX_HEAD)
		return KD_HTTP_TOO_LONG;
	h2->stream = number;
	h2->block = size;
	if (flags & KD_H2_RANKED) {
		h2->left = 5;
		h2->block -= 5;
	}
	if (size <= h2->left || !size)
		return KD_HTTP_FRAME;
	reason = kd_l7_begin(conn, cookie);
	conn->begin = begin;
	stream->head = 1;
	h2->stage = h2->left ? KD_H2_PRIORITY : KD_H2_FIELD;
	kd_h2_begin(h2);
	return reason;
}

/* One more byte of the connection. */
static __always_inline int kd_l7_h2_byte(struct kd_l7_conn *conn, __u64 cookie, struct kd_h2 *h2, __u8 byte)
{
	struct kd_l7_stream *stream = &conn->requests;
	int reason;

	switch (h2->stage) {
	case KD_H2_PREFACE:
		if (byte != kd_h2_preface[h2->got & 31])
			return KD_HTTP_HTTP2;
		if (++h2->got == KD_H2_PREFACE_SIZE) {
			h2->got = 0;
			h2->stage = KD_H2_FRAME;
			stream->head = 0;
		}
		return 0;
	case KD_H2_FRAME:
		if (!h2->got) {
			conn->begin = conn->at - 1;
			stream->head = 1;
		}
		h2->header[h2->got & 15] = byte;
		if (++h2->got < KD_H2_HEADER)
			return 0;
		h2->got = 0;
		h2->left = 0;
		return kd_l7_h2_frame(conn, cookie, h2);
	case KD_H2_PRIORITY:
		if (!--h2->left)
			h2->stage = KD_H2_FIELD;
		return 0;
	}
	reason = kd_h2_read(h2, byte);
	if (reason || --h2->block)
		return reason;
	reason = kd_h2_end(h2);
	if (reason)
		return reason;
	stream->flags |= KD_L7_TOLD;
	stream->head = 0;
	return 0;
}

/* Read one byte of what has come. */
KD_FUNCTION int kd_l7_h2_step(struct kd_l7_conn *conn, __u64 cookie, struct kd_http_window *window)
{
	struct kd_h2 *h2 = bpf_map_lookup_elem(&kd_l7_http2, &cookie);
	int reason;

	if (!conn || !window || !h2)
		return KD_HTTP_NO_RULES;
	conn->at++;
	reason = kd_l7_h2_byte(conn, cookie, h2, window->bytes[window->at++ & (KD_HTTP_WINDOW - 1)]);
	if (reason)
		conn->requests.head = 0; /* nothing of it can be told */
	return reason;
}

/* Hold some of a head to rules. */
KD_FUNCTION int kd_l7_h2_judge(struct kd_l7_conn *conn, __u64 cookie, __u32 *spent)
{
	struct kd_h2 *h2 = bpf_map_lookup_elem(&kd_l7_http2, &cookie);
	struct kd_http_window *window;
	struct kd_l7_stream *stream;
	bool last;
	int reason;

	if (!conn || !spent || !h2)
		return KD_HTTP_NO_RULES;
	stream = &conn->requests;
	window = &h2->window;
	if (window->at >= window->length) {
		if (!kd_h2_next(h2))
			return KD_HTTP_FIELD;
		kd_l7_keep(conn, window);
		*spent += window->length;
		if (*spent > KD_H2_SPENT)
			return KD_HTTP_TOO_LONG;
	}
	reason = kd_l7_scan(conn, cookie, window);
	if (reason)
		return reason;
	last = (window->cell >> 4 & 0xf) == KD_L7_HEAD;
	if (last && stream->flags & KD_L7_HAS_ENCODING)
		return KD_HTTP_ENCODING;
	reason = kd_l7_request_act(conn, cookie, window->cell);
	if (!last || reason)
		return reason;
	stream->head = 0;
	stream->body = 0; /* it is told by its frames */
	stream->flags &= ~(KD_L7_IN_BODY | KD_L7_TOLD);
	h2->stage = KD_H2_FRAME;
	return 0;
}

#endif /* KD_L7_HTTP2_H */
