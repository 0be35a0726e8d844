/* SPDX-License-Identifier: Apache-2.0 */
#include "kd.h"

#include <linux/membarrier.h>
#include <sys/mount.h>
#include <sys/syscall.h>
#include <sys/vfs.h>

int kd_fs_type(const char *path, uint64_t *type)
{
	struct statfs fs;

	if (statfs(path, &fs))
		return -errno;
	*type = (uint64_t)fs.f_type;
	return 0;
}

int kd_mount_bpffs(const char *path)
{
	return mount("bpf", path, "bpf", 0, "mode=0700") ? -errno : 0;
}

/*
 * words[places[i]] = values[i], each in one piece and visible only after all earlier stores: how a program
 * that reads a mapped array sees what was prepared before what points to it.
 */
void kd_store64_many(void *words, const void *places, const void *values, size_t count)
{
	uint64_t *base = words;
	const uint32_t *place = places;
	const uint64_t *value = values;

	for (size_t i = 0; i < count; i++)
		__atomic_store_n(&base[place[i]], value[i], __ATOMIC_RELEASE);
}

/* An RCU grace period, which MEMBARRIER_CMD_GLOBAL is: all programs that run now will have ended. */
int kd_rcu_wait(void)
{
	return syscall(__NR_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0) ? -errno : 0;
}
