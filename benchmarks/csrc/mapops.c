// SPDX-License-Identifier: Apache-2.0
/*
 * The baseline of map_ops: the same work on the same kind of map, by a C loop over libbpf.
 *
 *	mapops CPU	takes orders on standard input, one a line:
 *			  update|lookup COUNT	a system call per element
 *			  batch|dump COUNT	BPF_MAP_UPDATE_BATCH, BPF_MAP_LOOKUP_BATCH
 *
 * Each order works on a fresh hash of COUNT entries (8-byte keys, 16-byte values) and is answered with the
 * nanoseconds of processor time it took.
 */
#define _GNU_SOURCE
#include <bpf/bpf.h>
#include <errno.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define CHUNK 4096

struct value {
	uint64_t first, second;
};

static uint64_t *keys;
static struct value *values;

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static uint64_t cpu_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
	return t.tv_sec * 1000000000ULL + t.tv_nsec;
}

static void update(int fd, uint32_t count)
{
	for (uint32_t i = 0; i < count; i++)
		if (bpf_map_update_elem(fd, &keys[i], &values[i], BPF_ANY))
			die("update");
}

static void lookup(int fd, uint32_t count)
{
	struct value value;

	for (uint32_t i = 0; i < count; i++)
		if (bpf_map_lookup_elem(fd, &keys[i], &value))
			die("lookup");
}

static void batch(int fd, uint32_t count)
{
	uint32_t done = count;

	if (bpf_map_update_batch(fd, keys, values, &done, NULL) || done != count)
		die("update batch");
}

static void dump(int fd, uint32_t count)
{
	static uint64_t got_keys[CHUNK];
	static struct value got_values[CHUNK];
	uint32_t token, total = 0, chunk;
	int err = 0;

	while (!err) {
		chunk = CHUNK;
		err = bpf_map_lookup_batch(fd, total ? &token : NULL, &token, got_keys, got_values, &chunk, NULL);
		if (err && errno != ENOENT)
			die("lookup batch");
		total += chunk;
	}
	if (total != count)
		die("dump");
}

static const struct {
	const char *name;
	void (*work)(int fd, uint32_t count);
	int filled;
} operations[] = {
	{ "update", update, 0 },
	{ "lookup", lookup, 1 },
	{ "batch", batch, 0 },
	{ "dump", dump, 1 },
};

static void obey(const char *name, uint32_t count)
{
	int fd = bpf_map_create(BPF_MAP_TYPE_HASH, "kdbench_c", sizeof(*keys), sizeof(*values), count, NULL);
	uint64_t start;

	if (fd < 0)
		die("create");
	keys = calloc(count, sizeof(*keys));
	values = calloc(count, sizeof(*values));
	for (uint32_t i = 0; i < count; i++)
		keys[i] = values[i].first = i;
	for (size_t i = 0; i < sizeof(operations) / sizeof(*operations); i++) {
		if (strcmp(operations[i].name, name))
			continue;
		if (operations[i].filled)
			batch(fd, count);
		start = cpu_ns();
		operations[i].work(fd, count);
		printf("%llu\n", (unsigned long long)(cpu_ns() - start));
		fflush(stdout);
	}
	free(keys);
	free(values);
	close(fd);
}

int main(int argc, char **argv)
{
	uint32_t count;
	char name[16];
	cpu_set_t set;

	if (argc != 2) {
		fprintf(stderr, "usage: mapops CPU\n");
		return 2;
	}
	CPU_ZERO(&set);
	CPU_SET(atoi(argv[1]), &set);
	if (sched_setaffinity(0, sizeof(set), &set))
		die("sched_setaffinity");
	while (scanf("%15s %u", name, &count) == 2)
		obey(name, count);
	return 0;
}
