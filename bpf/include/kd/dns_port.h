/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Where name servers listen, and whether anybody reads what they are asked there. */
#ifndef KD_DNS_PORT_H
#define KD_DNS_PORT_H

#include <stdbool.h>
#include <bpf/bpf_endian.h>
#include <kd/config.h>

KD_CONFIG(bool, dns, "copy what pods ask name servers, and what they are answered, to user space") = false;

#define KD_DNS_PORT bpf_htons(53)

#endif /* KD_DNS_PORT_H */
