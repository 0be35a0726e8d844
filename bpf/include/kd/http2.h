/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The headers of HTTP/2 as they stream by, written down as HTTP/1 has them.
 *
 * HPACK is read byte by byte: integers, strings with and without Huffman's code, and the table that a client makes up
 * of its headers. Method, target and host may come in any order: they are put in that of HTTP/1 when all are there. What would
 * mean something else in HTTP/1 than in HTTP/2 is denied here: line ends, colons in names, spaces in a path.
 *
 * The table is no larger than that of a server that says nothing. If a server allows more, and a client uses it, that is
 * denied; what a server with less does not have any more it refuses itself.
 */
#ifndef KD_HTTP2_H
#define KD_HTTP2_H

#include <stdbool.h>
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <kd/config.h>
#include <kd/http2_tables.h>
#include <kd/http2_types.h>
#include <kd/l7_reason.h>

#define KD_H2_STATICS 61
#define KD_H2_OVERHEAD 32

static __always_inline bool kd_h2_put(struct kd_h2 *h2, __u8 byte)
{
	__u32 at = h2->at;

	if (at >= KD_H2_TEXT)
		return false;
	h2->text[at & (KD_H2_TEXT - 1)] = byte;
	h2->at = at + 1;
	return true;
}

#define KD_H2_WRITE(h2, words)                                                                            \
	({                                                                                                \
		__builtin_memcpy((h2)->text + ((h2)->at & (KD_H2_TEXT - 1)), words, sizeof(words) - 1);      \
		(h2)->at += sizeof(words) - 1;                                                              \
	})

/* One byte of a name or a value. */
static __always_inline int kd_h2_letter(struct kd_h2 *h2, __u8 byte)
{
	if (h2->in_name) {
		if (byte <= ' ' || byte >= 0x7f || (byte >= 'A' && byte <= 'Z') ||
		    (byte == ':' && h2->at != h2->field))
			return KD_HTTP_NAME;
	} else if (h2->kind == KD_H2_METHOD || h2->kind == KD_H2_PATH) {
		if (byte <= ' ' || byte >= 0x7f)
			return h2->kind == KD_H2_PATH ? KD_HTTP_TARGET : KD_HTTP_METHOD;
	} else if (!byte || byte == '\r' || byte == '\n') {
		return KD_HTTP_VALUE;
	}
	return kd_h2_put(h2, byte) ? 0 : KD_HTTP_TOO_LONG;
}

/* Copies of entries and of the text, byte by byte. */
struct kd_h2_copy {
	struct kd_h2 *h2;
	__u32 from;
	__u32 fixed; /* index of the static table; 0: from the ring */
	__u32 failed;
};

static long kd_h2_copy_entry(__u32 i, struct kd_h2_copy *copy)
{
	struct kd_h2 *h2 = copy->h2;
	__u32 at = copy->from + i;
	__u8 byte;

	if (copy->fixed)
		byte = at < sizeof(kd_h2_static[0].text) ? kd_h2_static[copy->fixed & 63].text[at] : 0;
	else
		byte = h2->table[at & (KD_H2_TABLE - 1)];
	if (kd_h2_put(h2, byte))
		return 0;
	copy->failed = 1;
	return 1;
}

static long kd_h2_copy_text(__u32 i, struct kd_h2_copy *copy)
{
	struct kd_h2 *h2 = copy->h2;

	h2->table[h2->end++ & (KD_H2_TABLE - 1)] = h2->text[(copy->from + i) & (KD_H2_TEXT - 1)];
	return 0;
}

static __always_inline void kd_h2_evict(struct kd_h2 *h2, __u32 size)
{
	for (int i = 0; i < KD_H2_ENTRIES; i++) {
		if (!h2->count || h2->used + size <= h2->limit)
			break;
		h2->used -= h2->entries[(h2->newest - h2->count + 1) & (KD_H2_ENTRIES - 1)].size;
		h2->count--;
	}
}

/* What a name counts that is not kept. */
static __always_inline __u32 kd_h2_size_of(__u32 kind)
{
	return kind == KD_H2_PATH ? 5 : kind == KD_H2_AUTHORITY ? 10 : 7;
}

/* The header becomes the newest entry, unless it is larger than the table, which is empty then. */
static __always_inline void kd_h2_add(struct kd_h2 *h2)
{
	struct kd_h2_copy copy = { .h2 = h2, .from = h2->field };
	__u32 kind = h2->kind, value = h2->at - h2->value, name = 0, size;
	struct kd_h2_entry *entry;

	if (kind == KD_H2_REGULAR)
		name = h2->value - h2->field - 2;
	size = (kind == KD_H2_REGULAR ? name : kd_h2_size_of(kind)) + value + KD_H2_OVERHEAD;
	kd_h2_evict(h2, size);
	if (size > h2->limit)
		return;
	h2->newest++;
	h2->count++;
	h2->used += size;
	entry = &h2->entries[h2->newest & (KD_H2_ENTRIES - 1)];
	entry->at = h2->end & (KD_H2_TABLE - 1);
	entry->name = name;
	entry->value = value;
	entry->size = size;
	entry->kind = kind;
	bpf_loop(name, kd_h2_copy_text, &copy, 0);
	copy.from = h2->value;
	bpf_loop(value, kd_h2_copy_text, &copy, 0);
}

/* A header with a colon is complete; each may be there once, and before all others. */
static __always_inline int kd_h2_pseudo(struct kd_h2 *h2, __u32 part)
{
	if (h2->parts[part].end || h2->parts[KD_H2_REST].at)
		return KD_HTTP_FIELD;
	h2->parts[part].at = h2->field;
	h2->parts[part].end = h2->at;
	return 0;
}

static __always_inline bool kd_h2_is_space(const struct kd_h2 *h2, __u32 at)
{
	__u8 byte = h2->text[at & (KD_H2_TEXT - 1)];

	return byte == ' ' || byte == '\t';
}

static __always_inline int kd_h2_complete(struct kd_h2 *h2)
{
	if (h2->at > KD_H2_TEXT - 16)
		return KD_HTTP_TOO_LONG;
	if (h2->at != h2->value && (kd_h2_is_space(h2, h2->value) || kd_h2_is_space(h2, h2->at - 1)))
		return KD_HTTP_VALUE;
	if (h2->form == KD_H2_ADDED)
		kd_h2_add(h2);
	h2->fields++;
	h2->stage = KD_H2_FIELD;
	switch (h2->kind) {
	case KD_H2_REGULAR:
		KD_H2_WRITE(h2, "\r\n");
		if (!h2->parts[KD_H2_REST].at)
			h2->parts[KD_H2_REST].at = h2->field;
		return 0;
	case KD_H2_METHOD:
		KD_H2_WRITE(h2, " ");
		return kd_h2_pseudo(h2, KD_H2_ASKS);
	case KD_H2_PATH:
		KD_H2_WRITE(h2, " HTTP/1.1\r\n");
		return kd_h2_pseudo(h2, KD_H2_FOR);
	case KD_H2_AUTHORITY:
		KD_H2_WRITE(h2, "\r\n");
		return kd_h2_pseudo(h2, KD_H2_OF);
	case KD_H2_SCHEME: /* nobody asks for it */
		h2->at = h2->field;
		return h2->schemes++ || h2->parts[KD_H2_REST].at ? KD_HTTP_FIELD : 0;
	}
	return KD_HTTP_FIELD;
}

/* The name is known, and written if it is one of HTTP/1. */
static __always_inline void kd_h2_named(struct kd_h2 *h2)
{
	if (h2->kind == KD_H2_REGULAR)
		KD_H2_WRITE(h2, ": ");
	else if (h2->kind == KD_H2_AUTHORITY)
		KD_H2_WRITE(h2, "host: ");
	h2->value = h2->at;
	h2->in_name = 0;
	h2->stage = KD_H2_LENGTH;
}

static __always_inline bool kd_h2_is(const __u8 *name, const char *wanted, int size)
{
	bool same = true;

#pragma unroll
	for (int i = 0; i < size; i++)
		same &= name[i] == wanted[i];
	return same;
}

/* A name was read that begins with a colon. */
static __always_inline __u32 kd_h2_kind_of(const __u8 *name, __u32 size)
{
	if (size == 5 && kd_h2_is(name, ":path", 5))
		return KD_H2_PATH;
	if (size == 7 && kd_h2_is(name, ":method", 7))
		return KD_H2_METHOD;
	if (size == 7 && kd_h2_is(name, ":scheme", 7))
		return KD_H2_SCHEME;
	if (size == 10 && kd_h2_is(name, ":authority", 10))
		return KD_H2_AUTHORITY;
	return KD_H2_KINDS;
}

static __always_inline int kd_h2_string_complete(struct kd_h2 *h2)
{
	const __u8 *name;

	/* what is left of the last byte is the beginning of a code of ones */
	if (h2->huffman && (h2->bits > 7 || h2->code + 1 != 1u << h2->bits))
		return KD_HTTP_FIELD;
	if (!h2->in_name)
		return kd_h2_complete(h2);
	if (h2->at == h2->field)
		return KD_HTTP_NAME;
	if (h2->at > KD_H2_TEXT - 16)
		return KD_HTTP_TOO_LONG;
	name = h2->text + (h2->field & (KD_H2_TEXT - 1));
	if (name[0] == ':') {
		h2->kind = kd_h2_kind_of(name, h2->at - h2->field);
		if (h2->kind == KD_H2_KINDS)
			return KD_HTTP_FIELD;
		h2->at = h2->field;
	}
	kd_h2_named(h2);
	return 0;
}

/* A header begins whose name, or all of it, is an entry. */
static __always_inline int kd_h2_refer(struct kd_h2 *h2, bool whole)
{
	struct kd_h2_copy copy = { .h2 = h2 };
	__u32 index = h2->number, name, value;

	if (index <= KD_H2_STATICS) {
		const struct kd_h2_static *fixed = &kd_h2_static[index & 63];

		copy.fixed = index;
		h2->kind = fixed->kind;
		name = fixed->name;
		value = fixed->value;
	} else {
		const struct kd_h2_entry *entry;

		index -= KD_H2_STATICS + 1;
		if (index >= h2->count)
			return KD_HTTP_FIELD;
		entry = &h2->entries[(h2->newest - index) & (KD_H2_ENTRIES - 1)];
		copy.from = entry->at;
		h2->kind = entry->kind;
		name = entry->name;
		value = entry->value;
	}
	bpf_loop(name, kd_h2_copy_entry, &copy, 0);
	if (copy.failed || h2->at > KD_H2_TEXT - 16)
		return KD_HTTP_TOO_LONG;
	kd_h2_named(h2);
	if (!whole)
		return 0;
	copy.from += name;
	bpf_loop(value, kd_h2_copy_entry, &copy, 0);
	return copy.failed ? KD_HTTP_TOO_LONG : kd_h2_complete(h2);
}

/* An integer is complete. */
KD_SUBPROGRAM int kd_h2_counted(struct kd_h2 *h2)
{
	if (h2->of_string) {
		h2->of_string = 0;
		h2->left = h2->number;
		h2->code = 0;
		h2->bits = 0;
		h2->stage = KD_H2_STRING;
		return h2->left ? 0 : kd_h2_string_complete(h2);
	}
	if (h2->form == KD_H2_RESIZED) {
		if (h2->fields || h2->number > KD_H2_TABLE)
			return KD_HTTP_FIELD;
		h2->limit = h2->number;
		kd_h2_evict(h2, 0);
		h2->stage = KD_H2_FIELD;
		return 0;
	}
	h2->field = h2->at;
	if (h2->number)
		return kd_h2_refer(h2, h2->form == KD_H2_INDEXED);
	if (h2->form == KD_H2_INDEXED)
		return KD_HTTP_FIELD;
	h2->kind = KD_H2_REGULAR;
	h2->in_name = 1;
	h2->stage = KD_H2_LENGTH;
	return 0;
}

/* A byte of a string in Huffman's code, most significant bits first. */
static __always_inline int kd_h2_unpack(struct kd_h2 *h2, __u32 byte)
{
	const struct kd_h2_codes *codes;
	__u32 index;
	int reason;

	for (int i = 7; i >= 0; i--) {
		h2->code = h2->code << 1 | (byte >> i & 1);
		if (++h2->bits > 30)
			return KD_HTTP_FIELD;
		codes = &kd_h2_codes[h2->bits & 31];
		index = h2->code - codes->first;
		if (index >= codes->count)
			continue;
		index += codes->place;
		if (index > 255) /* the end of a string, which nobody may write */
			return KD_HTTP_FIELD;
		reason = kd_h2_letter(h2, kd_h2_octets[index & 255]);
		if (reason)
			return reason;
		h2->code = 0;
		h2->bits = 0;
	}
	return 0;
}

KD_SUBPROGRAM int kd_h2_spelled(struct kd_h2 *h2, __u32 byte)
{
	int reason = h2->huffman ? kd_h2_unpack(h2, byte) : kd_h2_letter(h2, byte);

	if (reason)
		return reason;
	return --h2->left ? 0 : kd_h2_string_complete(h2);
}

/* What kind of header begins, and which bits of its first byte are a number. */
static __always_inline __u32 kd_h2_form_of(struct kd_h2 *h2, __u32 byte)
{
	h2->form = byte & 0x80 ? KD_H2_INDEXED :
		   byte & 0x40 ? KD_H2_ADDED :
		   byte & 0x20 ? KD_H2_RESIZED :
				 KD_H2_PLAIN;
	return byte & 0x80 ? 0x7f : byte & 0x40 ? 0x3f : byte & 0x20 ? 0x1f : 0x0f;
}

/* One byte of the headers; returns why they are denied. */
KD_FUNCTION int kd_h2_read(struct kd_h2 *h2, __u32 byte)
{
	__u32 mask = 0x7f;

	if (!h2)
		return KD_HTTP_UNREADABLE;
	byte &= 0xff;
	switch (h2->stage) {
	case KD_H2_STRING:
		return kd_h2_spelled(h2, byte);
	case KD_H2_INTEGER:
		if (h2->shift > 14)
			return KD_HTTP_FIELD;
		h2->number += (byte & 0x7f) << h2->shift;
		h2->shift += 7;
		return byte & 0x80 ? 0 : kd_h2_counted(h2);
	case KD_H2_LENGTH:
		h2->huffman = byte & 0x80;
		h2->of_string = 1;
		break;
	case KD_H2_FIELD:
		mask = kd_h2_form_of(h2, byte);
		break;
	default:
		return KD_HTTP_UNREADABLE;
	}
	h2->number = byte & mask;
	h2->shift = 0;
	if (h2->number < mask)
		return kd_h2_counted(h2);
	h2->stage = KD_H2_INTEGER;
	return 0;
}

/* Headers begin. */
static __always_inline void kd_h2_begin(struct kd_h2 *h2)
{
	__builtin_memset(h2->parts, 0, sizeof(h2->parts));
	h2->text[0] = 0; /* so that no part begins at 0 */
	h2->at = 1;
	h2->fields = 0;
	h2->schemes = 0;
	h2->part = 0;
	h2->window.at = 0;
	h2->window.length = 0;
}

/* All headers were read: is there what has to be? */
static __always_inline int kd_h2_end(struct kd_h2 *h2)
{
	if (h2->stage != KD_H2_FIELD || !h2->parts[KD_H2_ASKS].end || !h2->parts[KD_H2_FOR].end ||
	    h2->at > KD_H2_TEXT - 16)
		return KD_HTTP_FIELD;
	if (!h2->parts[KD_H2_REST].at)
		h2->parts[KD_H2_REST].at = h2->at;
	KD_H2_WRITE(h2, "\r\n");
	h2->parts[KD_H2_REST].end = h2->at;
	h2->stage = KD_H2_TOLD;
	return 0;
}

/* The next bytes of the text, to be held to rules; false: that was all. */
static __always_inline bool kd_h2_next(struct kd_h2 *h2)
{
	struct kd_http_window *window = &h2->window;
	struct kd_h2_part *part;
	__u32 size = 0, at = 0;

	for (int i = 0; i < KD_H2_PARTS; i++) {
		part = &h2->parts[h2->part & (KD_H2_PARTS - 1)];
		at = part->at;
		size = part->end - at;
		if (size || h2->part >= KD_H2_PARTS - 1)
			break;
		h2->part++;
	}
	if (!size)
		return false;
	if (size > KD_HTTP_WINDOW)
		size = KD_HTTP_WINDOW;
	part->at = at + size;
	for (__u32 i = 0; i < KD_HTTP_WINDOW; i++)
		window->bytes[i] = h2->text[(at + i) & (KD_H2_TEXT - 1)];
	window->length = size;
	window->at = 0;
	return true;
}

#endif /* KD_HTTP2_H */
