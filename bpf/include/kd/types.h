/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The structs that cross the border between the kernel and user space.
 *
 * Each has a twin in k8sdatapath/tables/, compared through BTF when a table binds. Rules: widest
 * member first, no implicit holes, pads zeroed by whoever writes, size asserted. __be16/__be32 are
 * in network byte order, everything else in the host's. An IPv4 address is held as ::ffff:a.b.c.d,
 * so that both families share one map, one key and one code path.
 */
#ifndef KD_TYPES_H
#define KD_TYPES_H

#include <linux/types.h>

#define KD_ASSERT_SIZE(type, size) _Static_assert(sizeof(type) == (size), #type " must be " #size " bytes")

/* An address of either family, 4-byte aligned: IPv4 is mapped (w[0..1] = 0, w[2] = htonl(0xffff)). */
struct kd_addr {
	__be32 w[4];
};
KD_ASSERT_SIZE(struct kd_addr, 16);

/* What a client dials. Key of kd_frontends. */
struct kd_frontend_key {
	struct kd_addr addr;
	__be16 port;
	__u8 protocol; /* IPPROTO_TCP or IPPROTO_UDP */
	__u8 pad;
};
KD_ASSERT_SIZE(struct kd_frontend_key, 20);

enum kd_selection {
	KD_SELECT_RANDOM = 0, /* any slot of the set */
	KD_SELECT_MAGLEV = 1, /* the slot that the flow's hash names: the same on every node */
	KD_SELECT_ROUND_ROBIN = 2, /* the slots in turn, as counted at the frontend */
};

enum kd_frontend_kind {
	KD_CLUSTER_IP = 0,
	KD_NODE_PORT = 1,
	KD_LOAD_BALANCER = 2,
	KD_EXTERNAL_IP = 3,
	KD_HOST_PORT = 4,
};

enum kd_frontend_flags {
	KD_FRONTEND_INTERNAL_LOCAL = 1, /* a cluster IP leads to local backends only */
	KD_FRONTEND_EXTERNAL_LOCAL = 2, /* any other leads those from outside to local ones only */
	KD_FRONTEND_SOURCE_RANGES = 4, /* a load balancer is for sources in kd_sources only */
	KD_FRONTEND_HAS_ENDPOINTS = 8, /* some endpoint exists somewhere: an empty set drops, else rejects */
	KD_FRONTEND_LOOPBACK = 16, /* a loopback address: for sockets of the node's own namespace only */
};

#define KD_NO_SERVICE 0xffffffff

/*
 * Value of kd_frontends. All frontends of one service port carry one service number; the sets
 * of backends hang on that number, so that changing backends touches no frontend.
 *
 * The row with port 0 and protocol 0 of an address has KD_NO_SERVICE: it says that the address belongs to
 * services only, and so what becomes of packets to its other ports.
 */
struct kd_frontend {
	__u32 service; /* index into kd_sets, see kd_set_index() */
	__u32 affinity_timeout; /* seconds that a client stays with its backend; 0: each flow is on its own */
	__u32 turn; /* round robin: flows begun here since user space last wrote the row */
	__u16 flags; /* enum kd_frontend_flags */
	__u8 selection; /* enum kd_selection */
	__u8 kind; /* enum kd_frontend_kind */
};
KD_ASSERT_SIZE(struct kd_frontend, 16);

/*
 * The sets that a service has: two of candidates, of which the asker and the frontend's flags decide, and one
 * that no program looks at. It names the backends that only keep their flows, for user space to find again.
 */
enum kd_scope {
	KD_SCOPE_CLUSTER = 0, /* all endpoints that this node may use */
	KD_SCOPE_LOCAL = 1, /* those on this node */
	KD_SCOPE_KEPT = 2,
	KD_SCOPES,
};

/*
 * A backend set: a run of slots in kd_slots. Eight bytes, so that one aligned store moves a set
 * from its old run to its new one: no reader ever sees half a change.
 */
struct kd_set {
	__u32 offset; /* first slot */
	__u32 count; /* slots in the run; 0: no backend */
};
KD_ASSERT_SIZE(struct kd_set, 8);

/* Sixteen slots, one cache line: array elements are padded to 8 bytes, a lone __u32 would waste half. */
#define KD_SLOTS_PER_BLOCK 16
struct kd_slots {
	__u32 backend[KD_SLOTS_PER_BLOCK];
};
KD_ASSERT_SIZE(struct kd_slots, 64);

/*
 * A backend id is 22 bits of index into kd_backends and 10 bits of generation. A row that is
 * given to another backend gets the next generation, so an id remembered by a flow, a socket or
 * an affinity entry can never reach a backend it was not made for.
 */
#define KD_BACKEND_INDEX_BITS 22
#define KD_BACKEND_INDEX_MASK ((1U << KD_BACKEND_INDEX_BITS) - 1)

enum kd_backend_state {
	KD_BACKEND_FREE = 0, /* the row belongs to nobody */
	KD_BACKEND_ACTIVE = 1,
	KD_BACKEND_TERMINATING = 2, /* keeps its flows; gets new ones only while a slot names it */
};

/* The low bits of a backend's status; above are those of KD_BACKEND_IN(). */
#define KD_BACKEND_STATE 0xf
#define KD_BACKEND_IN(scope) (0x10 << (scope))

/*
 * One endpoint's membership in one service port: row of kd_backends. It is never shared between
 * services, so "is this id still alive" also answers "does it still belong to this service".
 */
struct kd_backend {
	struct kd_addr addr;
	__u64 flows; /* connections given to it, counted by the kernel */
	__u32 id; /* generation and own index; another value means the asker's id is stale */
	__be16 port;
	__u8 protocol;
	__u8 status; /* enum kd_backend_state, and KD_BACKEND_IN() each set that it is in */
};
KD_ASSERT_SIZE(struct kd_backend, 32);

/* A flow as one direction of it appears on the wire. Key of kd_conntrack. */
struct kd_tuple {
	struct kd_addr src;
	struct kd_addr dst;
	__be16 sport;
	__be16 dport;
	__u8 protocol;
	__u8 pad[3];
};
KD_ASSERT_SIZE(struct kd_tuple, 40);

enum kd_ct_flags {
	KD_CT_REPLY = 1, /* this entry is of the reply direction */
	KD_CT_FIN = 2, /* this direction has sent FIN */
	KD_CT_RST = 4, /* this direction has sent RST */
	KD_CT_SEEN_REPLY = 8, /* on the original direction, and on a reply that was made alone: it was answered */
	KD_CT_SOURCE = 16, /* of no service: only the source is translated */
	KD_CT_GONE = 32, /* removed; while tables move, it keeps what the old one has from coming back */
	KD_CT_BURIED = 64, /* and somebody is about to take it away */
	KD_CT_ENDED = 128, /* on the reply direction of datagrams: the flow is over, but for answers on their way */
	KD_CT_ALONE = 256, /* on the reply direction: it was made without the original, see kd/conntrack.h */
};

/*
 * One direction of a translated flow: the tuple that its own becomes. Whatever is translated (a service's
 * address, a client's, both) it holds all that it needs, so that a flow outlives its service. The reply's key
 * is the reverse of the original's `to`, and its `to` the reverse of the original's key. Both directions are
 * made together, or the reply first (KD_CT_ALONE); an original without its reply is remade. Programs that tell of
 * packets keep here what they have told of its direction: kd/told.h.
 */
struct kd_ct {
	struct kd_tuple to;
	__u64 packets;
	__u64 bytes; /* counted by programs that tell of packets */
	__u32 backend; /* full id, generation included; nothing with KD_CT_SOURCE */
	__u32 last_seen; /* seconds of CLOCK_MONOTONIC; 0: no packet in this direction yet; alone: when it was made */
	__u32 flags; /* enum kd_ct_flags; set by several CPUs, so with atomic operations */
	__u32 service; /* whose frontend was dialled; nothing with KD_CT_SOURCE */
	__u32 told; /* seconds of CLOCK_MONOTONIC: when an event was due */
	__u8 tcp_flags; /* that were told of */
	__u8 pad[3];
};
KD_ASSERT_SIZE(struct kd_ct, 80);

enum kd_begun_use {
	KD_BEGUN_FREE = 0,
	KD_BEGUN_WRITTEN = 1, /* claimed: about to be held, or to be free again */
	KD_BEGUN_HELD = 2,
	KD_BEGUN_ANSWERED = 3, /* and one answer has come */
	KD_BEGUN_LEAVING = 4, /* about to be in kd_conntrack instead */
};

/* What becomes of a row of kd_begun at once, or not at all. */
union kd_begun_state {
	struct {
		__u32 turn; /* another one with each change */
		union {
			__u16 bytes; /* of the first packet, counted by programs that tell of packets */
			__be16 port; /* while it is claimed: the flow's, by which others know whether it is in their way */
		};
		__u8 use; /* enum kd_begun_use */
		__u8 told; /* 1: an event was due */
	};
	__u64 whole;
};

/*
 * A flow of datagrams to the world of which one has left, under its own port, and one may have come: all that its
 * entries would say, in a cache line.
 */
struct kd_begun {
	__u64 state; /* union kd_begun_state */
	struct kd_addr remote;
	struct kd_addr leaves_as;
	struct kd_addr pod;
	__be16 remote_port;
	__be16 port;
	__u32 since; /* seconds of CLOCK_MONOTONIC: when it became what it is */
};
KD_ASSERT_SIZE(struct kd_begun, 64);

/* Two flows that have nothing in common but their place. Value of kd_begun. */
struct kd_begun_pair {
	struct kd_begun first;
	struct kd_begun second;
};
KD_ASSERT_SIZE(struct kd_begun_pair, 128);

/* A flow that was silent for long: its halves and when their last packets came, as user space has seen them. */
struct kd_silent {
	struct kd_tuple original; /* no protocol: this half is lost */
	struct kd_tuple reply;
	__u32 original_seen;
	__u32 reply_seen;
};
KD_ASSERT_SIZE(struct kd_silent, 88);

/* Where flows and clients are while they move to other tables. Value of kd_moving. */
enum kd_move {
	KD_MOVE_OLD = 0, /* in the old tables */
	KD_MOVE_BOTH = 1, /* in the old ones; what is written there is written to the new ones as well */
	KD_MOVE_TAKING = 2, /* in the new ones, which take what they lack from the old; nobody writes to these */
	KD_MOVE_TAKEN = 3, /* in the new ones, which lack nothing */
	KD_MOVE_NEW = 4, /* the same, and nobody looks into the old ones any more */
	KD_MOVE_OVER = 5, /* the same, and they are who is found under the old ones' names */
};

/* A client of a service with session affinity. Key of kd_affinity. */
struct kd_affinity_key {
	struct kd_addr client; /* its address, or the cookie of its network namespace in the first 8 bytes */
	__u32 service;
	__u8 netns; /* 1: it is a cookie */
	__u8 pad[3];
};
KD_ASSERT_SIZE(struct kd_affinity_key, 24);

struct kd_affinity {
	__u32 backend; /* full id */
	__u32 last_seen; /* seconds of CLOCK_MONOTONIC when it last began a flow */
};
KD_ASSERT_SIZE(struct kd_affinity, 8);

/* Sources that a service lets in. Key of kd_sources. */
struct kd_source_key {
	__u32 prefixlen; /* 32 for the service, then those of the address: an IPv4 /8 has 32 + 96 + 8 */
	__u32 service;
	struct kd_addr addr;
};
KD_ASSERT_SIZE(struct kd_source_key, 24);

/* Identities that mean the same everywhere; those of pods are 24 bits as well. */
enum kd_identity {
	KD_IDENTITY_UNKNOWN = 0,
	KD_IDENTITY_HOST = 1, /* the node itself */
	KD_IDENTITY_WORLD = 2, /* nobody of the cluster */
	KD_IDENTITY_WORLD_IPV4 = 9, /* the same, as policies tell the families apart */
	KD_IDENTITY_WORLD_IPV6 = 10,
};

/* A pod of this node: where packets to its address are delivered. Keyed by kd_addr in kd_endpoints. */
struct kd_endpoint {
	__u32 ifindex; /* host side of the pod's veth */
	__u32 identity;
	__u8 pod_mac[6];
	__u8 host_mac[6];
	__u32 policy; /* number of its policy, see kd_policies; 0: none is known, and nothing allowed */
};
KD_ASSERT_SIZE(struct kd_endpoint, 24);

/* Pods of another node, by network. Key of kd_peers. */
struct kd_peer_key {
	__u32 prefixlen; /* of the address: an IPv4 /24 has 96 + 24 */
	struct kd_addr addr;
};
KD_ASSERT_SIZE(struct kd_peer_key, 20);

struct kd_peer {
	struct kd_addr node; /* where its end of the tunnel is */
};
KD_ASSERT_SIZE(struct kd_peer, 16);

/* Who is behind an address. Value of kd_ipcache and kd_networks. */
struct kd_party {
	__u32 number; /* what policies know it by: means something on this node only */
	__u32 identity; /* that of its labels, the same in all the cluster */
};
KD_ASSERT_SIZE(struct kd_party, 8);

/* Which way a connection is opened, as seen from the pod whose policy is asked. */
enum kd_toward {
	KD_INGRESS = 0,
	KD_EGRESS = 1,
};

#define KD_LENGTHS_TABLE 17 /* bits of lengths: of a port, none to 16 count */
#define KD_LENGTHS_TABLES ((1 << (32 - KD_LENGTHS_TABLE)) - 1)

/*
 * One direction of a policy, number 2 * policy + enum kd_toward. Value of kd_policies. Written word by word: `lengths`
 * and `named` have the low bits of the table that they are of, above.
 */
struct kd_policy {
	__u32 table; /* of kd_rules; 0: none, and nothing is allowed */
	__u32 revision; /* what is allowed by another one is asked for again; never 0 */
	__u32 lengths; /* bit n: a key of the table counts n bits of the port */
	__u32 named; /* likewise: no key of number 0 counts n bits */
	__u32 flags; /* enum kd_policy_flags */
};
KD_ASSERT_SIZE(struct kd_policy, 20);

enum kd_policy_flags {
	KD_POLICY_AUDIT = 1, /* what is denied is counted as such, and passes */
	KD_POLICY_OPEN = 2, /* nothing is ever denied */
	KD_POLICY_ANSWER = 4, /* a pod of this node whose packet it denies is told */
	KD_POLICY_NAMES = 8, /* some of its rules ask for names */
};

/* Key of kd_identities. */
struct kd_identity_key {
	__u32 identity;
	__u32 network; /* the number of the one that its address is in, of those that policies tell apart; 0: none */
};
KD_ASSERT_SIZE(struct kd_identity_key, 8);

/* Key of kd_rules. */
struct kd_rule_key {
	__u32 table;
	__u32 number; /* of a kd_party; 0: everybody */
	__be16 port; /* its leading bits, or of ICMP the type's; the others are 0 */
	__u8 protocol; /* 0: any */
	__u8 bits; /* how many of the port's */
};
KD_ASSERT_SIZE(struct kd_rule_key, 12);

#define KD_NAMES 0x80000000 /* of a rule's l7: the rest is the number of a kd_dns_set, which is asked of each question */

/* Value of kd_rules. Of the two that a packet finds, for its peer and for everybody, the greater precedence wins. */
struct kd_rule {
	__u32 precedence;
	__u32 counter; /* index into kd_rule_counts */
	__u32 deny; /* 1: it does not allow */
	__u32 l7; /* number of what requests have to be, which is asked at sockets, or KD_NAMES; 0: anything */
};
KD_ASSERT_SIZE(struct kd_rule, 16);

/* What a number stands for. Key of kd_names. */
enum kd_named {
	KD_NAMED_PARTY = 0, /* number of a kd_party: its labels */
	KD_NAMED_COUNTER = 1, /* counter of a rule: the rules of policies that it counts for */
	KD_NAMED_ANSWER = 2, /* any number: until when an address has a DNS name, for the process after this one */
};

struct kd_name_key {
	__u32 kind; /* enum kd_named */
	__u32 number;
};
KD_ASSERT_SIZE(struct kd_name_key, 8);

struct kd_name {
	char text[496]; /* UTF-8, ends with a NUL */
};
KD_ASSERT_SIZE(struct kd_name, 496);

#define KD_TALK_SECOND 1 /* began it: the end that comes second in the key. */
#define KD_TALK_REQUESTS 48 /* of one end or both, policies have more to say of what is in the packets */
#define KD_TALK_REQUESTS_OF(second) (16 << (second))
#define KD_TALK_NAMES_OF(second) (64 << (second)) /* and it is which names may be asked for */
#define KD_TALK_SAYS_OF(second) (80u << (second)) /* both */

/*
 * Packets between two ends that a policy has let begin, whichever way they go. Value of kd_talks, whose key has the
 * lower end as its source. Only pods of this node ask: the place of another end stays 0.
 */
struct kd_talk {
	__u32 revision[2]; /* by which each end's policy has allowed it; 0: not yet */
	__u32 counter[2]; /* of the rule that did */
	__u32 last_seen; /* seconds of CLOCK_MONOTONIC */
	__u32 flags; /* KD_TALK_SECOND, KD_TALK_REQUESTS, and enum kd_ct_flags FIN and RST */
};
KD_ASSERT_SIZE(struct kd_talk, 24);

/* Socket storage: the translation that a socket last went through. */
struct kd_sock {
	struct kd_addr frontend_addr;
	struct kd_addr backend_addr;
	__u32 backend; /* full id */
	__u32 service; /* whose frontend was dialled */
	__be16 frontend_port;
	__be16 backend_port;
};
KD_ASSERT_SIZE(struct kd_sock, 44);

/* Reply translation of unconnected UDP sockets that talk to several services. Key of kd_sock_reply. */
struct kd_sock_reply_key {
	__u64 cookie; /* socket cookie */
	struct kd_addr backend_addr;
	__be16 backend_port;
	__u8 pad[6];
};
KD_ASSERT_SIZE(struct kd_sock_reply_key, 32);

struct kd_sock_reply {
	struct kd_addr frontend_addr;
	__be16 frontend_port;
	__u8 pad[2];
};
KD_ASSERT_SIZE(struct kd_sock_reply, 20);

/* Value of kd_trace: a step of a program, see kd/trace.h. */
struct kd_traced {
	struct kd_tuple tuple;
	__u32 step; /* enum kd_step */
	__s32 value;
	__u32 more;
};
KD_ASSERT_SIZE(struct kd_traced, 52);

/* A remote end towards which free ports had to be looked for one by one. Value of kd_exhausted. */
struct kd_exhausted {
	__u64 until; /* nanoseconds of CLOCK_MONOTONIC: all were taken, and looking again is not worth it before */
	__u64 packets; /* that were dropped for want of one */
	__u32 next; /* where the search goes on, see kd/ports.h */
	__u32 in_vain; /* how many were looked at since the last free one */
};
KD_ASSERT_SIZE(struct kd_exhausted, 24);

/* The addresses under which pods leave through a device; all zero: none of this family. Value of kd_masq_devices. */
struct kd_masq_device {
	struct kd_addr ipv4;
	struct kd_addr ipv6;
};
KD_ASSERT_SIZE(struct kd_masq_device, 32);

enum kd_masq_side {
	KD_MASQ_DESTINATION = 0, /* it knows pods by their own addresses */
	KD_MASQ_SOURCE = 1, /* a pod, or several */
	KD_MASQ_PORT = 2, /* a protocol's, left to netfilter: the address is 0, protocol and port, 64, 32 and 32 bits */
};

/* Key of kd_masq_rules. */
struct kd_masq_key {
	__u32 prefixlen; /* 32 for the side and the family, then those of the address: an IPv4 /8 has 32 + 96 + 8 */
	__u16 side; /* enum kd_masq_side */
	__u16 ipv6; /* whether it is none of IPv4: or ::/0 would be all of that too, which is mapped */
	struct kd_addr addr;
};
KD_ASSERT_SIZE(struct kd_masq_key, 24);

struct kd_masq_rule {
	struct kd_addr leaves_as; /* of a source; all zero: as itself */
	__u32 until; /* not 0: it was taken back, and till then connections that it had begun go on as they are */
};
KD_ASSERT_SIZE(struct kd_masq_rule, 20);

/* Value of kd_counters, per CPU, see kd/maps/counters.h. */
struct kd_counter {
	__u64 packets;
	__u64 bytes;
};
KD_ASSERT_SIZE(struct kd_counter, 16);

#endif /* KD_TYPES_H */
