/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * What is kept of a connection of HTTP/2. Nobody but programs reads it.
 */
#ifndef KD_HTTP2_TYPES_H
#define KD_HTTP2_TYPES_H

#include <linux/types.h>
#include <kd/http.h>

#define KD_H2_ENTRIES 128 /* as many as go into a table */
#define KD_H2_TABLE 4096
#define KD_H2_TEXT 8192

enum kd_h2_stage {
	KD_H2_PREFACE = 0,
	KD_H2_FRAME, /* in the header of a frame */
	KD_H2_PRIORITY, /* in what may come before the headers */
	KD_H2_FIELD, /* a header begins; the following are in it */
	KD_H2_INTEGER,
	KD_H2_LENGTH,
	KD_H2_STRING,
	KD_H2_TOLD, /* the head is complete, and being held to rules */
};

/* What the integer that is being read is. */
enum kd_h2_form {
	KD_H2_INDEXED,
	KD_H2_ADDED, /* the index of a name; the header becomes an entry */
	KD_H2_PLAIN, /* likewise, and it does not */
	KD_H2_RESIZED,
};

enum kd_h2_kind {
	KD_H2_REGULAR,
	KD_H2_METHOD,
	KD_H2_PATH,
	KD_H2_AUTHORITY,
	KD_H2_SCHEME,
	KD_H2_STATUS,
	KD_H2_KINDS,
};

/* A header of the dynamic table; its name, unless it begins with a colon, and behind that its value are in the ring. */
struct kd_h2_entry {
	__u16 at;
	__u16 name;
	__u16 value;
	__u16 size; /* as the encoder counts it */
	__u32 kind;
};

/* A part of the text; the parts are read in the order of HTTP/1. */
struct kd_h2_part {
	__u32 at;
	__u32 end;
};

enum kd_h2_parts { KD_H2_ASKS, KD_H2_FOR, KD_H2_OF, KD_H2_REST, KD_H2_PARTS };

/* Value of kd_l7_http2. */
struct kd_h2 {
	__u32 stage; /* enum kd_h2_stage */
	__u32 got; /* bytes of a frame's header, or of the preface */
	__u32 left; /* of the priority, or of a string */
	__u32 block; /* bytes to come of the headers */
	__u32 stream; /* the last one that was opened */
	__u32 form; /* enum kd_h2_form */
	__u32 number; /* as far as it was read */
	__u32 shift;
	__u32 of_string; /* the number is the length of one */
	__u32 in_name; /* the string is a name */
	__u32 huffman;
	__u32 code; /* bits of a letter that is not complete */
	__u32 bits;
	__u32 kind; /* enum kd_h2_kind */
	__u32 field; /* where the header begins in the text */
	__u32 value; /* where its value does */
	__u32 fields; /* complete ones */
	__u32 schemes; /* of these */
	__u32 at; /* end of the text */
	__u32 part; /* that is being read */
	struct kd_h2_part parts[KD_H2_PARTS];
	__u32 limit; /* of the table, as the client has it */
	__u32 used;
	__u32 count; /* of its entries */
	__u32 newest;
	__u32 end; /* of the ring */
	__u8 header[16]; /* of a frame */
	struct kd_http_window window __attribute__((aligned(8)));
	struct kd_h2_entry entries[KD_H2_ENTRIES];
	__u8 table[KD_H2_TABLE]; /* a ring */
	__u8 text[KD_H2_TEXT + 64]; /* the head as HTTP/1 has it; behind it is room to write in */
};

#endif /* KD_HTTP2_TYPES_H */
