// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * What stands before the program under test when it runs many times on one packet: it puts the packet's headers
 * back as they were, gives them another flow, and tail-calls the program. At TC it also says what an earlier
 * program has left in tc_index.
 *
 * A flow is one client port (and, past 32,768 flows, another client address) and one of the services, whose
 * addresses follow each other; what a client's port has to do with the service differs from client to client, or
 * all would want the same ports of the same backends. Checksums are not brought into line: programs change them by difference, at
 * the same cost whether they were right or wrong.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/tcp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include <kd/config.h>

char _license[] SEC("license") = "Dual BSD/GPL";

#define FLOWS (1U << 15) /* of one client address: its ports from FIRST_PORT on */
#define FIRST_PORT 1024

KD_CONFIG(__u32, flows, "how many flows take turns, a power of two; 0: every packet begins a new one") = 1;
KD_CONFIG(__u32, services, "how many services the flows go to") = 1;
KD_CONFIG(__u32, mark, "what an earlier program has left in tc_index; 0: nothing") = 0;

struct headers {
	struct ethhdr eth;
	struct iphdr ip;
	struct tcphdr tcp;
} __attribute__((packed));

struct start {
	struct headers headers;
	__u8 pad[10];
};

/* The packet as it is to be, of flow 0. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct start);
} start SEC(".maps");

/* How many packets there were. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} count SEC(".maps");

/* The program under test. */
struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 1);
	__uint(key_size, sizeof(__u32));
	__uint(value_size, sizeof(__u32));
} tested SEC(".maps");

static __always_inline void set_flow(struct headers *headers, __u32 number)
{
	__u32 flow = (number * 40503) & ((flows ? flows : FLOWS) - 1); /* in no order that a cache foresees */
	__u32 client = flows ? 0 : number / FLOWS;
	__u32 service = ((__u64)((flow ^ client * 26083) & (FLOWS - 1)) * services) / FLOWS;

	headers->ip.saddr = bpf_htonl(bpf_ntohl(headers->ip.saddr) + client);
	headers->ip.daddr = bpf_htonl(bpf_ntohl(headers->ip.daddr) + service);
	headers->tcp.source = bpf_htons(FIRST_PORT + flow);
}

/* False: the packet is not as long as its headers. */
static __always_inline int restore(void *data, void *data_end)
{
	struct headers *headers = data;
	__u32 zero = 0;
	struct start *from = bpf_map_lookup_elem(&start, &zero);
	__u64 *number = bpf_map_lookup_elem(&count, &zero);

	if (!from || !number || data + sizeof(*headers) > data_end)
		return 0;
	*headers = from->headers;
	set_flow(headers, (*number)++);
	return 1;
}

#ifdef AT_XDP
typedef struct xdp_md context;
#define SECTION SEC("xdp")
#define PASS XDP_PASS
#else
typedef struct __sk_buff context;
#define SECTION SEC("tc")
#define PASS -1 /* TC_ACT_UNSPEC */
#endif

SECTION int again(context *ctx)
{
#ifndef AT_XDP
	ctx->tc_index = mark;
#endif
	if (restore((void *)(long)ctx->data, (void *)(long)ctx->data_end))
		bpf_tail_call(ctx, &tested, 0);
	return 99; /* no program answers this */
}

SECTION int empty(context *ctx)
{
	return PASS;
}
