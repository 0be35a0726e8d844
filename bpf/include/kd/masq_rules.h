/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Who knows pods by their own addresses: destinations that have a rule, and whoever dials a pod directly. To others a
 * pod is the node (kd/masquerade.h), so flows that come in from there are noted, for their answers to be known.
 *
 * Reads kd_masq_devices, kd_masq_rules, kd_masq_empty and kd_endpoints; writes kd_conntrack.
 */
#ifndef KD_MASQ_RULES_H
#define KD_MASQ_RULES_H

#include <stdbool.h>
#include <linux/bpf.h>
#include <linux/in.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include <kd/addr.h>
#include <kd/begun.h>
#include <kd/clock.h>
#include <kd/config.h>
#include <kd/conntrack.h>
#include <kd/packet.h>
#include <kd/ports.h>
#include <kd/types.h>
#include <kd/verdict.h>
#include <kd/maps/conntrack.h>
#include <kd/maps/endpoints.h>
#include <kd/maps/masquerade.h>

/* In tc_index: from_pod has done already what to_uplink would do. Whatever a pod leaves there is wiped. */
#define KD_MASQUERADED 0x6b64

/* Most nodes have rules about destinations alone. */
static __always_inline bool kd_masq_is_empty(enum kd_masq_side side)
{
	__u32 first = 0;
	const __u32 *empty = bpf_map_lookup_elem(&kd_masq_empty, &first);

	return empty && *empty & 1U << side;
}

static __always_inline struct kd_masq_rule *kd_masq_rule(enum kd_masq_side side, const struct kd_addr *addr)
{
	struct kd_masq_key key = {
		.prefixlen = 8 * (sizeof(key) - sizeof(key.prefixlen)),
		.side = side,
		.ipv6 = !kd_is_v4(addr),
		.addr = *addr,
	};

	return kd_masq_is_empty(side) ? NULL : bpf_map_lookup_elem(&kd_masq_rules, &key);
}

/* A rule that has not been taken back. */
static __always_inline struct kd_masq_rule *kd_masq_rule_now(enum kd_masq_side side, const struct kd_addr *addr)
{
	struct kd_masq_rule *rule = kd_masq_rule(side, addr);

	return rule && !rule->until ? rule : NULL;
}

static __always_inline bool kd_masq_taken_back(enum kd_masq_side side, const struct kd_addr *addr)
{
	struct kd_masq_rule *rule = kd_masq_rule(side, addr);

	return rule && (__s32)(rule->until - kd_now()) > 0;
}

/* Whether a connection that nobody has noted may have begun when a rule left it as it was. */
KD_SUBPROGRAM bool kd_masq_stays(const struct kd_pkt *pkt)
{
	return pkt->tuple.protocol == IPPROTO_TCP && !kd_is_syn(pkt) &&
	       (kd_masq_taken_back(KD_MASQ_DESTINATION, &pkt->tuple.dst) ||
		kd_masq_taken_back(KD_MASQ_SOURCE, &pkt->tuple.src));
}

/* Whether netfilter is to translate flows to this port, with helpers that we lack. */
static __always_inline bool kd_masq_left_alone(const struct kd_tuple *tuple)
{
	struct kd_addr port = { { 0, 0, bpf_htonl(tuple->protocol), bpf_htonl(bpf_ntohs(tuple->dport)) } };

	return kd_masq_rule(KD_MASQ_PORT, &port);
}

/*
 * Whether the world dials a pod by the pod's own address, where pods that dial the world have another. Or goes on to talk
 * on a connection that is older than what is known: who speaks (PSH) to that address knows the pod by it.
 */
KD_SUBPROGRAM bool kd_masq_is_dialled(struct __sk_buff *skb, const struct kd_pkt *pkt)
{
	__u32 ifindex = skb->ifindex;

	return (pkt->tuple.protocol != IPPROTO_TCP || kd_is_syn(pkt) || pkt->tcp_flags & KD_TCP_PSH) &&
	       bpf_map_lookup_elem(&kd_masq_devices, &ifindex) &&
	       bpf_map_lookup_elem(&kd_endpoints, &pkt->tuple.dst) &&
	       !kd_masq_rule_now(KD_MASQ_DESTINATION, &pkt->tuple.src);
}

/* A function of its own, whose stack is free again when the other half is made. */
KD_SUBPROGRAM int kd_masq_claim(const struct kd_tuple *tuple, const struct kd_ct *original)
{
	return kd_port_claim(NULL, tuple, original, true);
}

/* A flow both of whose halves are as they are. */
KD_FUNCTION int kd_masq_keep(const struct kd_pkt *pkt)
{
	struct kd_ct original = { .packets = 1, .flags = KD_CT_SOURCE, .service = KD_NO_SERVICE };
	struct kd_tuple tuple;

	if (!pkt)
		return KD_PASS;
	tuple = pkt->tuple;
	original.to = tuple;
	original.last_seen = kd_now();
	if (events)
		kd_ct_note_first(&original);
	if (kd_masq_claim(&tuple, &original) == KD_CONTINUE && kd_ct_put(&tuple, &original, BPF_ANY))
		kd_port_release(&original);
	return KD_PASS;
}

static __always_inline int kd_masq_note(struct __sk_buff *skb, const struct kd_pkt *pkt)
{
	return kd_masq_is_dialled(skb, pkt) ? kd_masq_keep(pkt) : KD_PASS;
}

#endif /* KD_MASQ_RULES_H */
