/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Who is behind an address, and which rule of a policy decides about them.
 *
 * A policy finds at most two rules, of the party's number and of number 0, which is everybody: of each the one with the
 * longest prefix of the port, and of the two the one of greater precedence.
 *
 * Reads kd_ipcache, kd_networks and kd_rules; writes kd_rule_counts.
 */
#ifndef KD_RULES_H
#define KD_RULES_H

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
};

static __always_inline struct kd_party *kd_party_of(struct kd_query *query, const struct kd_addr *addr)
{
	struct kd_party *party = bpf_map_lookup_elem(&kd_ipcache, addr);

	if (party)
		return party;
	query->peer.prefixlen = 8 * sizeof(query->peer.addr);
	query->peer.addr = *addr;
	return bpf_map_lookup_elem(&kd_networks, &query->peer);
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

/* The rule that decides about a party and a port, of ICMP the type; NULL: there is none, and nothing is allowed. */
static __always_inline struct kd_rule *kd_rule_of(struct kd_query *query, const struct kd_policy *policy,
						  __u32 number, __be16 port, __u8 protocol)
{
	struct kd_rule *rule, *of_all;

	query->rule.table = policy->table;
	query->rule.number = 0;
	of_all = kd_rule_longest(&query->rule, port, protocol, policy->lengths & ~policy->named);
	query->rule.number = number;
	rule = number ? kd_rule_longest(&query->rule, port, protocol, policy->lengths) : NULL;
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
