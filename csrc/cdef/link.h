/* SPDX-License-Identifier: Apache-2.0 */
/* What libbpf 1.1 cannot say in its options. */
struct kd_link_info {
	uint32_t id;
	uint32_t type;
	uint32_t prog_id;
	uint32_t ifindex; /* of a tcx or xdp link; 0 once the device is gone */
	uint32_t map_id; /* of a link to a map of sockets */
};

int kd_link_create(int prog_fd, int target, int attach_type, uint32_t flags, const void *tail, size_t tail_size);
int kd_link_update(int link_fd, int prog_fd, int old_prog_fd);
int kd_link_info(int fd, struct kd_link_info *info);
int kd_tc_attach(int ifindex, int point, int prog_fd, uint32_t priority, uint32_t handle, uint32_t *ret_priority,
		 uint32_t *ret_handle);
int kd_tc_replace(int ifindex, int point, int prog_fd, uint32_t priority, uint32_t handle);
int kd_tc_detach(int ifindex, int point, uint32_t priority, uint32_t handle);
