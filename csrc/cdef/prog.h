struct kd_prog_info {
	uint32_t id;
	uint32_t type;
	uint32_t btf_id;
	uint32_t pad;
	uint64_t run_time_ns;
	uint64_t run_count;
	char name[16];
};

struct kd_run {
	const void *data_in;
	void *data_out;
	const void *ctx_in;
	void *ctx_out;
	uint32_t data_size_in;
	uint32_t data_size_out;
	uint32_t ctx_size_in;
	uint32_t ctx_size_out;
	uint32_t repeat;
	uint32_t flags;
	uint32_t batch_size;
	uint32_t retval;
	uint32_t duration_ns;
	uint32_t pad;
};

struct kd_run_many {
	const void *data_in;
	const void *ctx_in;
	void *data_out;
	uint32_t *sizes;
	uint32_t *retvals;
	uint64_t data_size_out;
	uint32_t ctx_size_in;
	uint32_t count;
};

int kd_prog_load(int type, int expected_attach_type, const char *name, const void *insns, size_t count);
int kd_prog_info(int fd, struct kd_prog_info *info);
int kd_prog_run(int fd, struct kd_run *run);
int kd_prog_run_many(int fd, struct kd_run_many *many, uint32_t *done);
int kd_prog_query(int target, int attach_type, uint32_t *ids, uint32_t *count, uint64_t *revision);
int libbpf_probe_bpf_helper(int prog_type, int helper_id, const void *opts);
int bpf_prog_get_fd_by_id(uint32_t id);
int bpf_prog_attach(int prog_fd, int attachable_fd, int type, unsigned int flags);
int bpf_prog_detach2(int prog_fd, int attachable_fd, int type);
