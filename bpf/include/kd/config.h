/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Settings of a program, fixed when it is loaded.
 *
 *	KD_CONFIG(bool, redirect, "hand packets to their device directly, past the node's stack") = true;
 *
 * declares a constant that user space sets by name before loading: ObjectSpec.with_config(redirect=False).
 * The sentence travels in the object's BTF, so that tools can tell what a setting means. The section is
 * frozen before the verifier runs: code behind a setting that is off costs nothing, it is cut out.
 */
#ifndef KD_CONFIG_H
#define KD_CONFIG_H

#include <stdbool.h>
#include <linux/types.h>
#include <bpf/bpf_helpers.h>

#define KD_TAG(sentence) __attribute__((btf_decl_tag(sentence)))

#define KD_CONFIG(type, name, sentence) const volatile type name SEC(".rodata.config") KD_TAG(sentence)

/* A function that is not inlined: what is rare, or large, has a stack of its own. Not every program calls it. */
#define KD_SUBPROGRAM static __attribute__((noinline, unused))

/* One that the verifier goes through once, by itself, and not again for every way to it. It must not trust pointers. */
#define KD_FUNCTION __attribute__((noinline, unused))

#endif /* KD_CONFIG_H */
