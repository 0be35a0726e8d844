/* SPDX-License-Identifier: Apache-2.0 */
/*
 * libbpf reports through a process-wide print callback, in the thread that made the call. Each thread keeps
 * its own text, so that two loads at once do not mix and nothing ever reaches the user's stderr.
 */
#include "kd.h"

#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>

#define KD_LOG_MAX (4u << 20) /* the verifier can say megabytes; the end is what tells */

struct kd_log {
	char *text;
	size_t size;
	size_t room;
};

static pthread_key_t log_key;
static pthread_once_t log_once = PTHREAD_ONCE_INIT;

static void log_free(void *arg)
{
	struct kd_log *log = arg;

	free(log->text);
	free(log);
}

static struct kd_log *log_mine(void)
{
	struct kd_log *log = pthread_getspecific(log_key);

	if (!log) {
		log = calloc(1, sizeof(*log));
		if (log && pthread_setspecific(log_key, log)) {
			free(log);
			log = NULL;
		}
	}
	return log;
}

static void log_append(struct kd_log *log, const char *text, size_t size)
{
	if (size > KD_LOG_MAX / 2) {
		text += size - KD_LOG_MAX / 2;
		size = KD_LOG_MAX / 2;
	}
	if (log->size + size > KD_LOG_MAX) { /* keep the younger half */
		size_t keep = log->size / 2;

		memmove(log->text, log->text + log->size - keep, keep);
		log->size = keep;
	}
	if (log->size + size > log->room) {
		size_t room = (log->size + size) * 2;
		char *grown = realloc(log->text, room);

		if (!grown)
			return;
		log->text = grown;
		log->room = room;
	}
	memcpy(log->text + log->size, text, size);
	log->size += size;
}

static int log_print(enum libbpf_print_level level, const char *format, va_list args)
{
	struct kd_log *log;
	char *text = NULL;
	int size;

	if (level == LIBBPF_DEBUG)
		return 0;
	log = log_mine();
	if (!log)
		return 0;
	size = vasprintf(&text, format, args);
	if (size > 0)
		log_append(log, text, size);
	if (size >= 0)
		free(text);
	return size;
}

static void log_install(void)
{
	pthread_key_create(&log_key, log_free);
	libbpf_set_print(log_print);
}

/* Install the callback (once per process) and forget what this thread has collected. */
void kd_log_start(void)
{
	struct kd_log *log;

	pthread_once(&log_once, log_install);
	log = log_mine();
	if (log)
		log->size = 0;
}

size_t kd_log_size(void)
{
	struct kd_log *log;

	pthread_once(&log_once, log_install);
	log = log_mine();
	return log ? log->size : 0;
}

/* Move up to size bytes of this thread's text to buf; what does not fit is dropped. */
size_t kd_log_take(char *buf, size_t size)
{
	struct kd_log *log;

	pthread_once(&log_once, log_install);
	log = log_mine();
	if (!log)
		return 0;
	if (size > log->size)
		size = log->size;
	memcpy(buf, log->text, size);
	log->size = 0;
	return size;
}
