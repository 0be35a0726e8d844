"""kd_trace: what an explaining program did with a packet, step by step."""

from __future__ import annotations

from enum import IntEnum, IntFlag
from typing import ClassVar

from k8sdatapath.layout import i32, struct, u32, u64, zeros
from k8sdatapath.tables.conntrack import Tuple

__all__ = ["Left", "NetnsClient", "Said", "SkbContext", "StepKind", "TracedRow", "XdpContext"]


class StepKind(IntEnum):
    """``enum kd_step``, see ``kd/trace.h``."""

    NONE = 0
    PACKET = 1
    LOOKUP = 2
    NO_FLOW = 3
    OVER = 4
    FLOW = 5
    NO_FRONTEND = 6
    FRONTEND = 7
    SOURCE = 8
    SCOPE = 9
    AFFINITY = 10
    SLOT = 11
    BACKEND = 12
    NAME = 13
    NEW_FLOW = 14
    REWRITE = 15
    ICMP = 16
    POD = 17
    PEER = 18
    ROUTE = 19
    RESULT = 20
    HELD = 21
    LEFT = 22
    POLICY = 23


class Said(IntFlag):
    """``enum kd_said``, see ``kd/trace.h``."""

    EGRESS = 1
    RECEIVER = 2
    DENIED = 4
    AUDITED = 8
    OPEN = 16
    REQUESTS = 32


class Left(IntEnum):
    """``enum kd_left``, see ``kd/trace.h``."""

    ODD = 1
    ROUTE = 2
    FORWARDED = 3
    DEVICE = 4
    NO_POD = 5
    KNOWN = 6
    KEEPS = 7
    ANSWER = 8


@struct
class TracedRow:
    """``struct kd_traced``."""

    tuple: Tuple
    step: u32
    value: i32
    more: u32


@struct
class SkbContext:
    """What a test run takes of ``struct __sk_buff``: the device, that which it came in through before, and in
    ``cb`` the cookie of a namespace.
    """

    before: ClassVar = zeros(36)
    ingress_ifindex: u32
    ifindex: u32
    tc_index: ClassVar = zeros(4)
    cookie: u64
    rest: ClassVar = zeros(136)


@struct
class XdpContext:
    """What a test run takes of ``struct xdp_md``: where the packet ends, and the device."""

    data: ClassVar = zeros(4)
    data_end: u32
    data_meta: ClassVar = zeros(4)
    ingress_ifindex: u32
    rest: ClassVar = zeros(8)


@struct
class NetnsClient:
    """A client in :class:`~k8sdatapath.tables.affinity.AffinityKey` that is a network namespace."""

    cookie: u64
    pad: ClassVar = zeros(8)
