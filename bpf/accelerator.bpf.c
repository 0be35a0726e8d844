// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * Sockets of this node that hand each other what they send. The cgroup's programs pair them, those of the map of
 * sockets see what they send and receive.
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <kd/acceleration.h>

char _license[] SEC("license") = "Dual BSD/GPL";

SEC("sockops")
int accel_connect(struct bpf_sock_ops *ops)
{
	switch (ops->op) {
	case BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB:
		kd_accel_client(ops);
		break;
	case BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB:
		kd_accel_server(ops);
		break;
	case BPF_SOCK_OPS_STATE_CB:
		if (ops->args[1] == KD_STATE_CLOSE)
			kd_accel_closed(ops);
		break;
	}
	return 1;
}

SEC("sk_msg")
int accel_send(struct sk_msg_md *msg)
{
	return kd_accel_message(msg);
}

/*
 * What comes through the stack is received as ever. Without a program the kernel would have it wait in another queue
 * than what is handed over: FIONREAD says 0 then, and pollers may sleep on.
 */
SEC("sk_skb/verdict")
int accel_receive(__attribute__((unused)) struct __sk_buff *skb)
{
	return SK_PASS;
}
