"""kd_affinity: which backend a client stays with."""

from __future__ import annotations

from typing import ClassVar

from k8sdatapath.layout import addr, struct, u8, u32, zeros

__all__ = ["AffinityKey", "AffinityRow"]


@struct
class AffinityKey:
    """``struct kd_affinity_key``: a client of a service.

    With ``netns`` the first 8 bytes of ``client`` are the cookie of a network namespace.
    """

    client: addr
    service: u32
    netns: u8
    pad: ClassVar = zeros(3)


@struct
class AffinityRow:
    """``struct kd_affinity``: ``last_seen`` is in seconds of CLOCK_MONOTONIC."""

    backend: u32
    last_seen: u32
