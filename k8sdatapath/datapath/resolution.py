"""Who would answer at a frontend."""

from __future__ import annotations

from collections.abc import Mapping

from attrs import frozen

from k8sdatapath.model import Backend, Frontend, Selection

__all__ = ["Resolution"]


@frozen
class Resolution:
    """Who would answer a new connection, read from the kernel's tables.

    :ivar shares: backend -> its share of new flows, summing to 1; empty if connections are refused.
    """

    frontend: Frontend
    selection: Selection
    shares: Mapping[Backend, float]
