"""kd_dns and what is counted of it: messages of pods and name servers. See ``kd/dns.h``."""

from __future__ import annotations

from enum import IntFlag

from k8sdatapath.layout import layout_of, struct, u32, u64
from k8sdatapath.tables.conntrack import Tuple

__all__ = ["HEAD", "DnsFlags", "DnsHeadRow", "DnsToldRow"]


class DnsFlags(IntFlag):
    """``enum kd_dns_flags``."""

    SENT = 1
    ANSWERS = 2


@struct
class DnsHeadRow:
    """``struct kd_dns_head``: how a record begins, before the message."""

    way: Tuple
    time: u64
    flags: u32
    length: u32


@struct
class DnsToldRow:
    """``struct kd_dns_told``: what a CPU has told, and what it could not."""

    told: u64
    full: u64
    skipped: u64


HEAD = layout_of(DnsHeadRow)
"""Packs and unpacks the beginning of a record."""
