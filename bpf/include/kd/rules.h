/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Who is behind an address, and which rule of a policy decides about them.
 *
 * A policy finds at most two rules, of the party's number and of number 0, which is everybody: of each the one with the
 * longest prefix of the port, and of the two the one of greater precedence.
 *
 * Reads kd_ipcache, kd_networks, kd_identities and kd_rules; writes kd_rule_counts.
 */
#ifndef KD_RULES_H
#define KD_RULES_H

#include <stdbool.h>
#include <linux/bpf.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include <kd/trace.h>
#include <kd/types.h>
#include <kd/maps/policy.h>

/* The keys of what is looked up, which there is little room for on the stack. */
struct kd_query {
	struct kd_peer_key peer;
	struct kd_rule_key rule;
	struct kd_identity_key told;
};

/* Of the labels of a pod, not of a reserved one nor of a network: all nodes know them. */
#define KD_FIRST_POD_IDENTITY 256
#define KD_FIRST_LOCAL_IDENTITY (1 << 24)

#define KD_NOBODY 0xffffffff /* who has no rules, nor is one of everybody */

static __always_inline bool kd_is_pod_identity(__u32 identity)
{
	return identity >= KD_FIRST_POD_IDENTITY && identity < KD_FIRST_LOCAL_IDENTITY;
}

static __always_inline struct kd_party *kd_network_of(struct kd_query *query, const struct kd_addr *addr)
{
	query->peer.prefixlen = 8 * sizeof(query->peer.addr);
	query->peer.addr = *addr;
	return bpf_map_lookup_elem(&kd_networks, &query->peer);
}

static __always_inline struct kd_party *kd_party_of(struct kd_query *query, const struct kd_addr *addr)
{
	struct kd_party *party = bpf_map_lookup_elem(&kd_ipcache, addr);

	return party ? party : kd_network_of(query, addr);
}

/*
 * The number of an identity that a tunnel tells, where kd_ipcache has another for the address, or none: the sender's
 * node and this one have not heard of the same changes. Who has not all their rules is nobody.
 */
static __always_inline __u32 kd_number_told(struct kd_query *query, const struct kd_addr *addr, __u32 identity)
{
	struct kd_party *network;
	__u32 *number;

	if (!kd_is_pod_identity(identity))
		return identity;
	network = kd_network_of(query, addr);
	query->told.identity = identity;
	query->told.network = network && network->number >= KD_FIRST_LOCAL_IDENTITY ? network->number : 0;
	number = bpf_map_lookup_elem(&kd_identities, &query->told);
	return number ? *number : KD_NOBODY;
}

/* The rule with the longest prefix of the port, of a party and a table that the key names. */
static __always_inline struct kd_rule *kd_rule_longest(struct kd_rule_key *key, __be16 port, __u8 protocol,
						       __u32 lengths)
{
	struct kd_rule *rule;

	key->protocol = protocol;
	for (int bits = 16; bits >= 0; bits--) {
		if (!(lengths >> bits & 1))
			continue;
		key->bits = bits;
		key->port = port & bpf_htons(0xffff0000 >> bits);
		rule = bpf_map_lookup_elem(&kd_rules, key);
		if (rule)
			return rule;
	}
	key->protocol = 0;
	key->port = 0;
	key->bits = 0;
	return bpf_map_lookup_elem(&kd_rules, key);
}

/*
 * All bits, if the lengths of prefixes are not of this table: the row is half written. Without a branch, for the
 * verifier would follow both ways through all that comes after.
 */
static __always_inline __u32 kd_lengths_torn(__u32 table, __u32 lengths, __u32 named)
{
	__u32 tables = table << KD_LENGTHS_TABLE, other = ((lengths ^ tables) | (named ^ tables)) >> KD_LENGTHS_TABLE;

	return -((other + KD_LENGTHS_TABLES) >> (32 - KD_LENGTHS_TABLE));
}

/* The rule that decides about a party and a port, of ICMP the type; NULL: there is none, and nothing is allowed. */
static __always_inline struct kd_rule *kd_rule_of(struct kd_query *query, const struct kd_policy *policy,
						  __u32 number, __be16 port, __u8 protocol)
{
	__u32 table = *(const volatile __u32 *)&policy->table;
	__u32 lengths = *(const volatile __u32 *)&policy->lengths;
	__u32 named = *(const volatile __u32 *)&policy->named;
	__u32 torn = kd_lengths_torn(table, lengths, named);
	struct kd_rule *rule, *of_all;

	lengths |= torn;
	named &= ~torn;
	query->rule.table = table;
	query->rule.number = 0;
	of_all = kd_rule_longest(&query->rule, port, protocol, lengths & ~named);
	query->rule.number = number;
	rule = number ? kd_rule_longest(&query->rule, port, protocol, lengths) : NULL;
	return !rule || (of_all && of_all->precedence > rule->precedence) ? of_all : rule;
}

static __always_inline void kd_rule_count(const struct __sk_buff *skb, __u32 counter)
{
	struct kd_counter *count = bpf_map_lookup_elem(&kd_rule_counts, &counter);

	if (count && !KD_EXPLAINING) {
		count->packets++;
		count->bytes += skb->len;
	}
}

#endif /* KD_RULES_H */
