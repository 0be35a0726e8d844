// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * What reads requests, once more, word for word. It is never attached, only run on bytes that somebody asks about
 * (k8sdatapath/datapath/request_judge.py), behind an Ethernet header.
 */
#include <stdbool.h>
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <bpf/bpf_helpers.h>
#include <kd/l7_stream.h>

char _license[] SEC("license") = "Dual BSD/GPL";

/* The connection that they come over. User space says whose it is, and it is the same from run to run. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct kd_l7_conn);
} kd_l7_trial SEC(".maps");

SEC("tc")
int l7_judge(struct __sk_buff *skb)
{
	struct kd_l7_reading reading = {};
	struct kd_l7_conn *conn;
	__u32 zero = 0;

	conn = bpf_map_lookup_elem(&kd_l7_trial, &zero);
	if (!conn)
		return 0;
	if (!conn->rules && !kd_l7_take(conn)) {
		conn->reason = KD_HTTP_REVOKED;
		return 0;
	}
	if (conn->flags & KD_L7_ANY || conn->reason)
		return 0;
	reading.from = skb;
	reading.conn = conn;
	reading.end = skb->len;
	conn->at = ETH_HLEN;
	conn->begin = 0;
	conn->ahead_size = 0;
	bpf_loop(KD_L7_MAX_STEPS, kd_l7_request_skb, &reading, 0);
	conn->reason = reading.reason;
	return 0;
}
