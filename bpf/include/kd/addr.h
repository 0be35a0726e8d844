/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Addresses of either family in one type. IPv4 is held mapped (::ffff:a.b.c.d), so everything that looks
 * up, compares or sums addresses is written once. A sum over a mapped address and the difference of two
 * are those of the bare IPv4 addresses: the constant words cancel out.
 */
#ifndef KD_ADDR_H
#define KD_ADDR_H

#include <stdbool.h>
#include <linux/in6.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include <kd/types.h>

#define KD_AF_INET 2
#define KD_AF_INET6 10

static __always_inline void kd_addr_set_v4(struct kd_addr *addr, __be32 v4)
{
	addr->w[0] = 0;
	addr->w[1] = 0;
	addr->w[2] = bpf_htonl(0xffff);
	addr->w[3] = v4;
}

static __always_inline void kd_addr_set_v6(struct kd_addr *addr, const struct in6_addr *v6)
{
	__builtin_memcpy(addr, v6, sizeof(*addr));
}

static __always_inline bool kd_is_v4(const struct kd_addr *addr)
{
	return !(addr->w[0] | addr->w[1]) && addr->w[2] == bpf_htonl(0xffff);
}

static __always_inline bool kd_addr_equal(const struct kd_addr *a, const struct kd_addr *b)
{
	return !((a->w[0] ^ b->w[0]) | (a->w[1] ^ b->w[1]) | (a->w[2] ^ b->w[2]) | (a->w[3] ^ b->w[3]));
}

/* An address is in a network if it has the network's bits where the mask has ones. */
struct kd_network {
	struct kd_addr addr;
	struct kd_addr mask;
};

/* No address is in this one. */
#define KD_NO_NETWORK { .addr = { .w = { 0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff } } }

/* The last word tells most IPv4 addresses apart: it goes first. */
static __always_inline bool kd_addr_in(const struct kd_addr *addr, const volatile struct kd_network *network)
{
#pragma unroll
	for (int i = 3; i >= 0; i--)
		if ((addr->w[i] & network->mask.w[i]) != network->addr.w[i])
			return false;
	return true;
}

/* Both ports of a tuple, as they stand in the packet. */
static __always_inline __be32 kd_ports(const struct kd_tuple *tuple)
{
	union {
		__be16 port[2];
		__be32 both;
	} ports = { .port = { tuple->sport, tuple->dport } };

	return ports.both;
}

static __always_inline void kd_set_ports(struct kd_tuple *tuple, __be32 both)
{
	union {
		__be32 both;
		__be16 port[2];
	} ports = { .both = both };

	tuple->sport = ports.port[0];
	tuple->dport = ports.port[1];
}

#endif /* KD_ADDR_H */
