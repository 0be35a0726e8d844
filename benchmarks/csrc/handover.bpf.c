// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * The least that a program can do for two sockets to hand each other what they send: it asks nothing. Of one connection
 * at a time, the last one to a port.
 */
#include <linux/bpf.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include <kd/config.h>

char _license[] SEC("license") = "Dual BSD/GPL";

KD_CONFIG(__u32, port, "the server's") = 0;
KD_CONFIG(bool, once, "what the program has said of the first message holds for all") = false;

enum end { CLIENT, SERVER, ENDS };

struct {
	__uint(type, BPF_MAP_TYPE_SOCKHASH);
	__uint(max_entries, ENDS);
	__type(key, __u32);
	__type(value, __u64);
} sockets SEC(".maps");

SEC("sockops")
int connects(struct bpf_sock_ops *ops)
{
	__u32 end = ops->op == BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB ? SERVER : CLIENT;

	if (end == CLIENT && ops->op != BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB)
		return 1;
	if ((end == SERVER ? ops->local_port : bpf_ntohl(ops->remote_port)) == port)
		bpf_sock_hash_update(ops, &sockets, &end, BPF_ANY);
	return 1;
}

SEC("sk_msg")
int sends(struct sk_msg_md *msg)
{
	__u32 peer = msg->local_port == port ? CLIENT : SERVER;

	if (once)
		bpf_msg_apply_bytes(msg, 1 << 30);
	return bpf_msg_redirect_hash(msg, &sockets, &peer, BPF_F_INGRESS);
}

/* Without it FIONREAD would say 0, and pollers might sleep on. */
SEC("sk_skb/verdict")
int receives(__attribute__((unused)) struct __sk_buff *skb)
{
	return SK_PASS;
}
