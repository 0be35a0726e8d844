/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * What pods of this node ask name servers, and what they are answered, copied to user space as it passes
 * (k8sdatapath/datapath/dns_watcher.py). It is what policies have let pass, over UDP, from or to port 53 as the pod or
 * the server knows it. Nothing is held up: a message that finds no room is counted, and goes on.
 *
 * Writes kd_dns and kd_dns_told.
 */
#ifndef KD_DNS_H
#define KD_DNS_H

#include <stdbool.h>
#include <linux/bpf.h>
#include <linux/in.h>
#include <linux/udp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include <kd/config.h>
#include <kd/packet.h>
#include <kd/talks.h>
#include <kd/trace.h>
#include <kd/types.h>
#include <kd/maps/dns.h>

KD_CONFIG(bool, dns, "copy what pods ask name servers, and what they are answered, to user space") = false;

#define KD_DNS_PORT bpf_htons(53)

static const volatile __u32 kd_dns_first; /* a key that takes no room on the stack */

/* enum kd_dns_flags of a packet that policies let pass; 0: it is nothing of the kind. `to` is what it becomes. */
static __always_inline __u32 kd_dns_is(const struct kd_pkt *pkt, const struct kd_tuple *to,
				       const struct kd_asking *ask)
{
	__u32 flags = 0;

	if (ask->way.protocol != IPPROTO_UDP)
		return 0;
	if (ask->asks & KD_ASK_SENDER && (pkt->tuple.dport == KD_DNS_PORT || ask->way.dport == KD_DNS_PORT))
		flags |= KD_DNS_SENT;
	if (ask->asks & KD_ASK_RECEIVER && ask->receiver.policy != KD_NO_POLICY && !ask->by_sender &&
	    (to->sport == KD_DNS_PORT || ask->way.sport == KD_DNS_PORT))
		flags |= KD_DNS_ANSWERS;
	return flags;
}

/* Copy its message. */
KD_SUBPROGRAM int kd_dns_tell(struct __sk_buff *skb, const struct kd_pkt *pkt, const struct kd_asking *ask,
			      __u32 flags)
{
	struct kd_dns_record *record = bpf_map_lookup_elem(&kd_dns_room, (const void *)&kd_dns_first);
	struct kd_dns_told *told = bpf_map_lookup_elem(&kd_dns_told, (const void *)&kd_dns_first);
	__u32 begin = pkt->l4_off + sizeof(struct udphdr);
	__u32 length = pkt->end - begin;

	if (!record || !told || KD_EXPLAINING)
		return 0;
	if (pkt->fragment || skb->gso_size || length - 1 >= KD_DNS_MAX) {
		told->skipped++;
		return 0;
	}
	asm volatile("" : "+r"(length)); /* the verifier is to see this very number checked */
	if (length - 1 >= KD_DNS_MAX || bpf_skb_load_bytes(skb, begin, record->message, length))
		return 0;
	record->head.way = ask->way;
	record->head.time = bpf_ktime_get_ns();
	record->head.flags = flags;
	record->head.length = length;
	if (bpf_ringbuf_output(&kd_dns, record, sizeof(record->head) + length, 0))
		told->full++;
	else
		told->told++;
	return 0;
}

#endif /* KD_DNS_H */
