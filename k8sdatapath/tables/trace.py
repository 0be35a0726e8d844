"""kd_trace: what an explaining program did with a packet, step by step."""

from __future__ import annotations

from enum import IntEnum

from k8sdatapath.layout import i32, struct, u32
from k8sdatapath.tables.conntrack import Tuple

__all__ = ["StepKind", "TracedRow"]


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
    ROUTE = 18
    RESULT = 19


@struct
class TracedRow:
    """``struct kd_traced``."""

    tuple: Tuple
    step: u32
    value: i32
    more: u32
