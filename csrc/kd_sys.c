/* SPDX-License-Identifier: Apache-2.0 */
#include "kd.h"

#include <sys/mount.h>
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
