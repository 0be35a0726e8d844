// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * The node's uplinks again, before host.bpf.c: the packets of flows between machines elsewhere.
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <kd/verdict.h>
#include <kd/xdp.h>

char _license[] SEC("license") = "Dual BSD/GPL";

/* What passes is counted by the program at tc. */
SEC("xdp")
int xdp_in(struct xdp_md *ctx)
{
	__u32 bytes = ctx->data_end - ctx->data;
	int result = kd_xdp_continue(ctx);

	if (result == KD_PASS)
		return XDP_PASS;
	kd_count(result, bytes);
	return result == KD_TO_DEVICE ? XDP_TX : XDP_DROP;
}
