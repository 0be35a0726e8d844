/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * What becomes of requests, and why. As in kd/verdict.h the list is told to user space by the object: variable
 * kd_l7_reasons of section .kd.reasons. Numbers up to 18, and FRAME and FIELD, are those of HTTPReason in k8sdatapath/model/http.py.
 */
#ifndef KD_L7_REASON_H
#define KD_L7_REASON_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <kd/config.h>
#include <kd/maps/l7.h>

/* clang-format off */
#define KD_L7_REASON_LIST(X)                                                                        \
	X(KD_HTTP_ALLOWED, 0, "a rule allows the request")                                            \
	X(KD_HTTP_NO_RULE, 1, "no rule allows the request")                                           \
	X(KD_HTTP_METHOD, 2, "it does not begin with a method and one space")                     \
	X(KD_HTTP_HTTP2, 3, "the preface of HTTP/2 behind a request, or another one")                \
	X(KD_HTTP_TARGET, 4, "its target is no path")                                             \
	X(KD_HTTP_PATH, 5, "a path that servers resolve: dots, empty parts, needless escapes")    \
	X(KD_HTTP_VERSION, 6, "neither HTTP/1.1 nor HTTP/1.0")                                    \
	X(KD_HTTP_LINE, 7, "a line that ends with LF alone, or has a CR inside")                  \
	X(KD_HTTP_NAME, 8, "a header without a name, or with a space before its colon")           \
	X(KD_HTTP_FOLD, 9, "a header that goes on in the next line")                                \
	X(KD_HTTP_VALUE, 10, "a control character in a header")                                   \
	X(KD_HTTP_LENGTH, 11, "a Content-Length that is no number, is too large, or is there twice") \
	X(KD_HTTP_ENCODING, 12, "a Transfer-Encoding other than chunked, or in HTTP/1.0")       \
	X(KD_HTTP_BOTH, 13, "Content-Length and Transfer-Encoding")                                   \
	X(KD_HTTP_HOST, 14, "more than one Host")                                                \
	X(KD_HTTP_UPGRADE, 15, "the connection is to become one of another protocol")              \
	X(KD_HTTP_TOO_LONG, 16, "a head of more than 8192 bytes")                                     \
	X(KD_HTTP_CHUNK, 17, "a chunk whose size is none, or that does not end where it says")    \
	X(KD_HTTP_TRAILER, 18, "headers behind the body")                                            \
	X(KD_HTTP_REVOKED, 19, "policies do not let its sender connect any more")                     \
	X(KD_HTTP_NO_RULES, 20, "the rules that it was to be held to are gone")                       \
	X(KD_HTTP_UNREADABLE, 21, "its bytes could not be read: a process had spliced them")                   \
	X(KD_HTTP_NOT_READ, 22, "packets dropped: nobody reads the requests of their socket")         \
	X(KD_HTTP_NO_ROOM, 23, "connections that are not served: there is room for no more")          \
	X(KD_HTTP_CONNECTION, 24, "connections whose requests are read")                              \
	X(KD_HTTP_REFUSED, 25, "denials that were answered with 403")                                 \
	X(KD_HTTP_LOST_EVENT, 26, "events that were lost: nobody took them in time")                  \
	X(KD_HTTP_FRAME, 27, "a frame of HTTP/2 that is not read: continued or padded headers, a push") \
	X(KD_HTTP_FIELD, 28, "headers of HTTP/2 that are malformed, or mean what is not there")
/* clang-format on */

#define KD_L7_ENUMERATOR(name, number, sentence) name = number,
#define KD_L7_SENTENCE(name, number, sentence) KD_TAG(#name ": " sentence)

enum kd_l7_reason { KD_L7_REASON_LIST(KD_L7_ENUMERATOR) };

const enum kd_l7_reason kd_l7_reasons SEC(".kd.reasons") KD_L7_REASON_LIST(KD_L7_SENTENCE) = KD_HTTP_ALLOWED;

static __always_inline void kd_l7_count(__u32 reason)
{
	__u64 *count = bpf_map_lookup_elem(&kd_l7_counts, &reason);

	if (count)
		(*count)++;
}

#endif /* KD_L7_REASON_H */
