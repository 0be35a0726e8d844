// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * The end of the way: counts the UDP packets that arrive for one port, and drops all.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/ip.h>
#include <linux/udp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include <kd/config.h>

char _license[] SEC("license") = "Dual BSD/GPL";

KD_CONFIG(__u16, port, "the port that is counted") = 0;

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} arrived SEC(".maps");

SEC("xdp")
int sink(struct xdp_md *ctx)
{
	struct udphdr *udp = (void *)(long)ctx->data + ETH_HLEN + sizeof(struct iphdr);
	__u32 zero = 0;
	__u64 *count = bpf_map_lookup_elem(&arrived, &zero);

	if (count && (void *)(udp + 1) <= (void *)(long)ctx->data_end && udp->dest == bpf_htons(port))
		(*count)++;
	return XDP_DROP;
}
