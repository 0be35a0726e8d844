// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* A pod's programs, while other pods come. */
#include "arrives.h"
#include "../../bpf/pod.bpf.c"
