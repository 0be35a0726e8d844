/* SPDX-License-Identifier: Apache-2.0 */
/* One automaton of many regular expressions. */
enum kd_nfa_kind {
	KD_NFA_SET, /* takes a byte of set `arg`, then `next` */
	KD_NFA_SPLIT, /* `arg` or `next`, without a byte */
	KD_NFA_FIRST, /* `next`, before the first byte only */
	KD_NFA_LAST, /* `next`, behind the last byte only */
	KD_NFA_ACCEPT, /* rule `arg` holds */
};

struct kd_nfa_node {
	uint32_t kind;
	uint32_t arg;
	uint32_t next;
};

struct kd_dfa {
	const struct kd_nfa_node *nodes;
	const uint8_t *sets; /* for each set, whether it has each class of bytes */
	uint32_t count; /* of nodes */
	uint32_t start;
	uint32_t classes;
	uint32_t max_states;
	uint64_t max_work; /* nodes looked at, all in all */
	uint32_t *table; /* out: the next state, by state and class; room for max_states. State 0 is dead, 1 the start. */
	uint32_t *accepts; /* out: by state, where in `rules` its list begins */
	uint32_t *rules; /* out: lists of rules that hold, each behind its length; at 0 the empty one */
	uint32_t max_rules; /* room in `rules` */
	uint32_t states; /* out */
	uint32_t rules_used; /* out */
	uint32_t pad;
};

int kd_dfa_build(struct kd_dfa *dfa);
