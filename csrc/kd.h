/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Every function that Python can call in the extension, by area; cdef/AREA.h is Python's view of the same.
 *
 * A function is here only where libbpf 1.1 has none, or where one crossing does a batch of work.
 * Out-parameters last, negative errno returned, a size with every buffer, no Python objects.
 */
#ifndef KD_H
#define KD_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

#include <bpf/bpf.h>
#include <bpf/btf.h>
#include <bpf/libbpf.h>
#include <linux/bpf.h>

/* ---- log: what libbpf and the verifier say, kept per thread ---- */
void kd_log_start(void);
size_t kd_log_size(void);
size_t kd_log_take(char *buf, size_t size);

/* ---- object: open from memory ---- */
struct bpf_object *kd_object_open(const void *data, size_t size, const char *name);

/* ---- prog: load bare instructions, run, describe ---- */
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
int kd_prog_query(int target, int attach_type, uint32_t *ids, uint32_t *count, uint64_t *revision);

/* ---- link: what libbpf 1.1 cannot say in its options ---- */
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

/* ---- sys ---- */
int kd_fs_type(const char *path, uint64_t *type);
int kd_mount_bpffs(const char *path);
void kd_store64_many(void *words, const void *places, const void *values, size_t count);
int kd_rcu_wait(void);

/* ---- maglev ---- */
struct kd_member {
	uint64_t hash; /* of what the backend is, not of its number: the same on every node */
	uint32_t value; /* what the table shall hold for it */
	uint32_t weight;
};
int kd_maglev_fill(const struct kd_member *members, size_t count, uint32_t *table, size_t size);

/* ---- dfa: one automaton of many regular expressions ---- */
enum kd_nfa_kind {
	KD_NFA_SET, /* takes a byte of set `arg`, then `next` */
	KD_NFA_SPLIT, /* `arg` or `next`, without a byte */
	KD_NFA_FIRST, /* `next`, before the first byte only */
	KD_NFA_LAST, /* `next`, behind the last byte only */
	KD_NFA_ACCEPT, /* rule `arg` holds */
};

struct kd_nfa_node {
	uint32_t kind;
	uint32_t arg;
	uint32_t next;
};

struct kd_dfa {
	const struct kd_nfa_node *nodes;
	const uint8_t *sets; /* for each set, whether it has each class of bytes */
	uint32_t count; /* of nodes */
	uint32_t start;
	uint32_t classes;
	uint32_t max_states;
	uint64_t max_work; /* nodes looked at, all in all */
	uint32_t *table; /* out: the next state, by state and class; room for max_states. State 0 is dead, 1 the start. */
	uint32_t *accepts; /* out: by state, where in `rules` its list begins */
	uint32_t *rules; /* out: lists of rules that hold, each behind its length; at 0 the empty one */
	uint32_t max_rules; /* room in `rules` */
	uint32_t states; /* out */
	uint32_t rules_used; /* out */
	uint32_t pad;
};

int kd_dfa_build(struct kd_dfa *dfa);

/* ---- map ---- */
struct kd_map_info {
	uint32_t type;
	uint32_t id;
	uint32_t key_size;
	uint32_t value_size;
	uint32_t max_entries;
	uint32_t flags;
	uint32_t btf_id;
	uint32_t btf_key_type_id;
	uint32_t btf_value_type_id;
	char name[16];
};

int kd_map_create(int type, const char *name, uint32_t key_size, uint32_t value_size, uint32_t max_entries,
		  uint32_t flags, int inner_fd);
int kd_map_info(int fd, struct kd_map_info *info);
int kd_btf_read(uint32_t id, void *buf, uint32_t size);

int kd_map_update_many(int fd, const void *keys, uint32_t key_size, const void *values, uint32_t value_size,
		       uint32_t count, uint64_t flags, uint32_t *done);
int kd_map_delete_many(int fd, const void *keys, uint32_t key_size, uint32_t count, uint32_t *deleted);
int kd_map_lookup_many(int fd, const void *keys, uint32_t key_size, uint32_t count, void *values,
		       uint32_t value_size, uint8_t *found);
int kd_map_dump(int fd, bool first, void *token, void *keys, uint32_t key_size, void *values, uint32_t value_size,
		uint32_t *count);

/* ---- ring ---- */
int kd_ring_drain(void *consumer, const void *producer, const void *data, uint32_t ring_size, void *out,
		  uint32_t out_size, uint32_t *sizes, uint32_t max_records);
int kd_ring_drain_records(void *consumer, const void *producer, const void *data, uint32_t ring_size, void *out,
			  uint32_t record_size, uint32_t capacity, uint64_t *written);

/* ---- netns ---- */
int kd_netns_create(const char *dir, const char *path);
int kd_netns_remove(const char *path);
int kd_netns_enter(int fd); /* moves the calling thread, for good */
int kd_netns_cookie(int fd, uint64_t *cookie);

#endif /* KD_H */
