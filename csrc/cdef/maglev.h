struct kd_member {
	uint64_t hash;
	uint32_t value;
	uint32_t weight;
};
int kd_maglev_fill(const struct kd_member *members, size_t count, uint32_t *table, size_t size);
