/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * What pods of this node ask name servers, and what they are answered, copied to user space as it passes
 * (k8sdatapath/datapath/dns_watcher.py). It is what policies have let pass, over UDP and TCP, from or to port 53 as the
 * pod or the server knows it, and all that is held to rules about names. Of TCP bytes are told as they come, with their
 * sequence numbers. Nothing is held up: what finds no room is counted, and goes on.
 *
 * Writes kd_dns and kd_dns_told.
 */
#ifndef KD_DNS_H
#define KD_DNS_H

#include <stdbool.h>
#include <linux/bpf.h>
#include <linux/in.h>
#include <linux/tcp.h>
#include <linux/udp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include <kd/dns_port.h>
#include <kd/packet.h>
#include <kd/talks.h>
#include <kd/trace.h>
#include <kd/types.h>
#include <kd/maps/dns.h>

static const volatile __u32 kd_dns_first; /* a key that takes no room on the stack */

/* enum kd_dns_flags of a packet that policies have judged; 0: it is nothing of the kind. `to` is what it becomes. */
static __always_inline __u32 kd_dns_is(const struct kd_pkt *pkt, const struct kd_tuple *to,
				       const struct kd_asking *ask)
{
	__u32 flags = ask->names;

	if (ask->way.protocol != IPPROTO_UDP && ask->way.protocol != IPPROTO_TCP)
		return 0;
	if (flags || (ask->asks & KD_ASK_SENDER && (pkt->tuple.dport == KD_DNS_PORT || ask->way.dport == KD_DNS_PORT)))
		flags |= KD_DNS_SENT;
	if (ask->asks & KD_ASK_RECEIVER && ask->receiver.policy != KD_NO_POLICY && !ask->by_sender) {
		if (ask->receiver.names)
			flags |= KD_DNS_HELD | KD_DNS_ANSWERS;
		else if (to->sport == KD_DNS_PORT || ask->way.sport == KD_DNS_PORT)
			flags |= KD_DNS_ANSWERS;
	}
	return flags;
}

/* Where the payload of a TCP segment begins, and how long it is: more than any is, if its header is not right. */
static __always_inline __u32 kd_dns_payload(struct __sk_buff *skb, const struct kd_pkt *pkt, struct tcphdr *tcp,
					    __u32 *begin)
{
	if (bpf_skb_load_bytes(skb, pkt->l4_off, tcp, sizeof(*tcp)))
		return -1;
	*begin = pkt->l4_off + tcp->doff * 4;
	return tcp->doff * 4 < sizeof(*tcp) || *begin > pkt->end ? -1 : pkt->end - *begin;
}

struct kd_dns_telling {
	struct __sk_buff *skb;
	struct kd_dns_record *record;
	struct kd_dns_told *told;
	__u32 at;
	__u32 end;
};

static __always_inline void kd_dns_put(struct kd_dns_record *record, struct kd_dns_told *told, __u32 length)
{
	record->head.length = length;
	if (bpf_ringbuf_output(&kd_dns, record, sizeof(record->head) + length, 0))
		told->full++;
	else
		told->told++;
}

/* A part of what a segment has. */
static long kd_dns_tell_part(__u32 index __attribute__((unused)), struct kd_dns_telling *telling)
{
	struct kd_dns_record *record = telling->record;
	__u32 length = telling->end - telling->at;

	if (!length)
		return 1;
	if (length > KD_DNS_MAX)
		length = KD_DNS_MAX;
	asm volatile("" : "+r"(length)); /* the verifier is to see this very number checked */
	if (length - 1 >= KD_DNS_MAX || bpf_skb_load_bytes(telling->skb, telling->at, record->message, length))
		return 1;
	kd_dns_put(record, telling->told, length);
	record->head.seq += length;
	telling->at += length;
	return 0;
}

#define KD_DNS_PARTS 32 /* of the largest segment */

/* The same of TCP: its bytes; or the question that is denied, which is in the record already. */
KD_SUBPROGRAM int kd_dns_tell_stream(struct __sk_buff *skb, const struct kd_pkt *pkt, const struct kd_asking *ask,
				     __u32 flags)
{
	struct kd_dns_record *record = bpf_map_lookup_elem(&kd_dns_room, (const void *)&kd_dns_first);
	struct kd_dns_telling telling = {
		.skb = skb,
		.record = record,
		.told = bpf_map_lookup_elem(&kd_dns_told, (const void *)&kd_dns_first),
		.end = pkt->end,
	};
	struct tcphdr tcp;
	__u32 length;

	if (!record || !telling.told || KD_EXPLAINING || pkt->fragment)
		return 0;
	length = kd_dns_payload(skb, pkt, &tcp, &telling.at);
	record->head.way = ask->way;
	record->head.time = bpf_ktime_get_ns();
	record->head.flags = flags;
	record->head.seq = bpf_ntohl(tcp.seq);
	record->head.ack = 0;
	if (tcp.syn) {
		if (!tcp.ack || !(flags & KD_DNS_ANSWERS))
			return 0;
		record->head.flags |= KD_DNS_OPENS;
		record->head.seq++;
		record->head.ack = bpf_ntohl(tcp.ack_seq);
		kd_dns_put(record, telling.told, 0);
	} else if ((flags & (KD_DNS_DENIED | KD_DNS_AUDITED)) == KD_DNS_DENIED) {
		length = record->question;
		asm volatile("" : "+r"(length));
		if (length - 1 < KD_DNS_MAX)
			kd_dns_put(record, telling.told, length);
	} else if (length <= pkt->end) {
		bpf_loop(KD_DNS_PARTS, kd_dns_tell_part, &telling, 0);
	}
	return 0;
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
	record->head.seq = 0;
	record->head.ack = 0;
	kd_dns_put(record, told, length);
	return 0;
}

#endif /* KD_DNS_H */
