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

/*
 * The same of records that all have one size, into a ring of `capacity` records of our own, which forgets the oldest:
 * record n, counted from the beginning of time, is at n modulo `capacity`, and `*written` have been so far. Others are
 * passed over. Returns how many came.
 */
int kd_ring_drain_records(void *consumer, const void *producer, const void *data, uint32_t ring_size, void *out,
			  uint32_t record_size, uint32_t capacity, uint64_t *written)
{
	unsigned long at = __atomic_load_n((unsigned long *)consumer, __ATOMIC_RELAXED);
	unsigned long end = __atomic_load_n((const unsigned long *)producer, __ATOMIC_ACQUIRE);
	uint64_t before = *written;

	while (at < end) {
		const char *record = (const char *)data + (at & (ring_size - 1));
		uint32_t header = __atomic_load_n((const uint32_t *)record, __ATOMIC_ACQUIRE);
		uint32_t size = header & ~(BPF_RINGBUF_BUSY_BIT | BPF_RINGBUF_DISCARD_BIT);

		if (header & BPF_RINGBUF_BUSY_BIT)
			break;
		if (!(header & BPF_RINGBUF_DISCARD_BIT) && size == record_size) {
			memcpy((char *)out + (size_t)(*written % capacity) * record_size, record + KD_RING_HEADER, size);
			++*written;
		}
		at += (size + KD_RING_HEADER + 7) & ~7UL;
	}
	__atomic_store_n((unsigned long *)consumer, at, __ATOMIC_RELEASE);
	return *written - before;
}
