/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * What becomes of the bytes of a connection.
 *
 * Bytes of a request are passed on before it is decided, all but the last: a server cannot act on a request whose
 * head is incomplete. What method and target say is decided at the space behind the target, what headers say behind the
 * last one. A denied request is never completed, and nothing passes after it.
 *
 * What becomes of responses is in kd/l7_answers.h.
 */
#ifndef KD_L7_STREAM_H
#define KD_L7_STREAM_H

#include <stdbool.h>
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <kd/http.h>
#include <kd/l7_groups.h>
#include <kd/l7_peer.h>
#include <kd/l7_reason.h>
#include <kd/maps/l7.h>

#define KD_L7_MAX_STEPS (1 << 18)

/* Bytes of a connection that have just come. */
struct kd_l7_reading {
	void *from; /* struct __sk_buff, or struct sk_msg_md */
	struct kd_l7_conn *conn;
	__u64 cookie;
	__u32 end;
	__u32 reason;
	__u32 spent; /* on heads of HTTP/2 */
	struct kd_http_window window;
};

static __always_inline void kd_l7_tell(const struct kd_l7_conn *conn, __u64 cookie, __u8 kind, __u32 size)
{
	struct kd_l7_event *event = bpf_ringbuf_reserve(&kd_l7_events, sizeof(*event), 0);

	if (!event) {
		kd_l7_count(KD_HTTP_LOST_EVENT);
		return;
	}
	event->time = bpf_ktime_get_ns();
	event->cookie = cookie;
	event->latency = kind == KD_L7_RESPONDED && size && conn->asked_at ? event->time - conn->asked_at : 0;
	event->way = conn->way;
	event->identity = conn->identity;
	event->rules = conn->rules;
	event->rule = conn->requests.number;
	event->reason = conn->reason;
	event->status = kind == KD_L7_RESPONDED ? conn->responses.number : 0;
	event->kind = kind;
	event->flags = conn->flags;
	event->size = size < KD_L7_TEXT ? size : KD_L7_TEXT;
	__builtin_memcpy(event->text, conn->text, KD_L7_TEXT);
	bpf_ringbuf_submit(event, 0);
}

/* A request begins: by the rules that there are now. */
static __always_inline int kd_l7_begin(struct kd_l7_conn *conn, __u64 cookie)
{
	struct kd_l7_stream *stream = &conn->requests;
	const struct kd_l7_automaton *automaton;
	__u32 number;

	if (kd_l7_outdated(conn)) {
		conn->generation = 0;
		if (!kd_l7_take(conn))
			return KD_HTTP_REVOKED;
	}
	if (conn->flags & KD_L7_ANY) {
		stream->flags |= KD_L7_UNKNOWN;
		return 0;
	}
	number = conn->rules;
	if (!number)
		return KD_HTTP_REVOKED;
	automaton = bpf_map_lookup_elem(&kd_l7_automata, &number);
	if (!automaton || !automaton->generation || (conn->generation && conn->generation != automaton->generation))
		return KD_HTTP_NO_RULES;
	conn->generation = automaton->generation;
	conn->begin = conn->at;
	kd_http_begin(stream);
	stream->automaton = number;
	stream->state = automaton->start[KD_L7_REQUEST];
	if (!automaton->more)
		return 0;
	stream->flags |= KD_L7_GROUPED;
	return kd_l7_groups_begin(cookie, automaton->more);
}

/* A request's head is complete. */
static __always_inline int kd_l7_decide(struct kd_l7_conn *conn, __u64 cookie)
{
	struct kd_l7_stream *stream = &conn->requests;
	__u64 bit = 1ull << (conn->asked & 63);
	__u32 rule = kd_http_rule(stream, conn->rules);

	if (rule)
		stream->number = rule; /* else one that further automata have found */
	if (!stream->number)
		return KD_HTTP_NO_RULE;
	if (conn->asked - conn->answered >= 64) /* of which of them were HEAD too little is known */
		conn->responses.flags |= KD_L7_UNKNOWN;
	conn->heads = stream->flags & KD_L7_FOR_HEAD ? conn->heads | bit : conn->heads & ~bit;
	conn->asked_at = conn->flags & KD_L7_OBSERVED ? bpf_ktime_get_ns() : 0;
	conn->size = stream->head;
	if (conn->flags & KD_L7_OBSERVED)
		kd_l7_tell(conn, cookie, KD_L7_REQUESTED, stream->head);
	conn->asked++;
	kd_l7_count(KD_HTTP_ALLOWED);
	kd_http_enter_body(stream, false);
	return 0;
}

/* Do what the last byte of a window asks for; returns why the request is denied. */
static __always_inline int kd_l7_request_act(struct kd_l7_conn *conn, __u64 cookie, __u32 cell)
{
	struct kd_l7_stream *stream = &conn->requests;
	const struct kd_l7_automaton *automaton;
	const struct kd_l7_row *row;
	__u32 arg = cell & 0xf, next = cell >> 8, number;

	switch (cell >> 4 & 0xf) {
	case KD_L7_GO:
		return 0;
	case KD_L7_TARGET:
		row = kd_http_row(stream->automaton, next);
		if (!row)
			return KD_HTTP_NO_RULES;
		__builtin_memcpy(stream->facts, row->holds, sizeof(stream->facts));
		stream->target = next;
		stream->state = row->next;
		if (row->flags & KD_L7_IS_HEAD)
			stream->flags |= KD_L7_FOR_HEAD;
		return 0;
	case KD_L7_LINE:
		if (!arg)
			stream->flags |= KD_L7_OLD;
		number = stream->automaton;
		automaton = bpf_map_lookup_elem(&kd_l7_automata, &number);
		return automaton && kd_http_enter(stream, automaton->headers, KD_L7_HEADERS) ? 0 : KD_HTTP_NO_RULES;
	case KD_L7_DIGIT:
		if (stream->length < KD_HTTP_MAX_BODY)
			stream->length = 10 * stream->length + arg;
		return 0;
	case KD_L7_HEADER:
		row = kd_http_row(stream->automaton, next);
		if (!row)
			return KD_HTTP_NO_RULES;
		kd_http_learn(stream, row);
		stream->state = row->next;
		return kd_http_framing(stream, row->flags);
	case KD_L7_HEAD:
		return kd_l7_decide(conn, cookie);
	case KD_L7_HEX:
		stream->length = stream->length << 4 | arg;
		return stream->length < KD_HTTP_MAX_BODY ? 0 : KD_HTTP_CHUNK;
	case KD_L7_CHUNK:
		stream->body = stream->length;
		stream->length = 0;
		if (!stream->body && !kd_http_enter(stream, KD_L7_COMMON, KD_L7_LAST))
			return KD_HTTP_NO_RULES;
		return 0;
	case KD_L7_BODY:
		stream->flags &= ~KD_L7_IN_BODY;
		return 0;
	}
	return next; /* KD_L7_ERROR */
}

/* Skip what is known of a body; false: there was none. */
static __always_inline bool kd_l7_skip(struct kd_l7_stream *stream, struct kd_http_window *window, __u32 *at, __u32 end)
{
	__u64 left = end - *at;

	if (!stream->body)
		return false;
	if (left > stream->body)
		left = stream->body;
	stream->body -= left;
	*at += left;
	window->at += left; /* perhaps beyond its end */
	if (!stream->body && !(stream->flags & KD_L7_HAS_ENCODING))
		stream->flags &= ~KD_L7_IN_BODY;
	return true;
}

/* How many bytes to read next, at most a window; 0: none. */
static __always_inline __u32 kd_l7_next(__u32 at, __u32 end)
{
	__u64 size = end - at < KD_HTTP_WINDOW ? end - at : KD_HTTP_WINDOW;

	asm volatile("%0 &= 0x7f" : "+r"(size));
	return size;
}

/* Keep what begins a request, to be told. */
static __always_inline void kd_l7_keep(struct kd_l7_conn *conn, const struct kd_http_window *window)
{
	__u32 at = conn->requests.head;

	if (at < KD_L7_TEXT && !(conn->requests.flags & KD_L7_IN_BODY))
		__builtin_memcpy(conn->text + (at & (KD_L7_TEXT - 1)), window->bytes, KD_HTTP_WINDOW);
}

/* Read on in a window. */
static __always_inline int kd_l7_scan(struct kd_l7_conn *conn, __u64 cookie, struct kd_http_window *window)
{
	struct kd_l7_stream *stream = &conn->requests;
	__u32 before = window->at;

	window->automaton = stream->automaton;
	window->state = stream->state;
	if (kd_http_scan(window))
		return KD_HTTP_NO_RULES;
	stream->state = window->state;
	if (!(stream->flags & KD_L7_IN_BODY)) {
		stream->head += window->at - before;
		if (stream->head > KD_HTTP_MAX_HEAD)
			return KD_HTTP_TOO_LONG;
	}
	return stream->flags & KD_L7_GROUPED ? kd_l7_groups_scan(stream, cookie, conn->rules, window, before) : 0;
}

#include <kd/l7_http2.h>
#include <kd/l7_lines.h>

static __always_inline int kd_l7_request_window(struct kd_l7_reading *reading)
{
	struct kd_l7_conn *conn = reading->conn;
	struct kd_http_window *window = &reading->window;
	__u32 before = window->at;
	int reason;

	if (conn->flags & KD_L7_HTTP2)
		return kd_l7_h2_step(conn, reading->cookie, window);
	reason = kd_l7_scan(conn, reading->cookie, window);
	conn->at += window->at - before;
	if (!reason)
		reason = kd_l7_request_act(conn, reading->cookie, window->cell);
	if (!reason && kd_l7_action_of(window) == KD_L7_TARGET && !(conn->requests.flags & KD_L7_GROUPED) &&
	    kd_http_line_ends(window)) {
		conn->at += KD_HTTP_LINE_END;
		conn->requests.head += KD_HTTP_LINE_END;
		reason = kd_l7_request_act(conn, reading->cookie, KD_L7_LINE << 4 | 1);
	}
	return reason == KD_HTTP_HTTP2 ? kd_l7_h2_enter(conn, reading->cookie) : reason;
}

/* Whether there is more to read of what has come: 0: yes, 1: no; the reason is set if something is wrong. */
static __always_inline long kd_l7_request_ready(struct kd_l7_reading *reading)
{
	struct kd_l7_conn *conn = reading->conn;
	struct kd_l7_stream *stream = &conn->requests;

	if (stream->flags & KD_L7_UNKNOWN || (conn->at >= reading->end && !(stream->flags & KD_L7_TOLD)))
		return 1;
	if (!stream->head && !(conn->flags & KD_L7_HTTP2) && !(stream->flags & KD_L7_IN_BODY)) {
		reading->reason = kd_l7_begin(conn, reading->cookie);
		if (reading->reason || stream->flags & KD_L7_UNKNOWN)
			return 1;
		reading->window.at = reading->window.length; /* it begins with a window of its own */
	}
	return 0;
}

/* What was not read for want of steps does not pass. */
static __always_inline void kd_l7_see_all(struct kd_l7_reading *reading)
{
	const struct kd_l7_stream *stream = &reading->conn->requests;

	if (!reading->reason && !(stream->flags & KD_L7_UNKNOWN) &&
	    (reading->conn->at < reading->end || stream->flags & KD_L7_TOLD))
		reading->reason = KD_HTTP_UNREADABLE;
}

static long kd_l7_request_skb(__u32 index __attribute__((unused)), struct kd_l7_reading *reading)
{
	struct kd_http_window *window = &reading->window;
	struct kd_l7_conn *conn = reading->conn;
	__u64 size;

	if (kd_l7_request_ready(reading))
		return 1;
	if (conn->requests.flags & KD_L7_TOLD) {
		reading->reason = kd_l7_h2_judge(conn, reading->cookie, &reading->spent);
		return reading->reason ? 1 : 0;
	}
	if (kd_l7_skip(&conn->requests, window, &conn->at, reading->end))
		return 0;
	if (kd_l7_has_lines(reading) && kd_l7_read_header(reading))
		return reading->reason ? 1 : 0;
	if (window->at >= window->length) {
		size = kd_l7_next(conn->at, reading->end);
		if (size < 1 || size > KD_HTTP_WINDOW)
			return 1;
		if (bpf_skb_load_bytes(reading->from, conn->at, window->bytes, size))
			goto unreadable;
		window->length = size;
		window->at = 0;
		if (!(conn->flags & KD_L7_HTTP2))
			kd_l7_keep(conn, window);
	}
	reading->reason = kd_l7_request_window(reading);
	return reading->reason ? 1 : 0;

unreadable:
	reading->reason = KD_HTTP_UNREADABLE;
	return 1;
}

/*
 * Write over what is denied. It cannot be cut off: the socket would count on bytes to be there that are not, and say so
 * to its process forever. Of these no server can make a request.
 */
__attribute__((unused)) static long kd_l7_blot(__u32 index __attribute__((unused)), struct kd_l7_reading *reading)
{
	struct kd_l7_conn *conn = reading->conn;
	__u64 size = kd_l7_next(conn->at, reading->end);

	if (size < 1 || size > KD_HTTP_WINDOW)
		return 1;
	__builtin_memset(reading->window.bytes, conn->flags & KD_L7_HTTP2 ? KD_H2_NONSENSE : 'X', KD_HTTP_WINDOW);
	if (bpf_skb_store_bytes(reading->from, conn->at, reading->window.bytes, size, 0))
		return 1;
	conn->at += size;
	return 0;
}

/* The connection is denied from here on; true: it may be told by a response. */
static __always_inline bool kd_l7_end(struct kd_l7_conn *conn, __u64 cookie, int reason)
{
	conn->flags |= KD_L7_ENDED;
	conn->ended_at = bpf_ktime_get_ns();
	conn->reason = reason;
	kd_l7_count(reason);
	kd_l7_tell(conn, cookie, KD_L7_REQUESTED, conn->requests.head);
	return conn->flags & KD_L7_CLOSES && !conn->begin && conn->asked == conn->answered && !(conn->responses.flags & KD_L7_UNKNOWN);
}

/* Audit: the request is told to be wrong, and the rest of the connection passes, as it may not be HTTP at all. */
static __always_inline void kd_l7_permit(struct kd_l7_conn *conn, __u64 cookie, int reason)
{
	conn->reason = reason;
	kd_l7_count(reason);
	kd_l7_tell(conn, cookie, KD_L7_REQUESTED, conn->requests.head);
	conn->reason = 0;
	conn->requests.flags |= KD_L7_UNKNOWN;
}

/* Copy bytes of a message, which may lie in pieces; false: it could not be done. */
static __always_inline bool kd_l7_copy(struct sk_msg_md *msg, __u32 at, __u32 size, struct kd_http_window *window)
{
	__u8 *data, *end;

	if (bpf_msg_pull_data(msg, at, at + size, 0))
		return false;
	data = msg->data;
	end = msg->data_end;
	if (data + KD_HTTP_WINDOW <= end) {
		__builtin_memcpy(window->bytes, data, KD_HTTP_WINDOW);
		return true;
	}
	for (__u32 i = 0; i < KD_HTTP_WINDOW; i++) {
		if (i >= size)
			break;
		if (data + i + 1 > end)
			return false;
		window->bytes[i] = data[i];
	}
	return true;
}

__attribute__((unused)) static long kd_l7_request_msg(__u32 index __attribute__((unused)), struct kd_l7_reading *reading)
{
	struct kd_http_window *window = &reading->window;
	struct kd_l7_conn *conn = reading->conn;
	__u64 size;

	if (kd_l7_request_ready(reading))
		return 1;
	if (conn->requests.flags & KD_L7_TOLD) {
		reading->reason = kd_l7_h2_judge(conn, reading->cookie, &reading->spent);
		return reading->reason ? 1 : 0;
	}
	if (kd_l7_skip(&conn->requests, window, &conn->at, reading->end))
		return 0;
	if (window->at >= window->length) {
		size = kd_l7_next(conn->at, reading->end);
		if (size < 1 || size > KD_HTTP_WINDOW)
			return 1;
		if (!kd_l7_copy(reading->from, conn->at, size, window))
			goto unreadable;
		window->length = size;
		window->at = 0;
		if (!(conn->flags & KD_L7_HTTP2))
			kd_l7_keep(conn, window);
	}
	reading->reason = kd_l7_request_window(reading);
	return reading->reason ? 1 : 0;

unreadable:
	reading->reason = KD_HTTP_UNREADABLE;
	return 1;
}

#endif /* KD_L7_STREAM_H */
