/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Structs of kd/maps/acceleration.h, by the rules of kd/types.h; their twins are in tables/acceleration.py. */
#ifndef KD_ACCELERATION_TYPES_H
#define KD_ACCELERATION_TYPES_H

#include <linux/types.h>
#include <kd/types.h>

/* Key of kd_accel_rules. */
struct kd_accel_rule_key {
	__u32 prefixlen; /* 32 for port and family, then those of the address: an IPv4 /8 has 32 + 96 + 8 */
	__be16 port; /* 0: any */
	__u16 ipv6; /* whether it is none of IPv4: or ::/0 would be all of that too, which is mapped */
	struct kd_addr addr;
};
KD_ASSERT_SIZE(struct kd_accel_rule_key, 24);

/*
 * A connection at the moment when it is established, as both ends know it: by its addresses as the server sees them,
 * and by the numbers that both count their bytes from, which others with the same addresses elsewhere do not have.
 */
struct kd_accel_call {
	struct kd_tuple way; /* from client to server */
	__u32 client_next;
	__u32 server_next;
	__u64 netns; /* cookie of the namespace that both are in; 0: they are pods, which may be two */
};
KD_ASSERT_SIZE(struct kd_accel_call, 56);

/* What the ends of a talk have allowed it by. */
struct kd_held {
	__u32 policy[2]; /* keys of kd_policies */
	__u32 revision[2];
};
KD_ASSERT_SIZE(struct kd_held, 16);

/* One socket of a pair. */
struct kd_accel_end {
	__u64 cookie;
	__u64 netns; /* cookie of its namespace */
	__u64 sock; /* where the kernel has it: to look at, and only while its cookie is there too */
	__u64 messages; /* that it has handed over */
	__u64 bytes;
	__u64 others; /* messages that it has sent through the stack */
	struct kd_held held;
	__u32 asked; /* the moment when that was found; 0: it is not allowed */
	__u32 read; /* of `messages`, as many as the peer has read for certain */
};
KD_ASSERT_SIZE(struct kd_accel_end, 72);

struct kd_accel_caller {
	struct kd_accel_end end;
	struct kd_addr dialled;
	__be16 dialled_port;
	__u8 translated; /* by packet: the flow table has it under what was dialled */
	__u8 pad[5];
};
KD_ASSERT_SIZE(struct kd_accel_caller, 96);

#define KD_ACCEL_CLIENT 0
#define KD_ACCEL_SERVER 1

struct kd_accel_pair {
	struct kd_accel_end end[2];
	struct kd_tuple talk; /* under which policies know it */
	struct kd_addr dialled;
	__be16 dialled_port;
	__u8 translated;
	__u8 within; /* one namespace: policies have no say */
	__u8 second; /* the client is the second end of the talk */
	__u8 pad[3];
};
KD_ASSERT_SIZE(struct kd_accel_pair, 208);

/* Value of kd_accel_owns. */
struct kd_accel_own {
	__u64 pair; /* key of kd_accel_pairs */
	__u32 end; /* KD_ACCEL_CLIENT or KD_ACCEL_SERVER */
	__u32 pad;
};
KD_ASSERT_SIZE(struct kd_accel_own, 16);

/* What becomes of messages of sockets in kd_accel_socks, and of connections. */
enum kd_accel_way {
	KD_ACCEL_HANDED = 0, /* over to the peer */
	KD_ACCEL_ALONE = 1, /* through the stack: there is no pair, not yet or not any more */
	KD_ACCEL_POLICY = 2, /* policies have not allowed it, or are to be asked again, or have more to say */
	KD_ACCEL_BEHIND = 3, /* the peer has not read what went through the stack */
	KD_ACCEL_FULL = 4, /* nor what was handed to it */
	KD_ACCEL_SHUT = 5, /* one of them has closed, in this direction at least */
	KD_ACCEL_PAIRED = 6, /* connections */
	KD_ACCEL_REFUSED = 7, /* connections: a socket is another program's, or there was no room */
	KD_ACCEL_SPECIAL = 8, /* one of them has an option that only the stack knows: SO_RCVLOWAT, TLS */
	KD_ACCEL_WAYS,
};

#endif /* KD_ACCELERATION_TYPES_H */
