/* SPDX-License-Identifier: Apache-2.0 */
/* What libbpf and the verifier say, kept per thread. */
void kd_log_start(void);
size_t kd_log_size(void);
size_t kd_log_take(char *buf, size_t size);
