/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Maglev lookup tables (Eisenbud et al., NSDI 2016, section 3.4): every member walks its own permutation of
 * the table and takes the next free place, in turns; a member with weight w takes part in w of max(w) turns.
 */
#include "kd.h"

/* A second, independent hash of the same member: splitmix64's finaliser. */
static uint64_t mix(uint64_t x)
{
	x += 0x9e3779b97f4a7c15ull;
	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
	x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
	return x ^ (x >> 31);
}

/* Fill table (size must be prime) with the values of members. -EINVAL if no member has a weight. */
int kd_maglev_fill(const struct kd_member *members, size_t count, uint32_t *table, size_t size)
{
	struct walk {
		uint64_t place;
		uint64_t skip;
		uint64_t credit;
	} *walks;
	uint8_t *taken;
	uint32_t heaviest = 0;
	size_t filled = 0;
	int err = 0;

	if (size < 2)
		return -EINVAL;
	for (size_t i = 0; i < count; i++)
		if (members[i].weight > heaviest)
			heaviest = members[i].weight;
	if (!heaviest)
		return -EINVAL;
	walks = calloc(count, sizeof(*walks));
	taken = calloc(size, 1);
	if (!walks || !taken) {
		err = -ENOMEM;
		goto out;
	}
	for (size_t i = 0; i < count; i++) {
		walks[i].place = mix(members[i].hash) % size;
		walks[i].skip = mix(members[i].hash ^ 0x5851f42d4c957f2dull) % (size - 1) + 1;
	}
	while (filled < size) {
		for (size_t i = 0; i < count && filled < size; i++) {
			struct walk *walk = &walks[i];

			walk->credit += members[i].weight;
			if (walk->credit < heaviest)
				continue;
			walk->credit -= heaviest;
			while (taken[walk->place])
				walk->place = (walk->place + walk->skip) % size;
			taken[walk->place] = 1;
			table[walk->place] = members[i].value;
			filled++;
		}
	}
out:
	free(taken);
	free(walks);
	return err;
}
