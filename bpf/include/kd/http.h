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

/* Read until there is something to do. It is a function of its own so that the verifier goes through it once. */
KD_FUNCTION int kd_http_scan(struct kd_http_window *window)
{
	const struct kd_l7_automaton *automaton;
	const struct kd_l7_block *block;
	__u32 first, state, place, at, cell, key, i;

	if (!window)
		return -1;
	key = window->automaton;
	automaton = bpf_map_lookup_elem(&kd_l7_automata, &key);
	if (!automaton)
		return -1;
	first = automaton->cells;
	state = window->state;
	at = window->at;
	cell = 0;
	for (i = 0; i < KD_HTTP_WINDOW; i++) {
		if (at >= window->length)
			break;
		key = first + state + automaton->classes[window->bytes[at++ & (KD_HTTP_WINDOW - 1)]];
		place = key % KD_L7_CELLS;
		key /= KD_L7_CELLS;
		block = bpf_map_lookup_elem(&kd_l7_table, &key);
		if (!block)
			return -1;
		cell = block->cell[place];
		state = cell >> 8;
		if (cell & 0xff)
			break;
	}
	window->state = state;
	window->at = at;
	window->cell = cell & 0xff ? cell : 0;
	return 0;
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
