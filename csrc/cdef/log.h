void kd_log_start(void);
size_t kd_log_size(void);
size_t kd_log_take(char *buf, size_t size);
const char *libbpf_version_string(void);
int libbpf_strerror(int err, char *buf, size_t size);
