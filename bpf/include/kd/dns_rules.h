/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Names that pods may ask name servers for: a question over UDP, held to an automaton that user space has made of names
 * and patterns (k8sdatapath/datapath/dns_rules.py), and what a client is answered if it must not ask. Of TCP see
 * kd/dns_stream.h.
 *
 * What could be read in two ways is no question: one that is in pieces, that asks for several names or for none, whose
 * name is compressed, or ends beyond the datagram. k8sdatapath/model/dns_rules.py says the same once more.
 *
 * Reads kd_dns_sets and kd_dns_table; writes kd_dns_room.
 */
#ifndef KD_DNS_RULES_H
#define KD_DNS_RULES_H

#include <stdbool.h>
#include <stddef.h>
#include <linux/bpf.h>
#include <linux/udp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include <kd/config.h>
#include <kd/dns.h>
#include <kd/packet.h>
#include <kd/reject.h>
#include <kd/verdict.h>
#include <kd/maps/dns.h>

#define KD_DNS_HEADER 12
#define KD_DNS_KIND 4 /* type and class, behind a name */
#define KD_DNS_LABEL 63
#define KD_DNS_NAME 255
#define KD_DNS_READ 512 /* more than the longest question takes */
#define KD_DNS_NO_QUERY 0xf8 /* of the third byte: it is an answer, or no plain question */
#define KD_DNS_IS_ANSWER 0x80
#define KD_DNS_RECURSION 0x01 /* what an answer repeats of the question's third byte, and of its fourth */
#define KD_DNS_CHECKING 0x10
#define KD_DNS_REFUSED 5

#define KD_DNS_START 1 /* the state that names begin in */

struct kd_dns_reading {
	struct kd_dns_name name;
	const struct kd_dns_set *set;
	const __u8 *message;
	__u32 length; /* of the message, as far as it was loaded */
	__u32 at;
};

/* One byte of a name: of a label, or the length of the next one, before which a dot is read. False: that is no name. */
static __always_inline bool kd_dns_name_byte(struct kd_dns_name *name, const struct kd_dns_set *set, __u8 byte)
{
	const struct kd_dns_block *block;
	bool first = !name->begun;
	__u32 class, place;

	name->begun = true;
	if (name->left) {
		name->left--;
		class = set->classes[byte];
	} else {
		if (byte > KD_DNS_LABEL)
			return false;
		name->left = byte;
		name->complete = !byte;
		if (first && byte)
			return true;
		class = set->dot;
	}
	place = set->cells + (name->state & (KD_DNS_FITS - 1)) * set->width + class;
	class = place % KD_DNS_CELLS;
	place /= KD_DNS_CELLS;
	block = bpf_map_lookup_elem(&kd_dns_table, &place);
	if (!block) {
		name->complete = false;
		return false;
	}
	name->state = block->cell[class];
	return true;
}

static long kd_dns_byte(__u32 index __attribute__((unused)), struct kd_dns_reading *reading)
{
	if (reading->at >= reading->length)
		return 1;
	return !kd_dns_name_byte(&reading->name, reading->set, reading->message[reading->at++ & (KD_DNS_READ - 1)]) ||
	       reading->name.complete;
}

/* Whether a message is a question for one of some names: KD_CONTINUE, KD_REJECT_NAME, or KD_DROP_NAME if it is none. */
KD_FUNCTION int kd_dns_ask(struct __sk_buff *skb, const struct kd_pkt *pkt, __u32 number)
{
	struct kd_dns_record *record = bpf_map_lookup_elem(&kd_dns_room, (const void *)&kd_dns_first);
	struct kd_dns_reading reading = { .at = KD_DNS_HEADER, .name.state = KD_DNS_START };
	struct udphdr udp;
	__u32 size;

	reading.set = bpf_map_lookup_elem(&kd_dns_sets, &number);
	if (!pkt || !record || !reading.set || !reading.set->size || pkt->fragment || skb->gso_size ||
	    bpf_skb_load_bytes(skb, pkt->l4_off, &udp, sizeof(udp)) ||
	    bpf_ntohs(udp.len) != pkt->end - pkt->l4_off || bpf_ntohs(udp.len) < sizeof(udp))
		return KD_DROP_NAME;
	size = bpf_ntohs(udp.len) - sizeof(udp);
	if (size > KD_DNS_READ)
		size = KD_DNS_READ;
	asm volatile("" : "+r"(size)); /* the verifier is to see this very number checked */
	if (size < KD_DNS_HEADER || size > KD_DNS_READ ||
	    bpf_skb_load_bytes(skb, pkt->l4_off + sizeof(udp), record->message, size) ||
	    record->message[2] & KD_DNS_NO_QUERY || record->message[4] || record->message[5] != 1)
		return KD_DROP_NAME;
	reading.message = record->message;
	reading.length = size;
	bpf_loop(KD_DNS_NAME, kd_dns_byte, &reading, 0);
	if (!reading.name.complete || reading.at + KD_DNS_KIND > size)
		return KD_DROP_NAME;
	record->question = reading.at + KD_DNS_KIND;
	return reading.name.state & KD_DNS_FITS ? KD_CONTINUE : KD_REJECT_NAME;
}

/* A question becomes the answer that it is refused. */
static __always_inline void kd_dns_become_refusal(__u8 *message)
{
	message[2] = KD_DNS_IS_ANSWER | (message[2] & KD_DNS_RECURSION);
	message[3] = KD_DNS_REFUSED | (message[3] & KD_DNS_CHECKING);
	__builtin_memset(message + 6, 0, 6); /* it has no records */
}

/*
 * The question that was read last becomes the answer that it is refused, from where it was sent to: whatever is between
 * translates it back.
 */
KD_FUNCTION int kd_dns_refuse(struct __sk_buff *skb, const struct kd_pkt *pkt)
{
	struct kd_dns_record *record = bpf_map_lookup_elem(&kd_dns_room, (const void *)&kd_dns_first);
	struct udphdr udp, answer = {};
	__be32 pseudo[2] = { 0, bpf_htonl(IPPROTO_UDP) };
	__u32 check_off, size, sum;

	if (!pkt || !record ||
	    pkt->l4_off != ETH_HLEN + (pkt->ipv6 ? sizeof(struct ipv6hdr) : sizeof(struct iphdr)) ||
	    !kd_reject_allowed())
		return KD_DROP_NAME;
	check_off = pkt->l4_off + offsetof(struct udphdr, check);
	size = record->question;
	asm volatile("" : "+r"(size));
	if (size < KD_DNS_HEADER || size > KD_DNS_READ || bpf_skb_load_bytes(skb, pkt->l4_off, &udp, sizeof(udp)) ||
	    bpf_skb_change_tail(skb, pkt->l4_off + sizeof(udp) + size, 0))
		return KD_DROP_NAME;
	kd_dns_become_refusal(record->message);
	__builtin_memset(record->message + size, 0, 3); /* which the checksum reads, in words */
	answer.source = udp.dest;
	answer.dest = udp.source;
	answer.len = bpf_htons(sizeof(udp) + size);
	pseudo[0] = bpf_htonl(sizeof(udp) + size);
	/* As in kd_reject_reset(). */
	sum = kd_csum(&pkt->tuple, sizeof(pkt->tuple.src) + sizeof(pkt->tuple.dst), 0);
	sum = kd_csum(pseudo, sizeof(pseudo), sum);
	if (kd_is_partial(skb, check_off, udp.check)) {
		answer.check = ~kd_csum_fold(sum);
	} else {
		sum = kd_csum(record->message, (size + 3) & ~3u, kd_csum(&answer, sizeof(answer), sum));
		answer.check = kd_csum_fold(sum);
		if (!answer.check)
			answer.check = 0xffff;
	}
	if (bpf_skb_store_bytes(skb, pkt->l4_off, &answer, sizeof(answer), 0) ||
	    bpf_skb_store_bytes(skb, pkt->l4_off + sizeof(answer), record->message, size, 0) ||
	    kd_answer_ip(skb, pkt, sizeof(answer) + size) || kd_return(skb))
		return KD_DROP_NAME;
	return KD_REJECT_NAME;
}

#endif /* KD_DNS_RULES_H */
