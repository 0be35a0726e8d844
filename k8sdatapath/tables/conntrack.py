"""kd_conntrack: flows that were translated per packet, one entry per direction; kd_losses: what it forgot."""

from __future__ import annotations

from enum import IntEnum, IntFlag
from typing import ClassVar

from k8sdatapath.layout import addr, be16, struct, u8, u32, u64, zeros

__all__ = ["ConntrackRow", "FlowFlags", "Loss", "Tuple"]


class FlowFlags(IntFlag):
    """``enum kd_ct_flags``."""

    REPLY = 1
    FIN = 2
    RST = 4
    SEEN_REPLY = 8
    SOURCE = 16
    GONE = 32
    BURIED = 64
    ENDED = 128
    ALONE = 256


@struct
class Tuple:
    """``struct kd_tuple``: a flow as one direction of it appears on the wire."""

    src: addr
    dst: addr
    sport: be16
    dport: be16
    protocol: u8
    pad: ClassVar = zeros(3)


@struct
class ConntrackRow:
    """``struct kd_ct``: the tuple that this one becomes. Its times are in seconds of CLOCK_MONOTONIC."""

    to: Tuple
    packets: u64
    bytes: u64
    backend: u32
    last_seen: u32
    flags: u32
    service: u32 = 0
    told: u32 = 0
    tcp_flags: u8 = 0
    pad: ClassVar = zeros(3)


class Loss(IntEnum):
    """``enum kd_loss``: what the full table forgot of a flow that was alive."""

    HALF = 0
    FLOW = 1
