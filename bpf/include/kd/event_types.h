/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The structs of events, which cross the border between the kernel and user space as those in kd/types.h do. */
#ifndef KD_EVENT_TYPES_H
#define KD_EVENT_TYPES_H

#include <linux/types.h>
#include <kd/types.h>

/* Where a packet, or a call of a socket, was seen. */
enum kd_point {
	KD_FROM_POD = 0,
	KD_TO_POD_DEVICE = 1,
	KD_FROM_UPLINK = 2,
	KD_TO_UPLINK = 3,
	KD_FROM_OVERLAY = 4,
	KD_TO_OVERLAY = 5,
	KD_AT_DRIVER = 6, /* of an uplink, by XDP */
	KD_CONNECT = 7,
	KD_SENDMSG = 8,
	KD_RECVMSG = 9,
	KD_BIND = 10,
	KD_PAIRED = 11, /* a connection's two sockets hand each other what they send, from now on */
};

/* What a packet is to its connection. */
enum kd_event_state {
	KD_STATE_UNKNOWN = 0,
	KD_STATE_NEW = 1, /* nothing had been seen of it */
	KD_STATE_ESTABLISHED = 2, /* from who had begun it */
	KD_STATE_REPLY = 3,
	KD_STATE_RELATED = 4, /* an ICMP error about another one */
};

enum kd_event_flags {
	KD_EVENT_IPV6 = 1,
	KD_EVENT_FRAGMENT = 2, /* of several */
	KD_EVENT_OWN = 4, /* sent by the node itself */
	KD_EVENT_TUNNELLED = 8, /* it came through the tunnel */
	KD_EVENT_SOURCE_ASKED = 16, /* the policy of its source was asked, which is a pod of this node */
	KD_EVENT_DESTINATION_ASKED = 32, /* likewise */
	KD_EVENT_DENIED_BY_SOURCE = 64,
	KD_EVENT_DENIED_BY_DESTINATION = 128,
	KD_EVENT_AUDITED = 256, /* a policy denies it, and only looks on */
};

/*
 * One packet, or one call of a socket, and what became of it. Its ends are those of the connection as they are,
 * never a service's address: where the packet was translated, it left with the source that others see of it, and came
 * to the destination that was dialled.
 */
struct kd_event {
	struct kd_addr source;
	struct kd_addr destination;
	struct kd_addr seen_source; /* all zero: it is the source, and so are the ports */
	struct kd_addr dialled; /* all zero: it is the destination */
	__u64 time; /* nanoseconds of CLOCK_MONOTONIC; of TCP from a pod as that says, if within a tick: 4 ms */
	__u64 packets; /* of its connection, in this direction; 0: not counted */
	__u64 bytes;
	__u64 cookie; /* of a socket */
	__u64 cgroup; /* of the process that called */
	__u64 netns; /* cookie of the network namespace of the socket that it was called on */
	__s32 result; /* enum kd_verdict, or why it was dropped and where: kd/here.h */
	__u32 source_identity; /* 0: not known */
	__u32 destination_identity;
	__u32 source_device; /* of a pod of this node: the host side of its veth */
	__u32 destination_device;
	__u32 ifindex; /* where it was seen */
	__u32 length;
	__u32 source_rule; /* counter of the rule that the policy of its source has for it, see kd_rule_counts */
	__u32 destination_rule;
	__be16 source_port;
	__be16 destination_port;
	__be16 seen_source_port;
	__be16 dialled_port;
	__u16 cpu;
	__u16 flags; /* enum kd_event_flags */
	__u8 point; /* enum kd_point */
	__u8 protocol;
	__u8 tcp_flags;
	__u8 icmp_type;
	__u8 icmp_code;
	__u8 state; /* enum kd_event_state */
	__u8 ttl;
	__u8 pad;
};
KD_ASSERT_SIZE(struct kd_event, 168);

enum kd_event_level {
	KD_EVENTS_OFF = 0,
	KD_EVENTS_DROPS = 1, /* what was dropped */
	KD_EVENTS_AGGREGATED = 2, /* and of each connection the beginning, the end, and now and then one packet */
	KD_EVENTS_ALL = 3, /* and each packet */
};

/* Value of kd_event_setup. */
struct kd_event_setup {
	__u32 level; /* enum kd_event_level */
	__u32 interval; /* seconds after which a connection is told of again */
	__u32 rate; /* events that each CPU may tell in a second; 0: any number */
	__u32 filters; /* how many of kd_event_filters count; 0: nothing is held back */
};
KD_ASSERT_SIZE(struct kd_event_setup, 16);

/* What an event must have to be told. Value of kd_event_filters; each member that is 0 asks for nothing. */
struct kd_event_filter {
	struct kd_addr address; /* a network of an end, or of what was dialled */
	struct kd_addr mask;
	__u64 outcomes; /* bit n: index n of kd_counters */
	__u32 identity; /* of an end */
	__u32 points; /* bit n: enum kd_point n */
	__be16 port; /* of an end, or dialled */
	__u8 protocol;
	__u8 pad[5];
};
KD_ASSERT_SIZE(struct kd_event_filter, 56);

/* What was seen of a connection: by [0] of its lower end's packets, see kd_talk_key(). Value of kd_connections. */
struct kd_connection {
	__u64 packets[2];
	__u64 bytes[2];
	__u32 told[2]; /* seconds of CLOCK_MONOTONIC: when an event was due */
	__u16 points[2]; /* that have told since */
	__u8 tcp_flags[2];
	__u8 began; /* 1 by the lower end, 2 by the other, 0 unknown */
	__u8 pad;
};
KD_ASSERT_SIZE(struct kd_connection, 48);

/*
 * The queue of a CPU in kd_event_rows. Its events are told by one program after the other, and taken by one reader; each
 * of the two writes a cache line of its own. Value of kd_event_queues.
 */
struct kd_event_queue {
	__u64 written; /* events, ever: the next is at this modulo the size of the CPU's share of the rows */
	__u64 pad[7];
	__u64 taken;
	__u64 share; /* its first row, and in the low half how many these are, a power of two; 0: it has none */
	__u64 wanted; /* it has none, and had something to tell */
	__u64 pad2[5];
};
KD_ASSERT_SIZE(struct kd_event_queue, 128);

/* What a CPU has told. Value of kd_telling. */
struct kd_telling {
	__u64 told;
	__u64 full; /* events for which there was no room */
	__u64 limited; /* those above the rate */
	__u64 next; /* nanoseconds of CLOCK_MONOTONIC from which on one more is allowed */
	__u64 woken; /* when the reader was last woken */
};
KD_ASSERT_SIZE(struct kd_telling, 40);

#endif /* KD_EVENT_TYPES_H */
