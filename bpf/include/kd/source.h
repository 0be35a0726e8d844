/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Whose name a flow goes on under: a client keeps its address, unless the answers would not come back here.
 *
 *  - A pod that meets itself behind a service would answer itself directly. To it the service's address is the
 *    client, whatever frontend was dialled; what it sends there comes through its device again.
 *  - A backend on another node would answer a client outside directly, from an address which that never dialled.
 *    To it this node is the client, under the address that the node's routes prefer towards the backend (Linux
 *    6.7). Clients of backends on this node are seen as they are, and so is who dials a frontend whose traffic
 *    stays local. Which port that is: kd/ports.h.
 *
 * Reads kd_endpoints and the node's routes.
 */
#ifndef KD_SOURCE_H
#define KD_SOURCE_H

#include <stdbool.h>
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <kd/addr.h>
#include <kd/config.h>
#include <kd/forward.h>
#include <kd/types.h>
#include <kd/verdict.h>
#include <kd/maps/endpoints.h>

/* Newer than the headers that this may be compiled with. */
#define KD_FIB_SKIP_NEIGH (1U << 2)
#define KD_FIB_SRC (1U << 4)
#define KD_FIB_NO_SRC_ADDR 10

/* The source becomes this node's, if the packet is going to leave it. */
KD_SUBPROGRAM int kd_source_of_node(void *ctx, __u32 ifindex, struct kd_tuple *to, bool ipv6)
{
	struct bpf_fib_lookup fib = { .family = ipv6 ? KD_AF_INET6 : KD_AF_INET, .ifindex = ifindex };
	long found;

	if (bpf_map_lookup_elem(&kd_endpoints, &to->dst))
		return KD_CONTINUE;
	if (ipv6)
		__builtin_memcpy(fib.ipv6_dst, &to->dst, sizeof(to->dst));
	else
		fib.ipv4_dst = to->dst.w[3];
	found = bpf_fib_lookup(ctx, &fib, sizeof(fib), KD_FIB_SKIP_NEIGH | KD_FIB_SRC);
	if (found < 0 || found == KD_FIB_NO_SRC_ADDR)
		return KD_DROP_NO_SOURCE;
	/* Else it stays here, or goes nowhere, as the stack will find. Too big is this packet, not those that follow. */
	if (found != BPF_FIB_LKUP_RET_SUCCESS && found != BPF_FIB_LKUP_RET_FRAG_NEEDED)
		return KD_CONTINUE;
	if (ipv6)
		__builtin_memcpy(&to->src, fib.ipv6_src, sizeof(to->src));
	else
		to->src.w[3] = fib.ipv4_src;
	return KD_CONTINUE;
}

/* `to` has its destination already. */
static __always_inline int kd_source(void *ctx, __u32 ifindex, const struct kd_pkt *pkt, bool outside,
				     struct kd_tuple *to)
{
	if (kd_addr_equal(&to->dst, &to->src)) {
		to->src = pkt->tuple.dst;
		return KD_CONTINUE;
	}
	return outside ? kd_source_of_node(ctx, ifindex, to, pkt->ipv6) : KD_CONTINUE;
}

#endif /* KD_SOURCE_H */
