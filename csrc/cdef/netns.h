/* SPDX-License-Identifier: Apache-2.0 */
int kd_netns_create(const char *dir, const char *path);
int kd_netns_remove(const char *path);
int kd_netns_enter(int fd); /* moves the calling thread, for good */
int kd_netns_cookie(int fd, uint64_t *cookie);
