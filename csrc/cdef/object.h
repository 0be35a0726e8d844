/* SPDX-License-Identifier: Apache-2.0 */
/* Open from memory. */
struct bpf_object *kd_object_open(const void *data, size_t size, const char *name);
