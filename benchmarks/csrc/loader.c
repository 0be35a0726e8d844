// SPDX-License-Identifier: Apache-2.0
/*
 * The baseline of load_time: open, load and close an object by libbpf alone.
 *
 *	loader CPU	takes orders on standard input, one a line: the path of an object.
 *			Each is answered with the nanoseconds that open and load took.
 */
#define _GNU_SOURCE
#include <bpf/libbpf.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static uint64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000ULL + t.tv_nsec;
}

int main(int argc, char **argv)
{
	char path[4096];
	cpu_set_t set;

	if (argc != 2) {
		fprintf(stderr, "usage: loader CPU\n");
		return 2;
	}
	CPU_ZERO(&set);
	CPU_SET(atoi(argv[1]), &set);
	if (sched_setaffinity(0, sizeof(set), &set))
		die("sched_setaffinity");
	libbpf_set_print(NULL);
	while (scanf("%4095s", path) == 1) {
		uint64_t start = now_ns();
		struct bpf_object *object = bpf_object__open(path);

		if (!object || bpf_object__load(object))
			die(path);
		printf("%llu\n", (unsigned long long)(now_ns() - start));
		fflush(stdout);
		bpf_object__close(object);
	}
	return 0;
}
