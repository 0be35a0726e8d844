struct kd_nfa_node {
	uint32_t kind;
	uint32_t arg;
	uint32_t next;
};

struct kd_dfa {
	const struct kd_nfa_node *nodes;
	const uint8_t *sets;
	uint32_t count;
	uint32_t start;
	uint32_t classes;
	uint32_t max_states;
	uint64_t max_work;
	uint32_t *table;
	uint32_t *accepts;
	uint32_t *rules;
	uint32_t max_rules;
	uint32_t states;
	uint32_t rules_used;
	uint32_t pad;
};

int kd_dfa_build(struct kd_dfa *dfa);
