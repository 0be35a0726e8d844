/* SPDX-License-Identifier: Apache-2.0 */
struct kd_map_info {
	uint32_t type;
	uint32_t id;
	uint32_t key_size;
	uint32_t value_size;
	uint32_t max_entries;
	uint32_t flags;
	uint32_t btf_id;
	uint32_t btf_key_type_id;
	uint32_t btf_value_type_id;
	char name[16];
};

int kd_map_create(int type, const char *name, uint32_t key_size, uint32_t value_size, uint32_t max_entries,
		  uint32_t flags, int inner_fd);
int kd_map_info(int fd, struct kd_map_info *info);
int kd_btf_read(uint32_t id, void *buf, uint32_t size);

int kd_map_update_many(int fd, const void *keys, uint32_t key_size, const void *values, uint32_t value_size,
		       uint32_t count, uint64_t flags, uint32_t *done);
int kd_map_delete_many(int fd, const void *keys, uint32_t key_size, uint32_t count, uint32_t *deleted);
int kd_map_lookup_many(int fd, const void *keys, uint32_t key_size, uint32_t count, void *values,
		       uint32_t value_size, uint8_t *found);
int kd_map_dump(int fd, bool first, void *token, void *keys, uint32_t key_size, void *values, uint32_t value_size,
		uint32_t *count);
