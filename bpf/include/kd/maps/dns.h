/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What pods ask name servers, and what they are answered: see kd/dns.h. */
#ifndef KD_MAPS_DNS_H
#define KD_MAPS_DNS_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <kd/types.h>

#define KD_DNS_MAX 4096 /* bytes of a message; a longer one is not told */

enum kd_dns_flags {
	KD_DNS_SENT = 1, /* by a pod of this node, under its own address */
	KD_DNS_ANSWERS = 2, /* to a pod of this node, which has begun the talk */
};

/* How a record begins; the message follows. */
struct kd_dns_head {
	struct kd_tuple way; /* from end to end: never a service's address */
	__u64 time; /* nanoseconds of CLOCK_MONOTONIC */
	__u32 flags; /* enum kd_dns_flags */
	__u32 length; /* of the message */
};
KD_ASSERT_SIZE(struct kd_dns_head, 56);

struct kd_dns_record {
	struct kd_dns_head head;
	__u8 message[KD_DNS_MAX];
};

/* What a CPU has told. Value of kd_dns_told. */
struct kd_dns_told {
	__u64 told;
	__u64 full; /* messages for which there was no room in kd_dns */
	__u64 skipped; /* those in pieces, or too long */
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

/* One element per CPU: what it has told, and could not tell. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct kd_dns_told);
} kd_dns_told SEC(".maps");

#endif /* KD_MAPS_DNS_H */
