// SPDX-License-Identifier: Apache-2.0
/*
 * The traffic of the benchmarks: requests and responses over TCP, or a unix socket. A request says in its first bytes
 * how long it is, and its response is as long.
 *
 *	rr serve PORT CPU	answers on PORT of every address, or at a PATH, whoever asks first; prints "ready"
 *	rr answer PORT CPU	the same, one connection after the other: it waits in recv(), not in epoll_wait()
 *	rr client CPU		takes orders on standard input, one a line:
 *				  crr ADDRESS PORT COUNT SPREAD SIZE	connect, request, response, close
 *				  rr ADDRESS PORT COUNT SPREAD SIZE	one connection kept open
 *				each connection goes to one of SPREAD addresses from ADDRESS on, by chance; or to a PATH
 *
 * A client answers each order with one line:
 *	COUNT SECONDS FAILED CONNECT_P50 P90 P99 WHOLE_P50 P90 P99	(nanoseconds)
 * A last argument "ordinary" has the ordinary scheduler choose which of them runs, as it does for pods.
 * Both end when their standard input does, so none outlives the benchmark that started it.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define MAX_MESSAGE (1 << 16)
#define MAX_SAMPLES (1 << 20)
#define MAX_FAILURES 5 /* then the path is broken: end the slice */
#define MAX_EVENTS 64

struct message {
	uint32_t size; /* of all of it */
	char data[MAX_MESSAGE - sizeof(uint32_t)];
};

static struct message message;
static uint32_t connect_ns[MAX_SAMPLES], whole_ns[MAX_SAMPLES];

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

/*
 * One CPU for both ends, and neither may preempt the other: a server that is woken by the last packet of
 * a handshake would otherwise run before connect() returns, in some slices and not in others. By the ordinary
 * scheduler both have the same weight, and more than all others.
 */
static void pin(int cpu, int ordinary)
{
	struct sched_param lowest = { .sched_priority = 1 };
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	if (sched_setaffinity(0, sizeof(set), &set))
		die("sched_setaffinity");
	if (ordinary ? setpriority(PRIO_PROCESS, 0, -20) : sched_setscheduler(0, SCHED_FIFO, &lowest))
		die("priority");
}

static int receive(int fd)
{
	size_t got = 0;

	do {
		ssize_t n = recv(fd, (char *)&message + got, sizeof(message) - got, 0);

		if (n <= 0)
			return -1;
		got += n;
	} while (got < sizeof(message.size) || got < message.size);
	return 0;
}

static int transmit(int fd)
{
	return send(fd, &message, message.size, MSG_NOSIGNAL) == (ssize_t)message.size ? 0 : -1;
}

static void watch(int epoll, int fd)
{
	struct epoll_event event = { .events = EPOLLIN, .data.fd = fd };

	if (epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event))
		die("epoll_ctl");
}

static int is_path(const char *where)
{
	return where[0] == '/';
}

static struct sockaddr_un at_path(const char *path)
{
	struct sockaddr_un at = { .sun_family = AF_UNIX };

	strncpy(at.sun_path, path, sizeof(at.sun_path) - 1);
	return at;
}

static int listen_at(const char *path)
{
	struct sockaddr_un at = at_path(path);
	int fd = socket(AF_UNIX, SOCK_STREAM, 0);

	if (fd < 0 || bind(fd, (struct sockaddr *)&at, sizeof(at)) || listen(fd, 1024))
		die(path);
	return fd;
}

static int listen_on(int port)
{
	struct sockaddr_in any = { .sin_family = AF_INET, .sin_port = htons(port) };
	int one = 1, fd = socket(AF_INET, SOCK_STREAM, 0);

	if (fd < 0)
		die("socket");
	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one)); /* accepted sockets inherit it */
	if (bind(fd, (struct sockaddr *)&any, sizeof(any)) || listen(fd, 1024))
		die("listen");
	return fd;
}

static int listen_to(const char *where)
{
	return is_path(where) ? listen_at(where) : listen_on(atoi(where));
}

static int answer(const char *where)
{
	struct pollfd wanted[] = { { .fd = listen_to(where), .events = POLLIN }, { .fd = STDIN_FILENO, .events = POLLIN } };

	puts("ready");
	fflush(stdout);
	while (poll(wanted, 2, -1) > 0 && !wanted[1].revents) {
		int fd = accept(wanted[0].fd, NULL, NULL);

		while (!receive(fd) && !transmit(fd))
			;
		close(fd);
	}
	return 0;
}

static int serve(const char *where)
{
	int listener = listen_to(where), epoll = epoll_create1(0);
	struct epoll_event events[MAX_EVENTS];

	watch(epoll, listener);
	watch(epoll, STDIN_FILENO);
	puts("ready");
	fflush(stdout);
	for (;;) {
		int count = epoll_wait(epoll, events, MAX_EVENTS, -1);

		for (int i = 0; i < count; i++) {
			int fd = events[i].data.fd;

			if (fd == STDIN_FILENO) {
				return 0;
			} else if (fd == listener) {
				int accepted = accept(listener, NULL, NULL);

				if (accepted >= 0)
					watch(epoll, accepted);
			} else if (receive(fd) || transmit(fd)) {
				close(fd);
			}
		}
	}
}

static int new_socket(int family)
{
	struct timeval patience = { .tv_sec = 2 };
	int one = 1, fd = socket(family, SOCK_STREAM, 0);

	if (fd < 0)
		die("socket");
	if (family == AF_INET)
		setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
	setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience)); /* bounds connect() */
	return fd;
}

static int ask(int fd, uint32_t size)
{
	message.size = size;
	return transmit(fd) || receive(fd);
}

static int by_value(const void *a, const void *b)
{
	uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;

	return (x > y) - (x < y);
}

static void print_percentiles(uint32_t *samples, size_t count)
{
	static const int wanted[] = { 50, 90, 99 };

	qsort(samples, count, sizeof(*samples), by_value);
	for (int i = 0; i < 3; i++)
		printf(" %u", count ? samples[count * wanted[i] / 100] : 0);
}

/* Where a client connects to, one of the addresses or the path, and how much it asks. */
struct target {
	struct sockaddr_in first;
	struct sockaddr_un path;
	uint32_t spread, size;
};

static int dial(int fd, const struct target *target)
{
	struct sockaddr_in one = target->first;

	if (target->path.sun_family)
		return connect(fd, (const struct sockaddr *)&target->path, sizeof(target->path));
	one.sin_addr.s_addr = htonl(ntohl(one.sin_addr.s_addr) + random() % target->spread);
	return connect(fd, (const struct sockaddr *)&one, sizeof(one));
}

static void measure(const struct target *target, size_t wanted, int keep_alive)
{
	uint64_t start = now_ns(), before, connected;
	size_t count = 0, failed = 0;
	int fd = -1;

	while (count < wanted && failed < MAX_FAILURES) {
		int fresh = fd < 0, broken;

		if (fresh)
			fd = new_socket(target->path.sun_family ? AF_UNIX : AF_INET);
		before = connected = now_ns();
		broken = fresh && dial(fd, target);
		if (fresh)
			connected = now_ns();
		broken = broken || ask(fd, target->size);
		if (broken || !keep_alive) {
			close(fd);
			fd = -1;
		}
		if (broken) {
			failed++;
			continue;
		}
		connect_ns[count] = connected - before;
		whole_ns[count++] = now_ns() - before;
	}
	printf("%zu %.6f %zu", count, (now_ns() - start) / 1e9, failed);
	if (fd >= 0)
		close(fd);
	print_percentiles(connect_ns, count);
	print_percentiles(whole_ns, count);
	puts("");
	fflush(stdout);
}

static int client(void)
{
	char kind[8], address[100];
	uint32_t spread, size;
	size_t count;
	int port;

	while (scanf("%7s %99s %d %zu %u %u", kind, address, &port, &count, &spread, &size) == 6 &&
	       count <= MAX_SAMPLES && spread && size >= sizeof(size) && size <= MAX_MESSAGE) {
		struct target target = {
			.first = { .sin_family = AF_INET, .sin_port = htons(port) },
			.spread = spread,
			.size = size,
		};

		if (is_path(address))
			target.path = at_path(address);
		else if (inet_pton(AF_INET, address, &target.first.sin_addr) != 1)
			die(address);
		measure(&target, count, !strcmp(kind, "rr"));
	}
	return 0;
}

int main(int argc, char **argv)
{
	int ordinary = argc > 3 && !strcmp(argv[argc - 1], "ordinary");

	argc -= ordinary;
	if (argc == 4 && !strcmp(argv[1], "serve")) {
		pin(atoi(argv[3]), ordinary);
		return serve(argv[2]);
	}
	if (argc == 4 && !strcmp(argv[1], "answer")) {
		pin(atoi(argv[3]), ordinary);
		return answer(argv[2]);
	}
	if (argc == 3 && !strcmp(argv[1], "client")) {
		pin(atoi(argv[2]), ordinary);
		return client();
	}
	fprintf(stderr, "usage: rr serve|answer PORT CPU [ordinary] | rr client CPU [ordinary]\n");
	return 2;
}
