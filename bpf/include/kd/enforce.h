/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#ifndef KD_ENFORCE_H
#define KD_ENFORCE_H

#include <stdbool.h>
#include <kd/config.h>

KD_CONFIG(bool, enforce, "pods send and receive what policies allow") = false;

#endif /* KD_ENFORCE_H */
