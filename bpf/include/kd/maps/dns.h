/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What pods ask name servers, and what they are answered: see kd/dns.h. What they may ask for: kd/dns_rules.h. */
#ifndef KD_MAPS_DNS_H
#define KD_MAPS_DNS_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <kd/types.h>

#define KD_DNS_MAX 4096 /* bytes of a message; a longer one is not told */

enum kd_dns_flags {
	KD_DNS_SENT = 1, /* by a pod of this node, under its own address */
	KD_DNS_ANSWERS = 2, /* to a pod of this node, which has begun the talk */
	KD_DNS_HELD = 4, /* to rules about names */
	KD_DNS_DENIED = 8, /* by them */
	KD_DNS_AUDITED = 16, /* and it passes nevertheless */
	KD_DNS_OPENS = 32, /* a connection: the server has agreed, and nothing was said yet */
};

/*
 * How a record begins; a message follows. Over TCP it is bytes of the connection, where each message has its length in
 * front, in two bytes; what is denied is such a message, as far as its question goes.
 */
struct kd_dns_head {
	struct kd_tuple way; /* from end to end: never a service's address */
	__u64 time; /* nanoseconds of CLOCK_MONOTONIC */
	__u32 flags; /* enum kd_dns_flags */
	__u32 length; /* of what follows */
	__u32 seq; /* of TCP: sequence number of what follows, or of the first byte that would */
	__u32 ack; /* of KD_DNS_OPENS: of the other direction */
};
KD_ASSERT_SIZE(struct kd_dns_head, 64);

/* A name, as far as it was read. */
struct kd_dns_name {
	__u32 state;
	__u32 left; /* bytes of the label */
	__u32 begun;
	__u32 complete; /* not bool: one that was stored may be any byte to the verifier, where it is returned */
};

/* Bytes of a connection: those that are known and undecided, then those that have come. */
struct kd_dns_run {
	struct kd_dns_name name;
	__u32 first; /* sequence number of the first one that is read */
	__u32 size;
	__u32 known; /* how many of them are not new */
	__u32 skip; /* bytes of the payload that have passed before */
	__u32 left; /* bytes to come of a message whose question was read */
	__u32 start; /* where the message begins that is read now */
	__u32 at; /* in that */
	__u32 length; /* of that */
	__u32 kind; /* bytes of type and class */
	__s32 result;
	__u32 audited;
};

struct kd_dns_record {
	struct kd_dns_head head;
	__u8 message[KD_DNS_MAX];
	/* of what is held to rules, and not told: */
	__u32 question; /* where it ends */
	struct kd_dns_run run; /* here and not on the stack, where the verifier would follow each number through all loops */
};

/* What a CPU has told. Value of kd_dns_told. */
struct kd_dns_told {
	__u64 told;
	__u64 full; /* messages for which there was no room in kd_dns */
	__u64 skipped; /* datagrams in pieces, or too long */
};
KD_ASSERT_SIZE(struct kd_dns_told, 24);

/* struct kd_dns_head and a message, one after the other. Full: what is new is not told, and counted in kd_dns_told. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 16);
} kd_dns SEC(".maps");

/* One element per CPU: the record that it is at. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct kd_dns_record);
} kd_dns_room SEC(".maps");

/*
 * A connection over which a pod asks, where it may ask for some names only. What the server has is known to the byte: of
 * each sequence number only one byte passes, however often it is sent.
 */
#define KD_DNS_KEPT 1024
struct kd_dns_stream {
	__u32 origin; /* sequence number of the pod's first byte, by what the server has acknowledged */
	__u32 next; /* of the byte behind all that has passed */
	__u32 kept; /* how many of the last ones there are in `bytes` */
	__u32 undecided; /* how many of these are of a question that is not complete */
	__u32 left; /* bytes to come of a message whose question has passed */
	__u32 first; /* sequence number of the server's first byte */
	__u32 end; /* behind all that it has said; of KD_DNS_STREAM_DENIED: behind our answer and its FIN */
	__u16 over; /* somebody has closed it: no more is asked */
	__u16 begun; /* the server has acknowledged something of it */
	__u32 state; /* enum kd_dns_state */
	__u32 busy; /* a CPU is at it */
	__u8 bytes[KD_DNS_KEPT]; /* by sequence number */
};
KD_ASSERT_SIZE(struct kd_dns_stream, 1064);

enum kd_dns_state {
	KD_DNS_STREAM_READ = 0,
	KD_DNS_STREAM_LOST = 1, /* it cannot be read any more, and passes while policies only look on */
	KD_DNS_STREAM_DENIED = 2, /* no word passes any more, neither way */
	KD_DNS_STREAM_CUT = 3, /* nor that, and the server was told that the connection is over */
};

/*
 * From the pod to its server, as both are known to policies -> the connection. Writers: programs. Full: the oldest goes, and
 * is denied.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1 << 12);
	__type(key, struct kd_tuple);
	__type(value, struct kd_dns_stream);
} kd_dns_streams SEC(".maps");

/* One element per CPU: what it has told, and could not tell. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct kd_dns_told);
} kd_dns_told SEC(".maps");

/*
 * Names that may be asked for, as an automaton that reads a name in lower case with a dot behind each label. Its rows
 * have one cell for each class of bytes: the next state, and KD_DNS_FITS if a name that ends there is one of them.
 */
#define KD_DNS_FITS 0x8000
#define KD_DNS_CELLS 32
struct kd_dns_block {
	__u16 cell[KD_DNS_CELLS];
};
KD_ASSERT_SIZE(struct kd_dns_block, 64);

/* Value of kd_dns_sets, of which number 0 is none. */
struct kd_dns_set {
	__u32 cells; /* its first one, of all in kd_dns_table */
	__u32 size; /* how many there are; 0: nobody has the number */
	__u16 width; /* classes of bytes */
	__u8 dot; /* the class of what is between labels; a dot inside of one is of the class of what fits nothing */
	__u8 pad;
	__u8 classes[256]; /* of bytes inside of labels */
};
KD_ASSERT_SIZE(struct kd_dns_set, 268);

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1 << 15);
	__type(key, __u32);
	__type(value, struct kd_dns_block);
} kd_dns_table SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1 << 10);
	__type(key, __u32);
	__type(value, struct kd_dns_set);
} kd_dns_sets SEC(".maps");

/* A name, or a pattern of them. Key of kd_dns_names. */
struct kd_dns_name_key {
	__u32 set;
	__u32 name; /* its place there, from 1 */
};
KD_ASSERT_SIZE(struct kd_dns_name_key, 8);

/* For who looks at pins: no program reads it. Full: others have no names. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1 << 14);
	__type(key, struct kd_dns_name_key);
	__type(value, struct kd_name);
} kd_dns_names SEC(".maps");

#endif /* KD_MAPS_DNS_H */
