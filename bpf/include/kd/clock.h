/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The time by which entries grow old. */
#ifndef KD_CLOCK_H
#define KD_CLOCK_H

#include <linux/types.h>
#include <bpf/bpf_helpers.h>

#ifndef KD_CLOCK /* of CLOCK_MONOTONIC, in nanoseconds */
#define KD_CLOCK bpf_ktime_get_coarse_ns
#endif

static __always_inline __u32 kd_now(void)
{
	return KD_CLOCK() / 1000000000;
}

#endif /* KD_CLOCK_H */
