/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Structs of the kernel itself: what is read of them is found by name when the program is loaded.
 */
#ifndef KD_KERNEL_H
#define KD_KERNEL_H

#define KD_KERNEL __attribute__((preserve_access_index))

#endif /* KD_KERNEL_H */
