/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Where a packet's fate was decided: outside of kd/verdict.h the name of a reason stands for a number with the reason in
 * its lowest bits, then the line that it stands in, then the file. It is negative, as the reason is, and a constant: it
 * costs nothing to carry. Touches no map.
 */
#ifndef KD_HERE_H
#define KD_HERE_H

#include <linux/types.h>
#include <bpf/bpf_helpers.h>

#define KD_REASON_BITS 7
#define KD_LINE_BITS 10
#define KD_FILE_BITS 14
#define KD_FILE_NAME 24 /* letters that count */

/* The compiler makes a constant of it. The same is in k8sdatapath/tables/events.py. */
static __always_inline __u32 kd_file_number(const char *name, __u32 size)
{
	__u32 number = 0;

#pragma unroll
	for (__u32 i = 0; i < KD_FILE_NAME; i++)
		if (i + 1 < size)
			number = number * 31 + (__u8)name[i];
	return number & ((1 << KD_FILE_BITS) - 1);
}

#define KD_HERE(reason)                                                                             \
	(-(int)(-(int)(reason) | (__LINE__ & ((1 << KD_LINE_BITS) - 1)) << KD_REASON_BITS |          \
		kd_file_number(__FILE_NAME__, sizeof(__FILE_NAME__)) << (KD_REASON_BITS + KD_LINE_BITS)))

/* The bare reason; of a verdict the verdict. */
static __always_inline int kd_reason(int result)
{
	return result < 0 ? -(-result & ((1 << KD_REASON_BITS) - 1)) : result;
}

#define KD_IS(result, reason) (kd_reason(result) == kd_reason(reason))

#endif /* KD_HERE_H */
