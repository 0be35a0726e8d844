// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* What a program behind ours sees of a packet that came through the tunnel. */
#include <linux/bpf.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_helpers.h>

char _license[] SEC("license") = "Dual BSD/GPL";

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} seen SEC(".maps");

SEC("tc")
int see(struct __sk_buff *skb)
{
	struct bpf_tunnel_key key = {};
	__u32 zero = 0;

	if (!bpf_skb_get_tunnel_key(skb, &key, sizeof(key), 0) ||
	    !bpf_skb_get_tunnel_key(skb, &key, sizeof(key), BPF_F_TUNINFO_IPV6))
		bpf_map_update_elem(&seen, &zero, &key.tunnel_id, BPF_ANY);
	return TC_ACT_UNSPEC;
}
