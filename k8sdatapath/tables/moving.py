"""kd_moving: how far flows and clients are on their way into other tables."""

from __future__ import annotations

from enum import IntEnum

__all__ = ["Step"]


class Step(IntEnum):
    """``enum kd_move``, which says what each means."""

    OLD = 0
    BOTH = 1
    TAKING = 2
    TAKEN = 3
    NEW = 4
    OVER = 5
