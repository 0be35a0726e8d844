"""kd_frontends: what clients dial."""

from __future__ import annotations

from enum import IntFlag
from typing import ClassVar

from k8sdatapath.layout import addr, be16, struct, u8, u16, u32, zeros

__all__ = ["NO_SERVICE", "FrontendFlags", "FrontendKey", "FrontendRow"]

NO_SERVICE = 0xFFFFFFFF
"""Service of the row with port 0 and protocol 0: the address belongs to services only."""


class FrontendFlags(IntFlag):
    """``enum kd_frontend_flags``."""

    INTERNAL_LOCAL = 1
    EXTERNAL_LOCAL = 2
    SOURCE_RANGES = 4
    HAS_ENDPOINTS = 8
    LOOPBACK = 16


@struct
class FrontendKey:
    """``struct kd_frontend_key``."""

    addr: addr
    port: be16
    protocol: u8
    pad: ClassVar = zeros(1)


@struct
class FrontendRow:
    """``struct kd_frontend``: the number under which the service's sets are found, and how it is served.

    ``kind`` is that of ``enum kd_frontend_kind``; ``affinity_timeout`` is in seconds, 0 for none; ``turn`` is
    counted by the programs, in round robin.
    """

    service: u32
    affinity_timeout: u32
    turn: u32
    flags: u16
    selection: u8
    kind: u8
