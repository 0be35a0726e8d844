"""kd_dns and what is counted of it, messages of pods and name servers; names that may be asked for. See
``kd/dns.h``, ``kd/dns_rules.h`` and ``kd/dns_stream.h``.
"""

from __future__ import annotations

from enum import IntFlag
from typing import Annotated, ClassVar

from k8sdatapath.layout import array, layout_of, raw, struct, u8, u16, u32, u64, zeros
from k8sdatapath.tables.conntrack import Tuple

__all__ = [
    "CELLS",
    "FITS",
    "HEAD",
    "DnsBlock",
    "DnsFlags",
    "DnsHeadRow",
    "DnsNameKey",
    "DnsSetRow",
    "DnsToldRow",
]

CELLS = 32
FITS = 0x8000
"""In a cell, besides the next state: a name that ends there is one of the set."""


class DnsFlags(IntFlag):
    """``enum kd_dns_flags``."""

    SENT = 1
    ANSWERS = 2
    HELD = 4
    DENIED = 8
    AUDITED = 16
    OPENS = 32


@struct
class DnsHeadRow:
    """``struct kd_dns_head``: how a record begins, before the message."""

    way: Tuple
    time: u64
    flags: u32
    length: u32
    seq: u32
    ack: u32


@struct
class DnsToldRow:
    """``struct kd_dns_told``: what a CPU has told, and what it could not."""

    told: u64
    full: u64
    skipped: u64


@struct
class DnsBlock:
    """``struct kd_dns_block``."""

    cell: Annotated[tuple[int, ...], array(u16, CELLS)]


@struct
class DnsSetRow:
    """``struct kd_dns_set``."""

    cells: u32 = 0
    size: u32 = 0
    width: u16 = 0
    dot: u8 = 0
    pad: ClassVar = zeros(1)
    classes: Annotated[bytes, raw(256)] = bytes(256)


@struct
class DnsNameKey:
    """``struct kd_dns_name_key``."""

    set: u32
    name: u32


HEAD = layout_of(DnsHeadRow)
"""Packs and unpacks the beginning of a record."""
