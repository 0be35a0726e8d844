/* SPDX-License-Identifier: Apache-2.0 */
/* Load bare instructions, run, describe. */
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
	uint32_t data_size_out; /* in: room; out: bytes written */
	uint32_t ctx_size_in;
	uint32_t ctx_size_out; /* in: room; out: bytes written */
	uint32_t repeat;
	uint32_t flags;
	uint32_t batch_size;
	uint32_t retval;
	uint32_t duration_ns; /* mean of one run */
	uint32_t pad;
};

/* Packets that lie one behind the other, and what came out of them, likewise. */
struct kd_run_many {
	const void *data_in;
	const void *ctx_in; /* NULL, or a context for each packet */
	void *data_out;
	uint32_t *sizes; /* in: of each packet; out: of what came out */
	uint32_t *retvals;
	uint64_t data_size_out; /* room for all that comes out */
	uint32_t ctx_size_in; /* of one context */
	uint32_t count;
};

int kd_prog_load(int type, int expected_attach_type, const char *name, const void *insns, size_t count);
int kd_prog_info(int fd, struct kd_prog_info *info);
int kd_prog_run(int fd, struct kd_run *run);
int kd_prog_run_many(int fd, struct kd_run_many *many, uint32_t *done);
int kd_prog_maps(int fd, uint32_t *ids, uint32_t *count);
int kd_prog_query(int target, int attach_type, uint32_t *ids, uint32_t *count, uint64_t *revision);
