"""kd_frontends: what clients dial."""

from __future__ import annotations

from typing import ClassVar

from k8sdatapath.layout import addr, be16, struct, u8, u16, u32, zeros

__all__ = ["FrontendKey", "FrontendRow"]


@struct
class FrontendKey:
    """``struct kd_frontend_key``."""

    addr: addr
    port: be16
    protocol: u8
    pad: ClassVar = zeros(1)


@struct
class FrontendRow:
    """``struct kd_frontend``: the number under which the service's sets are found."""

    service: u32
    flags: u16
    selection: u8
    pad: ClassVar = zeros(1)
