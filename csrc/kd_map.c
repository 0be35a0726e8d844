// SPDX-License-Identifier: Apache-2.0
#include "kd.h"

#define KD_ENOTSUPP 524 /* the kernel's own, in no user header */

int kd_map_create(int type, const char *name, uint32_t key_size, uint32_t value_size, uint32_t max_entries,
		  uint32_t flags, int inner_fd)
{
	LIBBPF_OPTS(bpf_map_create_opts, opts, .map_flags = flags);

	if (inner_fd >= 0)
		opts.inner_map_fd = inner_fd;
	return bpf_map_create(type, name, key_size, value_size, max_entries, &opts);
}

int kd_map_info(int fd, struct kd_map_info *ret)
{
	struct bpf_map_info info = {};
	__u32 size = sizeof(info);
	int err = bpf_obj_get_info_by_fd(fd, &info, &size);

	if (err)
		return err;
	memset(ret, 0, sizeof(*ret));
	ret->type = info.type;
	ret->id = info.id;
	ret->key_size = info.key_size;
	ret->value_size = info.value_size;
	ret->max_entries = info.max_entries;
	ret->flags = info.map_flags;
	ret->btf_id = info.btf_id;
	ret->btf_key_type_id = info.btf_key_type_id;
	ret->btf_value_type_id = info.btf_value_type_id;
	memcpy(ret->name, info.name, sizeof(ret->name));
	return 0;
}

/* Copies as much as fits of the BTF that the kernel holds under an id; returns its whole size. */
int kd_btf_read(uint32_t id, void *buf, uint32_t size)
{
	struct bpf_btf_info info = { .btf = (uint64_t)(uintptr_t)buf, .btf_size = size };
	__u32 info_size = sizeof(info);
	int fd = bpf_btf_get_fd_by_id(id);
	int err;

	if (fd < 0)
		return fd;
	err = bpf_obj_get_info_by_fd(fd, &info, &info_size);
	close(fd);
	return err ?: (int)info.btf_size;
}

/* Whether a batch call failed because the kernel has none for this kind of map, or not with these flags. */
static bool no_batch(int err)
{
	return err == -KD_ENOTSUPP || err == -EOPNOTSUPP || err == -EINVAL;
}

/* What a batch of `asked` elements did; a kernel that refuses at once leaves the count as it was. */
static uint32_t batch_done(int err, uint32_t asked, uint32_t count)
{
	return err && count == asked ? 0 : count;
}

int kd_map_update_many(int fd, const void *keys, uint32_t key_size, const void *values, uint32_t value_size,
		       uint32_t count, uint64_t flags, uint32_t *ret_done)
{
	LIBBPF_OPTS(bpf_map_batch_opts, opts, .elem_flags = flags);
	uint32_t done = count;
	int err = 0;

	if (count) {
		err = bpf_map_update_batch(fd, keys, values, &done, &opts);
		done = batch_done(err, count, done);
	}
	if (no_batch(err)) {
		for (err = 0; done < count; done++) {
			err = bpf_map_update_elem(fd, (const char *)keys + (size_t)done * key_size,
						  (const char *)values + (size_t)done * value_size, flags);
			if (err)
				break;
		}
	}
	*ret_done = done;
	return err;
}

/* Keys that are not there are passed over. A batch call stops at each of them, and goes on behind it. */
int kd_map_delete_many(int fd, const void *keys, uint32_t key_size, uint32_t count, uint32_t *ret_deleted)
{
	uint32_t at = 0, deleted = 0;
	bool batch = true;
	int err = 0;

	while (at < count) {
		const char *key = (const char *)keys + (size_t)at * key_size;
		uint32_t done = count - at;

		if (batch) {
			err = bpf_map_delete_batch(fd, key, &done, NULL);
			done = batch_done(err, count - at, done);
			if (no_batch(err)) {
				batch = false;
				err = 0;
			}
		} else {
			err = bpf_map_delete_elem(fd, key);
			done = !err;
		}
		at += done;
		deleted += done;
		if (err == -ENOENT)
			at++;
		else if (err)
			break;
		err = 0;
	}
	*ret_deleted = deleted;
	return err;
}

int kd_map_lookup_many(int fd, const void *keys, uint32_t key_size, uint32_t count, void *values,
		       uint32_t value_size, uint8_t *found)
{
	for (uint32_t i = 0; i < count; i++) {
		int err = bpf_map_lookup_elem(fd, (const char *)keys + (size_t)i * key_size,
					      (char *)values + (size_t)i * value_size);

		if (err && err != -ENOENT)
			return err;
		found[i] = !err;
	}
	return 0;
}

/* One key after the other, where the kernel has no batch: `token` is the key last seen. */
static int dump_loop(int fd, bool first, void *token, void *keys, uint32_t key_size, void *values,
		     uint32_t value_size, uint32_t *count)
{
	uint32_t room = *count;

	*count = 0;
	while (*count < room) {
		char *key = (char *)keys + (size_t)*count * key_size;
		int err = bpf_map_get_next_key(fd, first ? NULL : token, key);

		if (err)
			return err == -ENOENT ? 1 : err;
		first = false;
		memcpy(token, key, key_size);
		if (values)
			err = bpf_map_lookup_elem(fd, key, (char *)values + (size_t)*count * value_size);
		if (!err)
			++*count;
		else if (err != -ENOENT) /* deleted in between */
			return err;
	}
	return 0;
}

/*
 * The next `*count` elements at most; sets *count to how many. `token` has room for a key and carries on from
 * call to call. Without `values` only keys are read. Returns 1 when these were the last, 0 when there may be
 * more, and -ENOSPC when a bucket of the hash has more elements than there is room for.
 */
int kd_map_dump(int fd, bool first, void *token, void *keys, uint32_t key_size, void *values, uint32_t value_size,
		uint32_t *count)
{
	uint32_t room = *count;
	int err = -EOPNOTSUPP;

	if (values)
		err = bpf_map_lookup_batch(fd, first ? NULL : token, token, keys, values, count, NULL);
	if (no_batch(err) || (err == -EINTR && !*count)) { /* EINTR: no element where the kernel looked */
		*count = room;
		return dump_loop(fd, first, token, keys, key_size, values, value_size, count);
	}
	if (err == -EINTR)
		return 0;
	return err == -ENOENT ? 1 : err;
}
