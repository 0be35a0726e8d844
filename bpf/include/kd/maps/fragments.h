/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Datagrams that come in fragments, of which the first alone has ports. */
#ifndef KD_MAPS_FRAGMENTS_H
#define KD_MAPS_FRAGMENTS_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <kd/types.h>

/*
 * A tuple with the datagram's number where the ports are -> its ports. Written by a first fragment that is
 * translated; full: the datagram that was not heard of for longest is forgotten.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 8192);
	__type(key, struct kd_tuple);
	__type(value, __be32);
} kd_fragments SEC(".maps");

#endif /* KD_MAPS_FRAGMENTS_H */
