/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Tables of HPACK: RFC 7541, appendices A and B.
 */
#ifndef KD_HTTP2_TABLES_H
#define KD_HTTP2_TABLES_H

#include <linux/types.h>
#include <kd/http2_types.h>

struct kd_h2_codes {
	__u32 first;
	__u16 place;
	__u16 count;
};

struct kd_h2_static {
	__u8 kind;
	__u8 name;
	__u8 value;
	char text[29]; /* the name, unless it begins with a colon, and the value */
};

#define KD_H2_STATIC(kind, name, value) { kind, sizeof(name) - 1, sizeof(value) - 1, name value }

/* clang-format off */
/* Of the codes of so many bits: the first one, its place in the list below, and how many there are. */
static const struct kd_h2_codes kd_h2_codes[32] = {
	[5] = { 0x0, 0, 10 },
	[6] = { 0x14, 10, 26 },
	[7] = { 0x5c, 36, 32 },
	[8] = { 0xf8, 68, 6 },
	[10] = { 0x3f8, 74, 5 },
	[11] = { 0x7fa, 79, 3 },
	[12] = { 0xffa, 82, 2 },
	[13] = { 0x1ff8, 84, 6 },
	[14] = { 0x3ffc, 90, 2 },
	[15] = { 0x7ffc, 92, 3 },
	[19] = { 0x7fff0, 95, 3 },
	[20] = { 0xfffe6, 98, 8 },
	[21] = { 0x1fffdc, 106, 13 },
	[22] = { 0x3fffd2, 119, 26 },
	[23] = { 0x7fffd8, 145, 29 },
	[24] = { 0xffffea, 174, 12 },
	[25] = { 0x1ffffec, 186, 4 },
	[26] = { 0x3ffffe0, 190, 15 },
	[27] = { 0x7ffffde, 205, 19 },
	[28] = { 0xfffffe2, 224, 29 },
	[30] = { 0x3ffffffc, 253, 4 },
};

/* The octets by their codes; the last code is the end of a string, and is not used. */
static const __u8 kd_h2_octets[256] = {
	48, 49, 50, 97, 99, 101, 105, 111, 115, 116, 32, 37, 45, 46, 47, 51,
	52, 53, 54, 55, 56, 57, 61, 65, 95, 98, 100, 102, 103, 104, 108, 109,
	110, 112, 114, 117, 58, 66, 67, 68, 69, 70, 71, 72, 73, 74, 75, 76,
	77, 78, 79, 80, 81, 82, 83, 84, 85, 86, 87, 89, 106, 107, 113, 118,
	119, 120, 121, 122, 38, 42, 44, 59, 88, 90, 33, 34, 40, 41, 63, 39,
	43, 124, 35, 62, 0, 36, 64, 91, 93, 126, 94, 125, 60, 96, 123, 92,
	195, 208, 128, 130, 131, 162, 184, 194, 224, 226, 153, 161, 167, 172, 176, 177,
	179, 209, 216, 217, 227, 229, 230, 129, 132, 133, 134, 136, 146, 154, 156, 160,
	163, 164, 169, 170, 173, 178, 181, 185, 186, 187, 189, 190, 196, 198, 228, 232,
	233, 1, 135, 137, 138, 139, 140, 141, 143, 147, 149, 150, 151, 152, 155, 157,
	158, 165, 166, 168, 174, 175, 180, 182, 183, 188, 191, 197, 231, 239, 9, 142,
	144, 145, 148, 159, 171, 206, 215, 225, 236, 237, 199, 207, 234, 235, 192, 193,
	200, 201, 202, 205, 210, 213, 218, 219, 238, 240, 242, 243, 255, 203, 204, 211,
	212, 214, 221, 222, 223, 241, 244, 245, 246, 247, 248, 250, 251, 252, 253, 254,
	2, 3, 4, 5, 6, 7, 8, 11, 12, 14, 15, 16, 17, 18, 19, 20,
	21, 23, 24, 25, 26, 27, 28, 29, 30, 31, 127, 220, 249, 10, 13, 22,
};

static const struct kd_h2_static kd_h2_static[64] = {
	[1] = KD_H2_STATIC(KD_H2_AUTHORITY, "", ""),
	[2] = KD_H2_STATIC(KD_H2_METHOD, "", "GET"),
	[3] = KD_H2_STATIC(KD_H2_METHOD, "", "POST"),
	[4] = KD_H2_STATIC(KD_H2_PATH, "", "/"),
	[5] = KD_H2_STATIC(KD_H2_PATH, "", "/index.html"),
	[6] = KD_H2_STATIC(KD_H2_SCHEME, "", "http"),
	[7] = KD_H2_STATIC(KD_H2_SCHEME, "", "https"),
	[8] = KD_H2_STATIC(KD_H2_STATUS, "", "200"),
	[9] = KD_H2_STATIC(KD_H2_STATUS, "", "204"),
	[10] = KD_H2_STATIC(KD_H2_STATUS, "", "206"),
	[11] = KD_H2_STATIC(KD_H2_STATUS, "", "304"),
	[12] = KD_H2_STATIC(KD_H2_STATUS, "", "400"),
	[13] = KD_H2_STATIC(KD_H2_STATUS, "", "404"),
	[14] = KD_H2_STATIC(KD_H2_STATUS, "", "500"),
	[15] = KD_H2_STATIC(KD_H2_REGULAR, "accept-charset", ""),
	[16] = KD_H2_STATIC(KD_H2_REGULAR, "accept-encoding", "gzip, deflate"),
	[17] = KD_H2_STATIC(KD_H2_REGULAR, "accept-language", ""),
	[18] = KD_H2_STATIC(KD_H2_REGULAR, "accept-ranges", ""),
	[19] = KD_H2_STATIC(KD_H2_REGULAR, "accept", ""),
	[20] = KD_H2_STATIC(KD_H2_REGULAR, "access-control-allow-origin", ""),
	[21] = KD_H2_STATIC(KD_H2_REGULAR, "age", ""),
	[22] = KD_H2_STATIC(KD_H2_REGULAR, "allow", ""),
	[23] = KD_H2_STATIC(KD_H2_REGULAR, "authorization", ""),
	[24] = KD_H2_STATIC(KD_H2_REGULAR, "cache-control", ""),
	[25] = KD_H2_STATIC(KD_H2_REGULAR, "content-disposition", ""),
	[26] = KD_H2_STATIC(KD_H2_REGULAR, "content-encoding", ""),
	[27] = KD_H2_STATIC(KD_H2_REGULAR, "content-language", ""),
	[28] = KD_H2_STATIC(KD_H2_REGULAR, "content-length", ""),
	[29] = KD_H2_STATIC(KD_H2_REGULAR, "content-location", ""),
	[30] = KD_H2_STATIC(KD_H2_REGULAR, "content-range", ""),
	[31] = KD_H2_STATIC(KD_H2_REGULAR, "content-type", ""),
	[32] = KD_H2_STATIC(KD_H2_REGULAR, "cookie", ""),
	[33] = KD_H2_STATIC(KD_H2_REGULAR, "date", ""),
	[34] = KD_H2_STATIC(KD_H2_REGULAR, "etag", ""),
	[35] = KD_H2_STATIC(KD_H2_REGULAR, "expect", ""),
	[36] = KD_H2_STATIC(KD_H2_REGULAR, "expires", ""),
	[37] = KD_H2_STATIC(KD_H2_REGULAR, "from", ""),
	[38] = KD_H2_STATIC(KD_H2_REGULAR, "host", ""),
	[39] = KD_H2_STATIC(KD_H2_REGULAR, "if-match", ""),
	[40] = KD_H2_STATIC(KD_H2_REGULAR, "if-modified-since", ""),
	[41] = KD_H2_STATIC(KD_H2_REGULAR, "if-none-match", ""),
	[42] = KD_H2_STATIC(KD_H2_REGULAR, "if-range", ""),
	[43] = KD_H2_STATIC(KD_H2_REGULAR, "if-unmodified-since", ""),
	[44] = KD_H2_STATIC(KD_H2_REGULAR, "last-modified", ""),
	[45] = KD_H2_STATIC(KD_H2_REGULAR, "link", ""),
	[46] = KD_H2_STATIC(KD_H2_REGULAR, "location", ""),
	[47] = KD_H2_STATIC(KD_H2_REGULAR, "max-forwards", ""),
	[48] = KD_H2_STATIC(KD_H2_REGULAR, "proxy-authenticate", ""),
	[49] = KD_H2_STATIC(KD_H2_REGULAR, "proxy-authorization", ""),
	[50] = KD_H2_STATIC(KD_H2_REGULAR, "range", ""),
	[51] = KD_H2_STATIC(KD_H2_REGULAR, "referer", ""),
	[52] = KD_H2_STATIC(KD_H2_REGULAR, "refresh", ""),
	[53] = KD_H2_STATIC(KD_H2_REGULAR, "retry-after", ""),
	[54] = KD_H2_STATIC(KD_H2_REGULAR, "server", ""),
	[55] = KD_H2_STATIC(KD_H2_REGULAR, "set-cookie", ""),
	[56] = KD_H2_STATIC(KD_H2_REGULAR, "strict-transport-security", ""),
	[57] = KD_H2_STATIC(KD_H2_REGULAR, "transfer-encoding", ""),
	[58] = KD_H2_STATIC(KD_H2_REGULAR, "user-agent", ""),
	[59] = KD_H2_STATIC(KD_H2_REGULAR, "vary", ""),
	[60] = KD_H2_STATIC(KD_H2_REGULAR, "via", ""),
	[61] = KD_H2_STATIC(KD_H2_REGULAR, "www-authenticate", ""),
};
/* clang-format on */

#endif /* KD_HTTP2_TABLES_H */
