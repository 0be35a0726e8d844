/* SPDX-License-Identifier: Apache-2.0 */
#include "kd.h"

#include <sys/syscall.h>

int kd_prog_load(int type, int expected_attach_type, const char *name, const void *insns, size_t count)
{
	LIBBPF_OPTS(bpf_prog_load_opts, opts, .expected_attach_type = expected_attach_type);

	return bpf_prog_load(type, name, "GPL", insns, count, &opts);
}

int kd_prog_info(int fd, struct kd_prog_info *ret)
{
	struct bpf_prog_info info = {};
	__u32 size = sizeof(info);
	int err = bpf_obj_get_info_by_fd(fd, &info, &size);

	if (err)
		return err;
	memset(ret, 0, sizeof(*ret));
	ret->id = info.id;
	ret->type = info.type;
	ret->btf_id = info.btf_id;
	ret->run_time_ns = info.run_time_ns;
	ret->run_count = info.run_cnt;
	memcpy(ret->name, info.name, sizeof(ret->name));
	return 0;
}

int kd_prog_maps(int fd, uint32_t *ids, uint32_t *count)
{
	struct bpf_prog_info info = { .nr_map_ids = *count, .map_ids = (__u64)(uintptr_t)ids };
	__u32 size = sizeof(info);
	int err = bpf_obj_get_info_by_fd(fd, &info, &size);

	if (!err && info.nr_map_ids < *count)
		*count = info.nr_map_ids;
	return err;
}

int kd_prog_run(int fd, struct kd_run *run)
{
	LIBBPF_OPTS(bpf_test_run_opts, opts, .data_in = run->data_in, .data_size_in = run->data_size_in,
		    .data_out = run->data_out, .data_size_out = run->data_size_out, .ctx_in = run->ctx_in,
		    .ctx_size_in = run->ctx_size_in, .ctx_out = run->ctx_out, .ctx_size_out = run->ctx_size_out,
		    .repeat = run->repeat, .flags = run->flags, .batch_size = run->batch_size, );
	int err = bpf_prog_test_run_opts(fd, &opts);

	run->data_size_out = opts.data_size_out;
	run->ctx_size_out = opts.ctx_size_out;
	run->retval = opts.retval;
	run->duration_ns = opts.duration;
	return err;
}

/* Once per packet; stops at the first that the kernel refuses, with `done` packets behind it. */
int kd_prog_run_many(int fd, struct kd_run_many *many, uint32_t *done)
{
	const char *in = many->data_in, *ctx = many->ctx_in;
	char *out = many->data_out, *end = out + many->data_size_out;
	int err;

	for (*done = 0; *done < many->count; ++*done) {
		uint32_t *size = &many->sizes[*done];
		LIBBPF_OPTS(bpf_test_run_opts, opts, .data_in = in, .data_size_in = *size, .data_out = out,
			    .data_size_out = end - out, .ctx_in = ctx, .ctx_size_in = ctx ? many->ctx_size_in : 0,
			    .repeat = 1, );

		err = bpf_prog_test_run_opts(fd, &opts);
		if (err)
			return err;
		in += *size;
		out += opts.data_size_out;
		ctx = ctx ? ctx + many->ctx_size_in : NULL;
		*size = opts.data_size_out;
		many->retvals[*done] = opts.retval;
	}
	return 0;
}

/* BPF_PROG_QUERY with the revision that tcx and cgroup hooks answer since 6.6 (libbpf 1.1 does not know it). */
int kd_prog_query(int target, int attach_type, uint32_t *ids, uint32_t *count, uint64_t *revision)
{
	struct {
		uint32_t target;
		uint32_t attach_type;
		uint32_t query_flags;
		uint32_t attach_flags;
		uint64_t prog_ids;
		uint32_t count;
		uint32_t pad;
		uint64_t prog_attach_flags;
		uint64_t link_ids;
		uint64_t link_attach_flags;
		uint64_t revision;
	} attr = {
		.target = target,
		.attach_type = attach_type,
		.prog_ids = (uint64_t)(uintptr_t)ids,
		.count = *count,
	};

	if (syscall(__NR_bpf, BPF_PROG_QUERY, &attr, sizeof(attr)) < 0)
		return -errno;
	*count = attr.count;
	*revision = attr.revision;
	return 0;
}
