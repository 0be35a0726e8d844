// SPDX-License-Identifier: Apache-2.0
#include "kd.h"

#define KD_RING_HEADER 8

/*
 * Moves the records that are ready out of a ring buffer: payloads one after the other into `out`, the length of
 * each into `sizes`. Stops at a record that its producer has not committed, and where room ends. The kernel maps
 * the data area twice in a row, so that no record is ever in two pieces. Returns how many records.
 */
int kd_ring_drain(void *consumer, const void *producer, const void *data, uint32_t ring_size, void *out,
		  uint32_t out_size, uint32_t *sizes, uint32_t max_records)
{
	unsigned long at = __atomic_load_n((unsigned long *)consumer, __ATOMIC_RELAXED);
	unsigned long end = __atomic_load_n((const unsigned long *)producer, __ATOMIC_ACQUIRE);
	uint32_t used = 0, count = 0;

	while (at < end && count < max_records) {
		const char *record = (const char *)data + (at & (ring_size - 1));
		uint32_t header = __atomic_load_n((const uint32_t *)record, __ATOMIC_ACQUIRE);
		uint32_t size = header & ~(BPF_RINGBUF_BUSY_BIT | BPF_RINGBUF_DISCARD_BIT);

		if (header & BPF_RINGBUF_BUSY_BIT)
			break;
		if (!(header & BPF_RINGBUF_DISCARD_BIT)) {
			if (size > out_size - used)
				break;
			memcpy((char *)out + used, record + KD_RING_HEADER, size);
			sizes[count++] = size;
			used += size;
		}
		at += (size + KD_RING_HEADER + 7) & ~7UL;
	}
	__atomic_store_n((unsigned long *)consumer, at, __ATOMIC_RELEASE);
	return count;
}

/* The next record of a ring buffer that is ready and has this size, `*at` is after those that are not; NULL: none. */
static const char *ring_next(const struct kd_merged *of, unsigned long *at, unsigned long end)
{
	while (*at < end) {
		const char *record = (const char *)of->data + (*at & (of->ring_size - 1));
		uint32_t header = __atomic_load_n((const uint32_t *)record, __ATOMIC_ACQUIRE);
		uint32_t size = header & ~(BPF_RINGBUF_BUSY_BIT | BPF_RINGBUF_DISCARD_BIT);

		if (header & BPF_RINGBUF_BUSY_BIT)
			break;
		if (!(header & BPF_RINGBUF_DISCARD_BIT) && size == of->record_size)
			return record + KD_RING_HEADER;
		*at += (size + KD_RING_HEADER + 7) & ~7UL;
	}
	return NULL;
}

static uint64_t time_of(const struct kd_merged *of, const char *record)
{
	uint64_t time;

	memcpy(&time, record + of->time_at, sizeof(time));
	return time;
}

static uint32_t queue_room(const struct kd_queue *queue)
{
	return queue->share;
}

static const char *queue_next(const struct kd_merged *of, const struct kd_cursor *cursor)
{
	const struct kd_queue *queue = &of->queues[cursor->queue];
	uint64_t at = (queue->share >> 32) + (cursor->at & (queue_room(queue) - 1));

	return (const char *)of->rows + at * of->record_size;
}

/* Those queues that have something now, as `cursors`; returns how many. */
static uint32_t queues_begin(const struct kd_merged *of)
{
	uint32_t count = 0;

	for (uint32_t i = 0; i < of->count; i++) {
		struct kd_cursor *cursor = &of->cursors[count];

		cursor->queue = i;
		cursor->at = of->queues[i].taken;
		cursor->end = __atomic_load_n(&of->queues[i].written, __ATOMIC_ACQUIRE);
		if (cursor->end - cursor->at > queue_room(&of->queues[i])) /* a reader before us was late to say what it has taken */
			cursor->at = cursor->end - queue_room(&of->queues[i]);
		count += cursor->at != cursor->end;
	}
	return count;
}

/*
 * Moves what is in queues, one for each CPU, and in a ring buffer beside them into a ring of `capacity` records of our own,
 * which forgets the oldest: record n, counted from the beginning of time, is at n modulo `capacity`, and `written` have
 * been so far. Each source gives them in its order, and they are merged by their time. Records of the ring buffer that
 * have another size are passed over. Returns how many have been written then.
 *
 * The ring buffer's end is read first: what wakes a reader is there behind the event that it is to be woken for, and
 * must not be taken without that.
 */
uint64_t kd_merged_drain(const struct kd_merged *of, void *out, uint32_t capacity, uint64_t written)
{
	unsigned long end = __atomic_load_n((const unsigned long *)of->producer, __ATOMIC_ACQUIRE);
	unsigned long at = __atomic_load_n((unsigned long *)of->consumer, __ATOMIC_RELAXED);
	uint32_t count = queues_begin(of);

	for (;;) {
		const char *first = ring_next(of, &at, end);
		struct kd_cursor *from = NULL;

		for (uint32_t i = 0; i < count; i++) {
			const char *next = queue_next(of, &of->cursors[i]);

			if (first && time_of(of, first) <= time_of(of, next))
				continue;
			first = next;
			from = &of->cursors[i];
		}
		if (!first)
			break;
		memcpy((char *)out + (size_t)(written++ % capacity) * of->record_size, first, of->record_size);
		if (!from) {
			at += (of->record_size + KD_RING_HEADER + 7) & ~7UL;
		} else if (++from->at == from->end) {
			__atomic_store_n(&of->queues[from->queue].taken, from->at, __ATOMIC_RELEASE);
			*from = of->cursors[--count];
		}
	}
	__atomic_store_n((unsigned long *)of->consumer, at, __ATOMIC_RELEASE);
	return written;
}
