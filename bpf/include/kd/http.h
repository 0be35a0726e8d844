/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * HTTP/1 as it streams by: messages told apart, and requests held to rules.
 *
 * One automaton, made by user space (k8sdatapath/datapath/http_tables.py), reads what begins a message byte by byte:
 * it knows the syntax, which rules a method and a target meet, and which headers matter. What does not fit into a
 * table is here: the length of bodies, which are skipped, and the facts that headers add up to. Everything that is known
 * of a message is in its struct kd_l7_stream, so it can arrive in any pieces, and none of it is kept.
 *
 * Reads kd_l7_table, kd_l7_rows and kd_l7_automata.
 */
#ifndef KD_HTTP_H
#define KD_HTTP_H

#include <stdbool.h>
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <kd/config.h>
#include <kd/l7_reason.h>
#include <kd/l7_types.h>
#include <kd/maps/l7.h>

#define KD_HTTP_WINDOW 64
#define KD_HTTP_MAX_HEAD 8192
#define KD_HTTP_MAX_BODY (1ull << 60)
#define KD_HTTP_MAX_CANDIDATES 1024

/* Bytes to read, and how far one reading has come. */
struct kd_http_window {
	__u8 bytes[KD_HTTP_WINDOW];
	__u32 length;
	__u32 at; /* bytes that were read */
	__u32 automaton;
	__u32 state;
	__u32 cell; /* of the last byte; none of its bits: there was nothing to do */
};

#define KD_HTTP_EACH(byte) (0x0101010101010101ull * (byte))

/* Bits of a word that say which of its bytes are below a space. Of those behind the first one they say nothing. */
static __always_inline __u64 kd_http_control(__u64 bytes)
{
	return (bytes - KD_HTTP_EACH(0x20)) & ~bytes & KD_HTTP_EACH(0x80);
}

/* Likewise, of control characters, which DEL is as well. */
static __always_inline __u64 kd_http_any_control(__u64 bytes)
{
	__u64 del = bytes ^ KD_HTTP_EACH(0x7f);

	return kd_http_control(bytes) | ((del - KD_HTTP_EACH(1)) & ~del & KD_HTTP_EACH(0x80));
}

#define KD_HTTP_BETWEEN(bytes, first, last) \
	(((bytes) + KD_HTTP_EACH(0x80 - (first))) & ~((bytes) + KD_HTTP_EACH(0x7f - (last))))

/* Bits that say which bytes are no letters, digits or hyphens. */
static __always_inline __u64 kd_http_no_word(__u64 bytes)
{
	__u64 low = bytes & KD_HTTP_EACH(0x7f), lower = low | KD_HTTP_EACH(0x20);
	__u64 word = KD_HTTP_BETWEEN(lower, 'a', 'z') | KD_HTTP_BETWEEN(low, '0', '9') | KD_HTTP_BETWEEN(low, '-', '-');

	return ~(word & ~bytes) & KD_HTTP_EACH(0x80);
}

/* How many bytes come before the first one that has a bit, up to 7. */
static __always_inline __u32 kd_http_before(__u64 found)
{
	return (((found - 1) & ~found & KD_HTTP_EACH(1)) * KD_HTTP_EACH(1) >> 56) - 1;
}

/*
 * How many of a window's next bytes, up to 7, are no control characters. There are eight at least: behind its bytes its
 * other members are.
 */
static __always_inline __u32 kd_http_run(const struct kd_http_window *window, __u32 at)
{
	return kd_http_before(
		kd_http_any_control(*(const __u64 *)((const __u8 *)window + (at & (KD_HTTP_WINDOW - 1)))));
}

/* Read until there is something to do. It is a function of its own so that the verifier goes through it once. */
KD_FUNCTION int kd_http_scan(struct kd_http_window *window)
{
	const struct kd_l7_automaton *automaton;
	const struct kd_l7_block *block;
	__u32 first, length, number, place, at, cell, key, i;

	if (!window)
		return -1;
	key = window->automaton;
	automaton = bpf_map_lookup_elem(&kd_l7_automata, &key);
	if (!automaton)
		return -1;
	first = automaton->cells * sizeof(cell);
	at = window->at;
	length = window->length;
	cell = window->state << 8;
	number = (first + (cell >> 6)) / sizeof(*block);
	key = number;
	block = bpf_map_lookup_elem(&kd_l7_table, &key);
	if (!block)
		return -1;
	for (i = 0; i < KD_HTTP_WINDOW; i++) {
		if (at >= length)
			break;
		/* without an action, bits 6 and 7 of a cell are not set: that is where the next one is, in bytes */
		place = (cell >> 6) +
			(first + sizeof(cell) * automaton->classes[window->bytes[at++ & (KD_HTTP_WINDOW - 1)]]);
		if (place / sizeof(*block) != number) {
			number = place / sizeof(*block);
			key = number;
			block = bpf_map_lookup_elem(&kd_l7_table, &key);
			if (!block)
				return -1;
		}
		cell = *(const __u32 *)((const __u8 *)block + (place & (sizeof(*block) - sizeof(cell))));
		if (!(cell & 0xff))
			continue;
		if ((cell & 0xff) != KD_L7_RUN)
			break;
		at += kd_http_run(window, at);
		if (at > length)
			at = length;
	}
	window->state = cell >> 8;
	window->at = at;
	window->cell = cell & 0xf0 ? cell : 0;
	return 0;
}

/* What most messages have at the same place needs no automaton: `HTTP/1.1`, as a number. */
#define KD_HTTP_VERSION_11 0x312e312f50545448ull
#define KD_HTTP_LINE_END 10 /* bytes of that and the line's end */

/* Whether a request's first line ends now, as most do: then it is read. */
KD_FUNCTION int kd_http_line_ends(struct kd_http_window *window)
{
	__u32 at;

	if (!window)
		return false;
	at = window->at & (KD_HTTP_WINDOW - 1);
	if (at + KD_HTTP_LINE_END > window->length ||
	    *(const __u64 *)((const __u8 *)window + at) != KD_HTTP_VERSION_11 ||
	    window->bytes[(at + 8) & (KD_HTTP_WINDOW - 1)] != '\r' ||
	    window->bytes[(at + 9) & (KD_HTTP_WINDOW - 1)] != '\n')
		return false;
	window->at += KD_HTTP_LINE_END;
	return true;
}

/* Where an automaton begins; false: there is none, or no longer the same one. */
static __always_inline bool kd_http_enter(struct kd_l7_stream *stream, __u32 number, enum kd_l7_section section)
{
	const struct kd_l7_automaton *automaton = bpf_map_lookup_elem(&kd_l7_automata, &number);

	if (!automaton)
		return false;
	stream->automaton = number;
	stream->state = automaton->start[section];
	return true;
}

static __always_inline const struct kd_l7_row *kd_http_row(__u32 automaton, __u32 index)
{
	const struct kd_l7_automaton *of = bpf_map_lookup_elem(&kd_l7_automata, &automaton);

	if (!of)
		return NULL;
	index += of->rows;
	return bpf_map_lookup_elem(&kd_l7_rows, &index);
}

static __always_inline void kd_http_begin(struct kd_l7_stream *stream)
{
	stream->head = 0;
	stream->length = 0;
	stream->body = 0;
	stream->number = 0;
	stream->flags &= KD_L7_UNKNOWN;
}

/* A header that decides where the message ends, or that may be there once. */
static __always_inline int kd_http_framing(struct kd_l7_stream *stream, __u32 kind)
{
	switch (kind) {
	case KD_L7_LENGTH:
	case KD_L7_BAD_LENGTH:
		if (stream->flags & KD_L7_HAS_ENCODING)
			return KD_HTTP_BOTH;
		if (kind == KD_L7_BAD_LENGTH || stream->flags & KD_L7_HAS_LENGTH ||
		    stream->length >= KD_HTTP_MAX_BODY)
			return KD_HTTP_LENGTH;
		stream->flags |= KD_L7_HAS_LENGTH;
		return 0;
	case KD_L7_ENCODING:
	case KD_L7_BAD_ENCODING:
		if (stream->flags & KD_L7_HAS_LENGTH)
			return KD_HTTP_BOTH;
		if (kind == KD_L7_BAD_ENCODING || stream->flags & (KD_L7_HAS_ENCODING | KD_L7_OLD))
			return KD_HTTP_ENCODING;
		stream->flags |= KD_L7_HAS_ENCODING;
		return 0;
	case KD_L7_HOST:
		if (stream->flags & KD_L7_HAS_HOST)
			return KD_HTTP_HOST;
		stream->flags |= KD_L7_HAS_HOST;
		return 0;
	case KD_L7_UPGRADE:
		return KD_HTTP_UPGRADE;
	}
	return 0;
}

static __always_inline void kd_http_learn(struct kd_l7_stream *stream, const struct kd_l7_row *row)
{
	__u32 seen = row->seen;
	__u64 twice = 0, bit;

	if (seen) {
		seen = (seen - 1) & (64 * KD_L7_WORDS - 1);
		bit = 1ull << (seen & 63);
		if (stream->facts[seen / 64] & bit)
			twice = bit << 1;
		stream->facts[seen / 64] |= bit | twice;
	}
#pragma unroll
	for (int i = 0; i < KD_L7_WORDS; i++)
		stream->facts[i] = (stream->facts[i] & ~row->lacks[i]) | row->holds[i];
}

/* Rules that allow a request if its headers do. */
struct kd_http_candidates {
	const struct kd_l7_stream *stream;
	__u32 index;
	__u32 rule;
};

static long kd_http_candidate(__u32 i, struct kd_http_candidates *all)
{
	const struct kd_l7_stream *stream = all->stream;
	__u32 index = all->index + i;
	const struct kd_l7_row *row = bpf_map_lookup_elem(&kd_l7_rows, &index);
	__u64 wrong = 0;

	if (!row)
		return 1;
#pragma unroll
	for (int j = 0; j < KD_L7_WORDS; j++)
		wrong |= (row->holds[j] & ~stream->facts[j]) | (row->lacks[j] & stream->facts[j]);
	if (wrong)
		return 0;
	all->rule = row->rule;
	return 1;
}

/* The rule that allows a request whose head is complete; 0: none. */
static __always_inline __u32 kd_http_rule(const struct kd_l7_stream *stream, __u32 automaton)
{
	const struct kd_l7_row *row = kd_http_row(automaton, stream->target);
	const struct kd_l7_automaton *of = bpf_map_lookup_elem(&kd_l7_automata, &automaton);
	struct kd_http_candidates all = { .stream = stream };

	if (!row || !of || row->rule)
		return row && of ? row->rule : 0;
	all.index = of->rows + stream->target + 1;
	bpf_loop(row->candidates < KD_HTTP_MAX_CANDIDATES ? row->candidates : KD_HTTP_MAX_CANDIDATES,
		 kd_http_candidate, &all, 0);
	return all.rule;
}

/* Behind a head, or behind all chunks: what comes next. */
static __always_inline bool kd_http_enter_body(struct kd_l7_stream *stream, bool empty)
{
	stream->head = 0;
	if (empty)
		return false;
	if (stream->flags & KD_L7_HAS_ENCODING) {
		stream->flags |= KD_L7_IN_BODY;
		stream->length = 0;
		return kd_http_enter(stream, KD_L7_COMMON, KD_L7_CHUNKS);
	}
	stream->body = stream->length;
	if (stream->body)
		stream->flags |= KD_L7_IN_BODY;
	return stream->body;
}

#endif /* KD_HTTP_H */
