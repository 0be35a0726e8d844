/* SPDX-License-Identifier: Apache-2.0 */
int kd_fs_type(const char *path, uint64_t *type);
int kd_mount_bpffs(const char *path);
void kd_store64_many(void *words, const void *places, const void *values, size_t count);
int kd_rcu_wait(void);
