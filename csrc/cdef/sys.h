int kd_fs_type(const char *path, uint64_t *type);
int kd_mount_bpffs(const char *path);
