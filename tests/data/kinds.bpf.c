// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* One small program of every kind, and a few maps to share, for the tests of objects, programs and links. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <kd/config.h>

char _license[] SEC("license") = "Dual BSD/GPL";

struct pair {
	__u64 first;
	__u32 second;
	__u32 pad;
};

KD_CONFIG(__u32, verdict, "what the tc and XDP programs answer") = 0;
KD_CONFIG(bool, count, "whether they count") = true;

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 4);
	__type(key, __u32);
	__type(value, __u64);
} counts SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16);
	__type(key, __u32);
	__type(value, struct pair);
} pairs SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_SOCKHASH);
	__uint(max_entries, 16);
	__type(key, __u32);
	__type(value, __u64);
} sockets SEC(".maps");

static __always_inline void count_at(__u32 index)
{
	__u64 *value = bpf_map_lookup_elem(&counts, &index);

	if (value && count)
		__sync_fetch_and_add(value, 1);
}

SEC("tc")
int first(struct __sk_buff *skb)
{
	skb->mark = 7;
	count_at(0);
	return verdict ? (int)verdict : -1;
}

SEC("tc")
int second(struct __sk_buff *skb)
{
	count_at(1);
	return verdict ? (int)verdict : -1;
}

SEC("xdp")
int pass(struct xdp_md *ctx)
{
	count_at(2);
	return verdict ? (int)verdict : XDP_PASS;
}

SEC("xdp.frags")
int pass_frags(struct xdp_md *ctx)
{
	count_at(2);
	return XDP_PASS;
}

SEC("sockops")
int sock_ops(struct bpf_sock_ops *ctx)
{
	count_at(3);
	return 0;
}

SEC("sk_msg")
int on_message(struct sk_msg_md *msg)
{
	return SK_PASS;
}

SEC("sk_skb/stream_verdict")
int sk_skb(struct __sk_buff *skb)
{
	return SK_PASS;
}

SEC("cgroup_skb/egress")
int cgroup_skb(struct __sk_buff *skb)
{
	count_at(3);
	return 1;
}

SEC("cgroup/connect4")
int connect4(struct bpf_sock_addr *ctx)
{
	count_at(3);
	return 1;
}

SEC("sk_lookup")
int on_lookup(struct bpf_sk_lookup *ctx)
{
	count_at(3);
	return SK_PASS;
}

struct bpf_iter_meta {
	void *seq;
} __attribute__((preserve_access_index));

struct bpf_iter__task {
	struct bpf_iter_meta *meta;
} __attribute__((preserve_access_index));

SEC("iter/task")
int each_task(struct bpf_iter__task *ctx)
{
	char dot = '.';

	bpf_seq_write(ctx->meta->seq, &dot, 1);
	return 0;
}

SEC("netfilter")
int on_packet(void *ctx)
{
	count_at(3);
	return 1; /* NF_ACCEPT */
}
