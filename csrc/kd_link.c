/* SPDX-License-Identifier: Apache-2.0 */
#include "kd.h"

#include <sys/syscall.h>

#define KD_LINK_TYPE_TCX 11 /* since Linux 6.6: headers may be older */
#define KD_LINK_TYPE_SOCKMAP 14 /* since Linux 6.10 */

/*
 * BPF_LINK_CREATE as the kernel takes it: the four words that every link has, then `tail`, which is the
 * part of the union that belongs to the link's kind (ordering for tcx, hook for netfilter, ...).
 */
int kd_link_create(int prog_fd, int target, int attach_type, uint32_t flags, const void *tail, size_t tail_size)
{
	struct {
		uint32_t prog_fd;
		uint32_t target;
		uint32_t attach_type;
		uint32_t flags;
		uint8_t tail[48];
	} attr = {
		.prog_fd = prog_fd,
		.target = target,
		.attach_type = attach_type,
		.flags = flags,
	};
	int fd;

	if (tail_size > sizeof(attr.tail))
		return -E2BIG;
	memcpy(attr.tail, tail, tail_size);
	/* Only as long as needed: an older kernel refuses bytes it does not know. */
	fd = syscall(__NR_bpf, BPF_LINK_CREATE, &attr, offsetof(typeof(attr), tail) + tail_size);
	return fd < 0 ? -errno : fd;
}

/* Swap the program behind a link; with old_prog_fd >= 0 only if that one is there now. */
int kd_link_update(int link_fd, int prog_fd, int old_prog_fd)
{
	LIBBPF_OPTS(bpf_link_update_opts, opts);

	if (old_prog_fd >= 0) {
		opts.flags = BPF_F_REPLACE;
		opts.old_prog_fd = old_prog_fd;
	}
	return bpf_link_update(link_fd, prog_fd, &opts);
}

int kd_link_info(int fd, struct kd_link_info *ret)
{
	struct bpf_link_info info = {};
	__u32 size = sizeof(info);
	int err = bpf_obj_get_info_by_fd(fd, &info, &size);

	if (err)
		return err;
	memset(ret, 0, sizeof(*ret));
	ret->id = info.id;
	ret->type = info.type;
	ret->prog_id = info.prog_id;
	if (info.type == BPF_LINK_TYPE_XDP || info.type == KD_LINK_TYPE_TCX)
		ret->ifindex = info.xdp.ifindex; /* tcx has it at the same place */
	if (info.type == KD_LINK_TYPE_SOCKMAP)
		ret->map_id = info.xdp.ifindex; /* and so is this */
	return 0;
}

static void tc_hook_init(struct bpf_tc_hook *hook, int ifindex, int point)
{
	memset(hook, 0, sizeof(*hook));
	hook->sz = sizeof(*hook);
	hook->ifindex = ifindex;
	hook->attach_point = point;
}

/* Attach by a clsact filter, for kernels before tcx (6.6). The qdisc is made if absent and left in place. */
int kd_tc_attach(int ifindex, int point, int prog_fd, uint32_t priority, uint32_t handle, uint32_t *ret_priority,
		 uint32_t *ret_handle)
{
	LIBBPF_OPTS(bpf_tc_opts, opts, .prog_fd = prog_fd, .priority = priority, .handle = handle);
	struct bpf_tc_hook hook;
	int err;

	tc_hook_init(&hook, ifindex, point);
	err = bpf_tc_hook_create(&hook);
	if (err && err != -EEXIST)
		return err;
	err = bpf_tc_attach(&hook, &opts);
	*ret_priority = opts.priority;
	*ret_handle = opts.handle;
	return err;
}

int kd_tc_replace(int ifindex, int point, int prog_fd, uint32_t priority, uint32_t handle)
{
	LIBBPF_OPTS(bpf_tc_opts, opts, .prog_fd = prog_fd, .priority = priority, .handle = handle,
		    .flags = BPF_TC_F_REPLACE);
	struct bpf_tc_hook hook;

	tc_hook_init(&hook, ifindex, point);
	return bpf_tc_attach(&hook, &opts);
}

int kd_tc_detach(int ifindex, int point, uint32_t priority, uint32_t handle)
{
	LIBBPF_OPTS(bpf_tc_opts, opts, .priority = priority, .handle = handle);
	struct bpf_tc_hook hook;

	tc_hook_init(&hook, ifindex, point);
	return bpf_tc_detach(&hook, &opts);
}
