/* SPDX-License-Identifier: Apache-2.0 */
#include "kd.h"

/* NULL with errno set on failure, as libbpf does. */
struct bpf_object *kd_object_open(const void *data, size_t size, const char *name)
{
	LIBBPF_OPTS(bpf_object_open_opts, opts, .object_name = name);

	return bpf_object__open_mem(data, size, &opts);
}
