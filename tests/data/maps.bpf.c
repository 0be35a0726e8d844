// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* C structs of many shapes, maps that hold them, and programs that use the maps: for the tests of maps and layouts. */
#include <linux/bpf.h>
#include <linux/in6.h>
#include <bpf/bpf_helpers.h>
#include <kd/config.h>
#include <kd/types.h>

char _license[] SEC("license") = "Dual BSD/GPL";

enum color { RED, GREEN };

struct point {
	__u16 x;
	__be16 y;
};

struct sample {
	struct kd_addr source;
	struct point at;
	__u32 history[3];
	__u64 total;
	__s32 delta;
	enum color color;
	char name[8];
	__u8 mac[6];
	__u8 pad[2];
};

struct odd {
	__u32 low : 4;
	__u32 high : 28;
	union {
		__u32 number;
		__u8 bytes[4];
	};
	struct in6_addr other;
	const char *text;
	__u32 grid[2][3];
};

struct holey {
	__u8 kind;
	/* the compiler leaves three bytes here */
	__u32 count;
};

struct tally {
	__u64 packets;
	__u64 bytes;
};

struct prefix {
	__u32 bits;
	struct kd_addr addr;
};

KD_CONFIG(__u32, limit, "how many at once") = 7;
KD_CONFIG(__be16, listen, "where to listen") = 0;

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16);
	__type(key, struct point);
	__type(value, struct sample);
} samples SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16);
	__type(key, int);
	__type(value, struct odd);
} odds SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 2);
	__type(key, int);
	__type(value, struct holey);
} holes SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 16);
	__type(key, struct prefix);
	__type(value, struct tally);
} zones SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4096);
} events SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 4);
	__type(key, int);
	__type(value, int);
} jumps SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_SOCKHASH);
	__uint(max_entries, 16);
	__type(key, __u32);
	__type(value, __u64);
} peers SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_SOCKMAP);
	__uint(max_entries, 4);
	__type(key, int);
	__type(value, int);
} numbered SEC(".maps");

struct inner {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 4);
	__type(key, __u32);
	__type(value, __u32);
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH_OF_MAPS);
	__uint(max_entries, 64);
	__type(key, __u32);
	__array(values, struct inner);
} tables SEC(".maps");

/* Appends (a number of events, payload byte, size) as the packet's first bytes ask; answers how many it could not. */
SEC("tc")
int produce(struct __sk_buff *skb)
{
	__u8 ask[3];
	int lost = 0;

	if (bpf_skb_load_bytes(skb, 0, ask, sizeof(ask)))
		return -1;
	for (int i = 0; i < 64; i++) {
		if (i >= ask[0])
			break;
		if (ask[2] == 8) {
			__u64 event = (__u64)ask[1] << 32 | i;

			lost += bpf_ringbuf_output(&events, &event, sizeof(event), 0) != 0;
		} else {
			void *space = bpf_ringbuf_reserve(&events, 20, 0);

			if (!space) {
				lost++;
				continue;
			}
			__builtin_memset(space, ask[1], 20);
			if (ask[2]) /* 0: think better of it */
				bpf_ringbuf_submit(space, 0);
			else
				bpf_ringbuf_discard(space, 0);
		}
	}
	return lost;
}

SEC("tc")
int jump(struct __sk_buff *skb)
{
	bpf_tail_call(skb, &jumps, 2);
	return 1;
}

SEC("tc")
int landed(struct __sk_buff *skb)
{
	return 42;
}

/* Adds up the table that the packet's first byte names. */
SEC("tc")
int sum(struct __sk_buff *skb)
{
	__u32 name = 0, total = 0;
	void *table;

	if (bpf_skb_load_bytes(skb, 0, &name, 1))
		return -1;
	table = bpf_map_lookup_elem(&tables, &name);
	if (!table)
		return -2;
	for (__u32 i = 0; i < 4; i++) {
		__u32 *value = bpf_map_lookup_elem(table, &i);

		total += value ? *value : 0;
	}
	return total;
}
