/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Lines of heads: nearly none matters. What is ahead is looked at eight bytes at a time, and what is not as most are is left
 * to the automaton.
 */
#ifndef KD_L7_LINES_H
#define KD_L7_LINES_H

#include <stdbool.h>
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <kd/http.h>
#include <kd/maps/l7.h>

#define KD_L7_CRLF 0x0a0d

static __always_inline __u64 kd_l7_word(const struct kd_l7_conn *conn, __u32 at)
{
	return *(const __u64 *)(conn->ahead + (at & (KD_L7_AHEAD - 1)));
}

/* Have what comes next ahead; false: it cannot be had. */
static __always_inline bool kd_l7_look_ahead(struct kd_l7_reading *reading, __u32 at)
{
	struct kd_l7_conn *conn = reading->conn;
	__u64 size = reading->end - at < KD_L7_AHEAD ? reading->end - at : KD_L7_AHEAD;

	asm volatile("%0 &= 0x1ff" : "+r"(size));
	if (size < 1 || size > KD_L7_AHEAD || bpf_skb_load_bytes(reading->from, at, conn->ahead, size))
		return false;
	conn->ahead_at = at;
	conn->ahead_size = size;
	return true;
}

/*
 * Read on in a request's headers, at most to the end of a line: how many bytes; 0: they are for the automaton; less: more has to
 * be ahead. A header whose name is as long as that of one that matters, and begins as it does, is for the automaton.
 */
KD_FUNCTION int kd_l7_header(struct kd_l7_conn *conn, __u32 at, __u32 size)
{
	const struct kd_l7_automaton *automaton;
	__u32 number, begin = at, length, initial;
	struct kd_l7_stream *stream;
	__u64 found = 0;

	if (!conn)
		return 0;
	stream = &conn->requests;
	number = stream->automaton;
	automaton = bpf_map_lookup_elem(&kd_l7_automata, &number);
	if (!automaton)
		return 0;
	if (stream->state == automaton->start[KD_L7_HEADERS]) {
		for (__u32 i = 0; i < KD_L7_NAME / 8; i++) {
			found = kd_http_no_word(kd_l7_word(conn, at));
			if (found)
				break;
			at += 8;
		}
		at += kd_http_before(found);
		length = at - begin;
		initial = ((__u8)kd_l7_word(conn, begin) | 0x20) - 'a';
		if (at >= size && length < KD_L7_NAME)
			return -1;
		if (!length || length >= KD_L7_NAME || (__u8)kd_l7_word(conn, at) != ':' || initial >= 26 ||
		    automaton->initials[length] >> initial & 1)
			return 0;
		at++;
	} else if (stream->state != automaton->start[KD_L7_VALUE]) {
		return 0;
	}
	for (__u32 i = 0; i <= KD_L7_AHEAD / 8; i++) {
		found = kd_http_any_control(kd_l7_word(conn, at));
		if (found || at >= size)
			break;
		at += 8;
	}
	at += kd_http_before(found);
	if (at + 2 <= size && (__u16)kd_l7_word(conn, at) == KD_L7_CRLF) {
		stream->state = automaton->start[KD_L7_HEADERS];
		return at + 2 - begin;
	}
	stream->state = automaton->start[KD_L7_VALUE];
	return (at < size ? at : size) - begin;
}

/* Whether what comes next may be headers, and more of them than a window holds. */
static __always_inline bool kd_l7_has_lines(const struct kd_l7_reading *reading)
{
	const struct kd_l7_conn *conn = reading->conn;

	return reading->end - conn->at > KD_HTTP_WINDOW && conn->requests.automaton != conn->rules &&
	       kd_l7_in_head(&conn->requests) && !(conn->requests.flags & KD_L7_GROUPED) && !(conn->flags & KD_L7_HTTP2);
}

/* Read on in a request's headers; false: they are for the automaton. */
static __always_inline bool kd_l7_read_header(struct kd_l7_reading *reading)
{
	struct kd_l7_conn *conn = reading->conn;
	struct kd_l7_stream *stream = &conn->requests;
	__u32 at = conn->at - conn->ahead_at;
	int size;

	if (at >= conn->ahead_size) {
		at = 0;
		if (!kd_l7_look_ahead(reading, conn->at))
			return false;
		if (stream->head < KD_L7_TEXT) /* as kd_l7_keep() does */
			__builtin_memcpy(conn->text + (stream->head & (KD_L7_TEXT - 1)), conn->ahead, KD_L7_AHEAD);
	}
	size = kd_l7_header(conn, at, conn->ahead_size);
	if (size < 0) {
		conn->ahead_size = 0;
		return at;
	}
	conn->at += size;
	reading->window.at += size; /* perhaps beyond its end */
	stream->head += size;
	if (stream->head > KD_HTTP_MAX_HEAD)
		reading->reason = KD_HTTP_TOO_LONG;
	return size;
}

#endif /* KD_L7_LINES_H */
