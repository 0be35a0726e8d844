/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#ifndef KD_MAPS_HTTP2_H
#define KD_MAPS_HTTP2_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <kd/http2_types.h>

/*
 * cookie of a socket -> how its headers are compressed. Writers: programs; it goes when the socket closes. Full: the
 * connection is denied.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 16384);
	__type(key, __u64);
	__type(value, struct kd_h2);
} kd_l7_http2 SEC(".maps");

#endif /* KD_MAPS_HTTP2_H */
