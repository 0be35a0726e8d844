// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Both ends of a tunnel without a device: what a packet is given for it, and whether what came with one is believed. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <kd/overlay.h>
#include <kd/packet.h>
#include <kd/verdict.h>

char _license[] SEC("license") = "Dual BSD/GPL";

struct key {
	__u32 identity;
	struct kd_addr node;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct key);
} key SEC(".maps");

#define FLAGS (tunnel_ipv6 ? BPF_F_TUNINFO_IPV6 : 0)

/* The key that our program writes. Read as the other end would, the destination is where it was received. */
SEC("tc")
int sent(struct __sk_buff *skb)
{
	struct bpf_tunnel_key tunnel = {};
	struct key found = {};
	struct kd_pkt pkt = {};
	__u32 zero = 0;
	int result = kd_parse(skb, &pkt);

	if (result == KD_CONTINUE)
		result = kd_encapsulate(skb, &pkt);
	if (result != KD_TO_PEER || bpf_skb_get_tunnel_key(skb, &tunnel, sizeof(tunnel), FLAGS))
		return -kd_reason(result);
	found.identity = tunnel.tunnel_id;
	if (tunnel_ipv6)
		__builtin_memcpy(&found.node, tunnel.local_ipv6, sizeof(found.node));
	else
		kd_addr_set_v4(&found.node, bpf_htonl(tunnel.local_ipv4));
	bpf_map_update_elem(&key, &zero, &found, BPF_ANY);
	return 0;
}

/* A packet with a key that says which node has sent it. */
SEC("tc")
int received(struct __sk_buff *skb)
{
	struct bpf_tunnel_key tunnel = { .tunnel_ttl = KD_TUNNEL_TTL };
	__u32 zero = 0;
	struct key *given = bpf_map_lookup_elem(&key, &zero);

	if (!given)
		return 1;
	tunnel.tunnel_id = given->identity;
	if (tunnel_ipv6)
		__builtin_memcpy(tunnel.local_ipv6, &given->node, sizeof(given->node));
	else
		tunnel.local_ipv4 = bpf_ntohl(given->node.w[3]);
	if (bpf_skb_set_tunnel_key(skb, &tunnel, sizeof(tunnel), FLAGS))
		return 2;
	return -kd_reason(kd_decapsulated(skb));
}
