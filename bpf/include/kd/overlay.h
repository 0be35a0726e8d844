/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The way to pods of other nodes: through a tunnel device, one for all nodes, that is told with every packet where
 * it goes and whose it is. The 24 bits of the network identifier are the identity of the source.
 *
 * Reads kd_peers, kd_peer_nodes and kd_endpoints. The same for VXLAN and Geneve: both devices take a tunnel key.
 * What arrives is believed only if one of the cluster's nodes sent it, as far as the network below lets nobody
 * write another's address.
 */
#ifndef KD_OVERLAY_H
#define KD_OVERLAY_H

#include <stdbool.h>
#include <linux/bpf.h>
#include <linux/if_packet.h>
#include <linux/in.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include <kd/addr.h>
#include <kd/config.h>
#include <kd/forward.h>
#include <kd/packet.h>
#include <kd/types.h>
#include <kd/verdict.h>
#include <kd/maps/endpoints.h>
#include <kd/maps/peers.h>

KD_CONFIG(bool, tunnel_ipv6, "nodes reach each other by IPv6") = false;

KD_CONFIG(__u16, tunnel_port, "UDP port of the tunnel on every node; 0: there is none") = 0;

#define KD_TUNNEL_TTL 64

/* The packets between the tunnel's two ends are no service's, and no flow: what is in them is seen at its device. */
static __always_inline bool kd_is_tunnel(const struct kd_pkt *pkt, const struct kd_addr *other)
{
	return tunnel_port && pkt->tuple.dport == bpf_htons(tunnel_port) && pkt->tuple.protocol == IPPROTO_UDP &&
	       bpf_map_lookup_elem(&kd_peer_nodes, other);
}

/* Whether a packet is for this node or one of its peers. */
KD_SUBPROGRAM bool kd_is_for_node(struct __sk_buff *skb, const struct kd_pkt *pkt)
{
	struct bpf_fib_lookup fib = {};

	return bpf_map_lookup_elem(&kd_peer_nodes, &pkt->tuple.dst) ||
	       kd_route(skb, skb->ifindex, pkt, &fib) == BPF_FIB_LKUP_RET_NOT_FWDED;
}

/*
 * A node's end of the tunnel is for nodes: who sends there under a node's name writes identities. So nothing that came
 * from elsewhere is let through to one, whatever it was dialled by. Nor what may be UDP behind more extension headers
 * than anybody needs, where tunnels are IPv6.
 */
static __always_inline bool kd_meddles(struct __sk_buff *skb, const struct kd_pkt *pkt)
{
	__u8 protocol = pkt->tuple.protocol;
	bool hidden = tunnel_ipv6 && pkt->ipv6 && (!protocol || protocol == IPPROTO_ROUTING ||
						   protocol == IPPROTO_FRAGMENT || protocol == IPPROTO_DSTOPTS);
	bool dialled = pkt->tuple.dport == bpf_htons(tunnel_port) && protocol == IPPROTO_UDP;

	return tunnel_port && (dialled || hidden) && kd_is_for_node(skb, pkt);
}

/* Tell the tunnel device where this packet goes. */
static __always_inline int kd_encapsulate(struct __sk_buff *skb, const struct kd_pkt *pkt)
{
	struct kd_peer *peer = kd_peer_of(&pkt->tuple.dst);
	struct bpf_tunnel_key tunnel = { .tunnel_ttl = KD_TUNNEL_TTL };
	__u64 flags = BPF_F_ZERO_CSUM_TX; /* IPv4 only: the inner packet has checksums of its own */

	if (!peer)
		return KD_DROP_NO_PEER;
	tunnel.tunnel_id = kd_identity_of(skb, &pkt->tuple.src);
	if (tunnel_ipv6) {
		__builtin_memcpy(tunnel.remote_ipv6, &peer->node, sizeof(peer->node));
		flags = BPF_F_TUNINFO_IPV6;
	} else {
		tunnel.remote_ipv4 = bpf_ntohl(peer->node.w[3]);
	}
	if (bpf_skb_set_tunnel_key(skb, &tunnel, sizeof(tunnel), flags))
		return KD_DROP_REWRITE;
	return KD_TO_PEER;
}

/*
 * Who sent this packet through the tunnel? It is addressed to the sender's own device, as there are no neighbours
 * in a tunnel, but it is for this node.
 */
static __always_inline int kd_decapsulated(struct __sk_buff *skb)
{
	__u64 flags = tunnel_ipv6 ? BPF_F_TUNINFO_IPV6 : 0;
	struct bpf_tunnel_key tunnel = {};
	struct kd_addr node = {};

	if (bpf_skb_get_tunnel_key(skb, &tunnel, sizeof(tunnel), flags))
		return KD_DROP_UNKNOWN_PEER;
	if (tunnel_ipv6)
		__builtin_memcpy(&node, tunnel.remote_ipv6, sizeof(node));
	else
		kd_addr_set_v4(&node, bpf_htonl(tunnel.remote_ipv4));
	if (!bpf_map_lookup_elem(&kd_peer_nodes, &node))
		return KD_DROP_UNKNOWN_PEER;
	skb->cb[0] = tunnel.tunnel_id;
	return bpf_skb_change_type(skb, PACKET_HOST) ? KD_DROP_REWRITE : KD_CONTINUE;
}

#endif /* KD_OVERLAY_H */
