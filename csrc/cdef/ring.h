/* SPDX-License-Identifier: Apache-2.0 */
int kd_ring_drain(void *consumer, const void *producer, const void *data, uint32_t ring_size, void *out,
		  uint32_t out_size, uint32_t *sizes, uint32_t max_records);
struct kd_queue { /* struct kd_event_queue of the programs */
	uint64_t written;
	uint64_t pad[7];
	uint64_t taken;
	uint64_t share;
	uint64_t wanted;
	uint64_t pad2[5];
};
struct kd_cursor {
	uint64_t at;
	uint64_t end;
	uint32_t queue;
};
struct kd_merged {
	void *consumer; /* of the ring buffer, as its producer and its data, which the kernel maps twice in a row */
	const void *producer;
	const void *data;
	uint32_t ring_size;
	uint32_t record_size;
	uint32_t time_at; /* in a record */
	uint32_t count; /* of queues */
	struct kd_queue *queues;
	const void *rows;
	struct kd_cursor *cursors; /* room for one per queue */
};
uint64_t kd_merged_drain(const struct kd_merged *of, void *out, uint32_t capacity, uint64_t written);
