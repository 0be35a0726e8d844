// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Reads past the packet without looking where it ends: the verifier must refuse it. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

char _license[] SEC("license") = "Dual BSD/GPL";

SEC("tc")
int careless(struct __sk_buff *skb)
{
	char *data = (void *)(long)skb->data;

	return data[100];
}
