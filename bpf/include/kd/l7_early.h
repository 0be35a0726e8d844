/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Bytes that come with a handshake: in a SYN (TCP Fast Open), or in the ACK that ends it.
 *
 * The guard sees them before there is a socket. The one that is made for them is put among those that programs read
 * before it gets them, see kd/l7_peer.h. Where that will not be possible they are not let in: over MPTCP, whose sockets
 * cannot be read, and while there may be no room. The client sends them once more, and then there is a socket.
 *
 * Reads kd_l7_shut, and what kd/l7_peer.h does.
 */
#ifndef KD_L7_EARLY_H
#define KD_L7_EARLY_H

#include <stdbool.h>
#include <linux/bpf.h>
#include <linux/tcp.h>
#include <bpf/bpf_helpers.h>
#include <kd/l7_close.h>
#include <kd/l7_peer.h>
#include <kd/l7_reason.h>
#include <kd/types.h>

#define KD_TCP_OPTION_END 0
#define KD_TCP_OPTION_NONE 1
#define KD_TCP_OPTION_MPTCP 30
#define KD_TCP_MOST_OPTIONS 40 /* bytes of them */

/* Whether a TCP header has an option of MPTCP, without which its kernel takes a connection for one of TCP. */
KD_SUBPROGRAM int kd_l7_is_mptcp(struct __sk_buff *skb, __u32 at, __u32 end)
{
	__u8 option[2]; /* kind, length */

	for (__u32 i = 0; i < KD_TCP_MOST_OPTIONS && at < end; i++) {
		if (bpf_skb_load_bytes(skb, at, option, sizeof(option)) || option[0] == KD_TCP_OPTION_MPTCP)
			return true;
		if (option[0] != KD_TCP_OPTION_NONE && (option[0] == KD_TCP_OPTION_END || option[1] < sizeof(option)))
			return false;
		at += option[0] == KD_TCP_OPTION_NONE ? 1 : option[1];
	}
	return false;
}

/* A socket that listens gets a packet: whether it may. */
static __always_inline bool kd_l7_may_begin(struct __sk_buff *skb)
{
	const __u64 *shut = kd_l7_shut_count();
	struct kd_l7_segment segment = {};
	struct kd_tuple way = {};

	if (!kd_l7_segment(skb, 0, &segment))
		return false;
	if (skb->len <= segment.begin ||
	    (shut && !*shut && !kd_l7_is_mptcp(skb, segment.offset + sizeof(struct tcphdr), segment.begin)))
		return true;
	way.src = segment.way.dst;
	way.sport = segment.way.dport;
	way.dst = segment.way.src;
	way.dport = segment.way.sport;
	if (!kd_l7_asked(&way, false))
		return true;
	kd_l7_count(KD_HTTP_NOT_READ);
	return false;
}

#endif /* KD_L7_EARLY_H */
