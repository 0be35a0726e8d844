/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One deterministic automaton of many regular expressions: the subset construction (Rabin and Scott), then
 * Moore's partition refinement. Expressions come as nodes of Thompson's automaton. What it may take is bounded by
 * max_states and max_work, since a short expression can ask for exponentially many states.
 */
#include "kd.h"

#define DEAD 0u
#define START 1u

/* Sets of numbers, each kept once and known by the order in which it came. */
struct sets {
	uint32_t *numbers; /* of all sets, end to end */
	size_t used, room;
	struct {
		size_t at;
		uint32_t size;
		uint64_t hash;
	} *entries;
	uint32_t count, max;
	uint32_t *slots; /* open addressing: entry + 1 */
	size_t mask;
};

struct build {
	struct kd_dfa *dfa;
	struct sets states, rules;
	uint32_t *rule_places; /* in dfa->rules, by number in `rules` */
	uint32_t *seen; /* by node: in which walk it was met last */
	uint32_t *stack, *found;
	uint32_t walk, size;
	uint64_t work;
};

static uint64_t hash_word(uint64_t hash, uint64_t word)
{
	hash = (hash ^ word) * 0x9e3779b97f4a7c15ull;
	return hash ^ (hash >> 29);
}

static uint64_t hash_words(const uint32_t *words, uint32_t size)
{
	uint64_t hash = size;

	for (uint32_t i = 0; i < size; i++)
		hash = hash_word(hash, words[i]);
	return hash;
}

static int sets_init(struct sets *sets, uint32_t max)
{
	size_t slots = 16;

	while (slots < 2 * (size_t)max)
		slots *= 2;
	sets->max = max;
	sets->mask = slots - 1;
	sets->entries = calloc(max, sizeof(*sets->entries));
	sets->slots = calloc(slots, sizeof(*sets->slots));
	return sets->entries && sets->slots ? 0 : -ENOMEM;
}

static void sets_free(struct sets *sets)
{
	free(sets->numbers);
	free(sets->entries);
	free(sets->slots);
}

/* The number of a set, new or not. */
static int sets_put(struct sets *sets, const uint32_t *numbers, uint32_t size, uint32_t *ret)
{
	uint64_t hash = hash_words(numbers, size);
	size_t slot = hash & sets->mask;

	for (; sets->slots[slot]; slot = (slot + 1) & sets->mask) {
		uint32_t entry = sets->slots[slot] - 1;

		if (sets->entries[entry].hash == hash && sets->entries[entry].size == size &&
		    !memcmp(sets->numbers + sets->entries[entry].at, numbers, size * sizeof(*numbers))) {
			*ret = entry;
			return 0;
		}
	}
	if (sets->count == sets->max)
		return -E2BIG;
	if (sets->used + size > sets->room) {
		size_t room = 2 * (sets->used + size) + 64;
		uint32_t *grown = realloc(sets->numbers, room * sizeof(*grown));

		if (!grown)
			return -ENOMEM;
		sets->numbers = grown;
		sets->room = room;
	}
	if (size)
		memcpy(sets->numbers + sets->used, numbers, size * sizeof(*numbers));
	sets->entries[sets->count].at = sets->used;
	sets->entries[sets->count].size = size;
	sets->entries[sets->count].hash = hash;
	sets->used += size;
	sets->slots[slot] = ++sets->count;
	*ret = sets->count - 1;
	return 0;
}

static int by_number(const void *a, const void *b)
{
	uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;

	return (x > y) - (x < y);
}

static void walk_begin(struct build *b)
{
	b->walk++;
	b->size = 0;
}

/*
 * All that is reached from a node without a byte: nodes that take one, and those that matter at the end, are
 * found; through LAST only where the walk is one of the `end`.
 */
static int walk_from(struct build *b, uint32_t node, bool first, bool end)
{
	const struct kd_nfa_node *nodes = b->dfa->nodes;
	uint32_t top = 0;

	b->stack[top++] = node;
	while (top) {
		uint32_t at = b->stack[--top];

		if (b->seen[at] == b->walk)
			continue;
		b->seen[at] = b->walk;
		if (++b->work > b->dfa->max_work)
			return -E2BIG;
		switch (nodes[at].kind) {
		case KD_NFA_SPLIT:
			b->stack[top++] = nodes[at].arg;
			b->stack[top++] = nodes[at].next;
			break;
		case KD_NFA_FIRST:
			if (first)
				b->stack[top++] = nodes[at].next;
			break;
		case KD_NFA_LAST:
			if (end)
				b->stack[top++] = nodes[at].next;
			else
				b->found[b->size++] = at;
			break;
		default:
			b->found[b->size++] = at;
		}
	}
	return 0;
}

/* Where the list of rules begins that hold if the bytes end in a state. */
static int state_accepts(struct build *b, uint32_t state, uint32_t *ret)
{
	struct kd_dfa *dfa = b->dfa;
	uint32_t size = b->states.entries[state].size, kept = 0, known = b->rules.count, number;
	int err;

	walk_begin(b);
	for (uint32_t i = 0; i < size; i++) {
		err = walk_from(b, b->states.numbers[b->states.entries[state].at + i], state == START, true);
		if (err)
			return err;
	}
	for (uint32_t i = 0; i < b->size; i++)
		if (dfa->nodes[b->found[i]].kind == KD_NFA_ACCEPT)
			b->found[kept++] = dfa->nodes[b->found[i]].arg;
	qsort(b->found, kept, sizeof(*b->found), by_number);
	err = sets_put(&b->rules, b->found, kept, &number);
	if (err)
		return err;
	if (number == known) {
		if (kept >= dfa->max_rules - dfa->rules_used)
			return -E2BIG;
		b->rule_places[number] = dfa->rules_used;
		dfa->rules[dfa->rules_used++] = kept;
		memcpy(dfa->rules + dfa->rules_used, b->found, kept * sizeof(*b->found));
		dfa->rules_used += kept;
	}
	*ret = b->rule_places[number];
	return 0;
}

/* Fill the row of a state, which makes states of what it leads to. */
static int state_expand(struct build *b, uint32_t state)
{
	struct kd_dfa *dfa = b->dfa;
	uint32_t size = b->states.entries[state].size;

	for (uint32_t class = 0; class < dfa->classes; class++) {
		uint32_t *next = &dfa->table[(size_t)state * dfa->classes + class];
		int err = 0;

		walk_begin(b);
		b->work += size;
		for (uint32_t i = 0; i < size && !err; i++) {
			const struct kd_nfa_node *node =
				&dfa->nodes[b->states.numbers[b->states.entries[state].at + i]];

			if (node->kind == KD_NFA_SET &&
			    dfa->sets[(size_t)node->arg * dfa->classes + class])
				err = walk_from(b, node->next, false, false);
		}
		if (err)
			return err;
		qsort(b->found, b->size, sizeof(*b->found), by_number);
		err = sets_put(&b->states, b->found, b->size, next);
		if (err)
			return err;
	}
	return state_accepts(b, state, &dfa->accepts[state]);
}

static int subsets(struct build *b)
{
	uint32_t number;
	int err = sets_put(&b->states, NULL, 0, &number); /* the dead state */

	walk_begin(b);
	if (!err)
		err = walk_from(b, b->dfa->start, true, false);
	if (err)
		return err;
	/*
	 * The start is a state of its own even if the same nodes are met again later, where FIRST no longer holds:
	 * a number that no node has keeps it apart.
	 */
	qsort(b->found, b->size, sizeof(*b->found), by_number);
	b->found[b->size++] = b->dfa->count;
	err = sets_put(&b->states, b->found, b->size, &number);
	if (err)
		return err;
	b->states.entries[START].size--;
	for (uint32_t state = 0; state < b->states.count; state++) {
		err = state_expand(b, state);
		if (err)
			return err;
	}
	b->dfa->states = b->states.count;
	return 0;
}

static uint64_t row_hash(const struct kd_dfa *dfa, const uint32_t *part, uint32_t state)
{
	const uint32_t *row = dfa->table + (size_t)state * dfa->classes;
	uint64_t hash = part[state];

	for (uint32_t class = 0; class < dfa->classes; class++)
		hash = hash_word(hash, part[row[class]]);
	return hash;
}

static bool row_same(const struct kd_dfa *dfa, const uint32_t *part, uint32_t a, uint32_t b)
{
	const uint32_t *x = dfa->table + (size_t)a * dfa->classes, *y = dfa->table + (size_t)b * dfa->classes;

	if (part[a] != part[b])
		return false;
	for (uint32_t class = 0; class < dfa->classes; class++)
		if (part[x[class]] != part[y[class]])
			return false;
	return true;
}

/* One round: states stay together whose rows lead to the same parts. Returns how many parts there are. */
static uint32_t refine(const struct kd_dfa *dfa, const uint32_t *part, uint32_t *finer, uint32_t *slots, size_t mask,
		       uint32_t *first)
{
	uint32_t parts = 0;

	memset(slots, 0, (mask + 1) * sizeof(*slots));
	for (uint32_t state = 0; state < dfa->states; state++) {
		size_t slot = row_hash(dfa, part, state) & mask;

		while (slots[slot] && !row_same(dfa, part, first[slots[slot] - 1], state))
			slot = (slot + 1) & mask;
		if (!slots[slot]) {
			first[parts] = state;
			slots[slot] = ++parts;
		}
		finer[state] = slots[slot] - 1;
	}
	return parts;
}

/* Merge states that cannot be told apart. Parts are numbered as they are met, so DEAD and START keep theirs. */
static int minimise(struct kd_dfa *dfa)
{
	size_t slots_size = 16;
	uint32_t *part, *finer, *first, *slots;
	uint32_t parts = 0, before;
	int err = 0;

	while (slots_size < 2 * (size_t)dfa->states)
		slots_size *= 2;
	part = calloc(dfa->states, sizeof(*part));
	finer = calloc(dfa->states, sizeof(*finer));
	first = calloc(dfa->states, sizeof(*first));
	slots = calloc(slots_size, sizeof(*slots));
	if (!part || !finer || !first || !slots) {
		err = -ENOMEM;
		goto out;
	}
	for (uint32_t state = 0; state < dfa->states; state++)
		part[state] = dfa->accepts[state];
	do {
		uint32_t *old = part;

		before = parts;
		parts = refine(dfa, part, finer, slots, slots_size - 1, first);
		part = finer;
		finer = old;
	} while (parts != before);

	if (parts == 1) { /* nothing is ever accepted: DEAD and START stay, which are alike */
		memset(dfa->table, 0, 2 * (size_t)dfa->classes * sizeof(*dfa->table));
		dfa->states = 2;
		goto out;
	}
	for (uint32_t number = 0; number < parts; number++) {
		uint32_t *from = dfa->table + (size_t)first[number] * dfa->classes;
		uint32_t *to = dfa->table + (size_t)number * dfa->classes;

		for (uint32_t class = 0; class < dfa->classes; class++)
			to[class] = part[from[class]];
		dfa->accepts[number] = dfa->accepts[first[number]];
	}
	dfa->states = parts;
out:
	free(part);
	free(finer);
	free(first);
	free(slots);
	return err;
}

/* -E2BIG: it would take more states, room or work than it may. */
int kd_dfa_build(struct kd_dfa *dfa)
{
	struct build b = { .dfa = dfa };
	int err = sets_init(&b.states, dfa->max_states);

	if (dfa->max_states < 2 || !dfa->max_rules) {
		err = -EINVAL;
		goto out;
	}
	if (!err)
		err = sets_init(&b.rules, dfa->max_states);
	b.rule_places = calloc(dfa->max_states, sizeof(*b.rule_places));
	b.seen = calloc(dfa->count, sizeof(*b.seen));
	b.stack = calloc(2 * (size_t)dfa->count + 1, sizeof(*b.stack));
	b.found = calloc((size_t)dfa->count + 1, sizeof(*b.found));
	if (err || !b.rule_places || !b.seen || !b.stack || !b.found) {
		err = -ENOMEM;
		goto out;
	}
	dfa->rules_used = 0;
	err = subsets(&b);
	if (!err)
		err = minimise(dfa);
out:
	sets_free(&b.states);
	sets_free(&b.rules);
	free(b.rule_places);
	free(b.seen);
	free(b.stack);
	free(b.found);
	return err;
}
