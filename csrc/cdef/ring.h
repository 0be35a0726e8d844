int kd_ring_drain(void *consumer, const void *producer, const void *data, uint32_t ring_size, void *out,
		  uint32_t out_size, uint32_t *sizes, uint32_t max_records);
int kd_ring_drain_records(void *consumer, const void *producer, const void *data, uint32_t ring_size, void *out,
			  uint32_t record_size, uint32_t capacity, uint64_t *written);
