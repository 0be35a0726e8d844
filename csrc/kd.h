/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Every function that Python can call in the extension: cdef/AREA.h declares those of an area, for both languages.
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

#include "cdef/dfa.h"
#include "cdef/link.h"
#include "cdef/log.h"
#include "cdef/maglev.h"
#include "cdef/map.h"
#include "cdef/netns.h"
#include "cdef/object.h"
#include "cdef/prog.h"
#include "cdef/ring.h"
#include "cdef/sys.h"

#endif /* KD_H */
