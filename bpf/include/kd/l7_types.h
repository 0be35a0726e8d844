/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The structs of HTTP policy that cross the border between the kernel and user space; rules as in kd/types.h.
 */
#ifndef KD_L7_TYPES_H
#define KD_L7_TYPES_H

#include <linux/types.h>
#include <kd/types.h>

/*
 * Automata are rows of cells, one cell for each class of bytes. A cell is `next << 8 | action << 4 | arg`. Without an
 * action, `next` is where the row of the next state begins, counted in cells from the automaton's first; arg is
 * KD_L7_RUN where that state stays what it is with any byte but control characters.
 *
 * Blocks are large: nearly all automata are in one, which is looked up once for all of their bytes.
 */
#define KD_L7_CELLS 16384
#define KD_L7_RUN 1
struct kd_l7_block {
	__u32 cell[KD_L7_CELLS];
};
KD_ASSERT_SIZE(struct kd_l7_block, 65536);

/* What a cell asks for, besides going on. */
enum kd_l7_action {
	KD_L7_GO = 0,
	KD_L7_ERROR = 1, /* next: enum kd_l7_reason */
	KD_L7_TARGET = 2, /* method and target are complete; next: a row of kd_l7_rows, whose `next` comes next */
	KD_L7_LINE = 3, /* so is the first line; arg: the version's minor number */
	KD_L7_DIGIT = 4, /* of a Content-Length; arg */
	KD_L7_HEADER = 5, /* a header that matters is complete; next: a row, as above */
	KD_L7_HEAD = 6, /* all headers are */
	KD_L7_HEX = 7, /* a digit of a chunk's size; arg */
	KD_L7_CHUNK = 8, /* its size is complete; next comes behind the chunk, unless it is the last */
	KD_L7_BODY = 9, /* the last chunk is complete */
	KD_L7_STATUS = 10, /* a digit of a response's status; arg */
};

/* Where automata begin to read. */
enum kd_l7_section {
	KD_L7_REQUEST = 0,
	KD_L7_HEADERS = 1,
	KD_L7_CHUNKS = 2,
	KD_L7_LAST = 3, /* behind a chunk that is empty */
	KD_L7_RESPONSE = 4,
	KD_L7_ANSWER = 5, /* behind a response's first line */
	KD_L7_VALUE = 6, /* in a value that does not matter, of a request */
	KD_L7_SECTIONS,
};

#define KD_L7_NAME 32

/* Number 1 reads what is the same for all rules. */
#define KD_L7_COMMON 1

/* Value of kd_l7_automata. Number 0 is none: its generation is another one each time that kd_l7_ports has changed. */
struct kd_l7_automaton {
	__u32 cells; /* its first one, of all in kd_l7_table */
	__u32 rows; /* likewise, of kd_l7_rows */
	__u32 generation; /* another one each time that its number is given away; 0: nobody has it. */
	__u32 headers; /* number of the automaton that reads the headers */
	__u32 more; /* of the one that reads the same for further rules; 0: there are none */
	__u32 cells_size; /* how many there are: nobody but user space asks; likewise */
	__u32 rows_size;
	__u32 start[KD_L7_SECTIONS];
	__u32 initials[KD_L7_NAME]; /* by the length of a header's name: bits of the letters that those begin with that matter */
	__u8 classes[256]; /* of bytes */
};
KD_ASSERT_SIZE(struct kd_l7_automaton, 440);

#define KD_L7_WORDS 4

enum kd_l7_row_flags {
	/* of a target */
	KD_L7_IS_HEAD = 1, /* the method is HEAD */
	/* of a header */
	KD_L7_LENGTH = 1,
	KD_L7_BAD_LENGTH = 2,
	KD_L7_ENCODING = 3,
	KD_L7_BAD_ENCODING = 4,
	KD_L7_HOST = 5,
	KD_L7_UPGRADE = 6,
};

/*
 * What is known when a target or a header is complete. Facts about headers are bits; a rule asks for some and for
 * the absence of others.
 */
struct kd_l7_row {
	__u64 holds[KD_L7_WORDS]; /* facts that hold now; of a candidate: that must hold */
	__u64 lacks[KD_L7_WORDS]; /* that hold no longer; must not */
	__u32 next;
	__u32 flags; /* enum kd_l7_row_flags */
	__u32 rule; /* of a target: one that allows it as it is; 0: none. Of a candidate: itself */
	__u16 candidates; /* rows behind this one: rules that allow it if headers do */
	__u16 seen; /* of a header: 1 + the fact that it was there; the next fact is that it was there twice */
};
KD_ASSERT_SIZE(struct kd_l7_row, 80);

/* A rule. Key of kd_l7_names. */
struct kd_l7_name_key {
	__u32 rules; /* number of the automaton */
	__u32 rule; /* its place, from 1 */
};
KD_ASSERT_SIZE(struct kd_l7_name_key, 8);

/* A pod, and the port of a server: its own, or one that it dials, as the server knows it. Key of kd_l7_ports. */
struct kd_l7_port_key {
	struct kd_addr addr;
	__be16 port;
	__u8 toward; /* enum kd_toward */
	__u8 pad;
};
KD_ASSERT_SIZE(struct kd_l7_port_key, 20);

struct kd_l7_port {
	__u32 rules; /* number of what requests have to be, whoever asks; 0: anything */
	__u32 flags; /* enum kd_l7_port_flags */
};
KD_ASSERT_SIZE(struct kd_l7_port, 8);

enum kd_l7_port_flags {
	KD_L7_OBSERVE = 1, /* requests that are allowed are events too, and responses */
	KD_L7_AUDIT = 2, /* nothing is denied: what would be is only told */
};

/* One direction of a connection, as far as it was read. */
struct kd_l7_stream {
	__u64 body; /* bytes to come of a body, or of a chunk */
	__u64 length; /* Content-Length, or size of a chunk, as far as it was read */
	__u64 facts[KD_L7_WORDS];
	__u32 state;
	__u32 automaton;
	__u32 head; /* bytes of the head so far; 0: a message is to begin */
	__u32 flags; /* enum kd_l7_stream_flags */
	__u32 target; /* row of what was asked for */
	__u32 number; /* of the rule that allows, or the status */
};
KD_ASSERT_SIZE(struct kd_l7_stream, 72);

enum kd_l7_stream_flags {
	KD_L7_HAS_LENGTH = 1,
	KD_L7_HAS_ENCODING = 2,
	KD_L7_HAS_HOST = 4,
	KD_L7_OLD = 8, /* HTTP/1.0 */
	KD_L7_IN_BODY = 32,
	KD_L7_UNKNOWN = 64, /* it is not to be read any more */
	KD_L7_FOR_HEAD = 128, /* the method is HEAD */
	KD_L7_TOLD = 256, /* a head of HTTP/2 is complete, and not yet held to rules */
	KD_L7_BY_LINE = 512, /* a head is read by the line, and one begins */
	KD_L7_GROUPED = 1024, /* further automata read the head, too */
};

/* How many automata may share the rules that a request is held to, if these are too many for one. */
#define KD_L7_GROUPS 4

/* What all automata but the first have read of a head. Value of kd_l7_groups. */
struct kd_l7_groups {
	struct kd_l7_stream group[KD_L7_GROUPS - 1]; /* automaton is 0: none of its rules allows, or the one with its number */
};
KD_ASSERT_SIZE(struct kd_l7_groups, 216);

/* A head is begun, and not complete. */
static inline __attribute__((always_inline)) int kd_l7_in_head(const struct kd_l7_stream *stream)
{
	return stream->head && !(stream->flags & (KD_L7_IN_BODY | KD_L7_UNKNOWN));
}

#define KD_L7_TEXT 256
#define KD_L7_AHEAD 256

/* A connection whose requests are looked at. Value of kd_l7_conns. */
struct kd_l7_conn {
	struct kd_tuple way; /* from the server to the client */
	struct kd_l7_stream requests;
	struct kd_l7_stream responses;
	__u64 asked_at; /* nanoseconds of CLOCK_MONOTONIC: the last request was complete; 0: nobody asks */
	__u64 ended_at; /* it was denied; 0: it was not */
	__u64 heads; /* of the last 64 requests, which were HEAD */
	__u64 netns; /* cookie */
	__u64 received; /* bytes of the client that were read */
	__u32 policy; /* number of the pod's */
	__u32 revision; /* of that policy, when it was asked */
	__u32 identity; /* of the peer */
	__u32 rules; /* number of the automaton; 0: anything is allowed */
	__u32 generation; /* of that */
	__u32 flags; /* enum kd_l7_conn_flags */
	__u32 asked; /* requests that were allowed */
	__u32 answered; /* responses that are complete */
	__u32 at; /* in what is being read */
	__u32 begin; /* of the request, there */
	__u32 reason; /* enum kd_l7_reason */
	__u32 epoch; /* of kd_l7_ports, when it was asked */
	__u32 sent; /* as `at`, of responses */
	__u32 size; /* of the text */
	__u32 ahead_at; /* as `at` or `sent`, where what is ahead begins */
	__u32 ahead_size;
	__u8 text[KD_L7_TEXT + KD_L7_AHEAD]; /* where the last request begins; behind it is room to write in */
	__u8 ahead[KD_L7_AHEAD + 8]; /* likewise, to read in */
};
KD_ASSERT_SIZE(struct kd_l7_conn, 1064);

enum kd_l7_conn_flags {
	KD_L7_CLIENT = 1, /* it is the client's socket */
	KD_L7_OBSERVED = 2,
	KD_L7_ENDED = 4, /* it was denied, and nothing passes any more */
	KD_L7_AUDITED = 8,
	KD_L7_ANY = 16, /* policies ask for nothing */
	KD_L7_CLOSES = 32, /* programs at the pod's device close it */
	KD_L7_BEGUN = 64, /* when it was, the server had a part of the head, and was not told yet that no more comes */
	KD_L7_HTTP2 = 128, /* frames are read; its responses are not */
};

/* That a connection was denied and is to be closed. Value of kd_l7_closing, whose key is kd_l7_conn.way. */
struct kd_l7_closing {
	__u32 end; /* sequence number behind the last byte, later behind the FIN */
	__u16 stage; /* enum kd_l7_stage */
	__u16 by_ack; /* our response takes the place of whatever the server's socket sends */
};
KD_ASSERT_SIZE(struct kd_l7_closing, 8);

enum kd_l7_stage {
	KD_L7_WILL_ANSWER = 1, /* what the server sends next becomes our response */
	KD_L7_WILL_END = 2, /* the last response of the server is on its way */
	KD_L7_ANSWERED = 3, /* it did */
	KD_L7_END_SENT = 4, /* it had the FIN */
};

enum kd_l7_event_kind {
	KD_L7_REQUESTED = 1,
	KD_L7_RESPONDED = 2,
};

/* Record of kd_l7_events. */
struct kd_l7_event {
	__u64 time; /* nanoseconds of CLOCK_MONOTONIC */
	__u64 cookie; /* of the socket */
	__u64 latency; /* of a response: since its request was complete; 0: not known, they overtook each other */
	struct kd_tuple way; /* from the server to the client */
	__u32 identity; /* of the peer */
	__u32 rules;
	__u32 rule; /* its place among them, from 1; 0: none */
	__u32 reason; /* enum kd_l7_reason */
	__u16 status;
	__u8 kind; /* enum kd_l7_event_kind */
	__u8 flags; /* enum kd_l7_conn_flags */
	__u32 size; /* of the text */
	__u8 text[KD_L7_TEXT]; /* where the request begins */
};
KD_ASSERT_SIZE(struct kd_l7_event, 344);

enum kd_l7_sock_flags {
	KD_L7_READ = 1, /* its bytes go through our programs */
	KD_L7_FREE = 2, /* they need not */
	KD_L7_CALLER = 4, /* it is a client's */
	KD_L7_DIALS = 8, /* it will be, and nothing may be sent before */
};

/* What is known of a socket without looking for its connection. Storage of sockets. */
struct kd_l7_sock {
	__u64 cookie;
	__u32 flags; /* enum kd_l7_sock_flags; 0: its bytes are to be looked at, and are not */
	__u32 end; /* sequence number behind what was read of what it sends */
};
KD_ASSERT_SIZE(struct kd_l7_sock, 16);

#endif /* KD_L7_TYPES_H */
