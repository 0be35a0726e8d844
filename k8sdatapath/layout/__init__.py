"""C structs as Python classes: declared once, packed fast, compared with the kernel's own type information.

::

    @struct
    class FrontendKey:               # struct kd_frontend_key {
        addr: addr                   #     struct kd_addr addr;
        port: be16                   #     __be16 port;
        protocol: u8                 #     __u8 protocol;
        pad: ClassVar = zeros(1)     #     __u8 pad;
                                     # };

    layout_of(FrontendKey).pack(FrontendKey(ip_address("10.96.0.10"), 80, 6))

A field's type says what Python holds and what the bytes are: ``u8 u16 u32 u64 i32 i64`` are integers in
the machine's byte order, ``be16 be32 be64`` integers on the wire, ``addr`` an address of either family in
16 bytes, ``mac`` six bytes as text, and inside ``Annotated``: ``cstr(n)``, ``raw(n)``, ``array(type, n)``.
Members follow C's alignment. There are no implicit holes: where C would leave one, ``zeros(n)`` must stand.
"""

from k8sdatapath.layout.codecs import (
    addr,
    be16,
    be32,
    be64,
    cstr,
    i32,
    i64,
    mac,
    network,
    raw,
    u8,
    u16,
    u32,
    u64,
    zeros,
)
from k8sdatapath.layout.structs import Field, Layout, array, layout_of, struct

__all__ = [
    "Field",
    "Layout",
    "addr",
    "array",
    "be16",
    "be32",
    "be64",
    "cstr",
    "i32",
    "i64",
    "layout_of",
    "mac",
    "network",
    "raw",
    "struct",
    "u8",
    "u16",
    "u32",
    "u64",
    "zeros",
]
