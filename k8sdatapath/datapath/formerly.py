"""What numbers and addresses have stood for, before they stood for something else."""

from __future__ import annotations

import time
from typing import Generic, TypeVar

__all__ = ["Formerly"]

K = TypeVar("K")
V = TypeVar("V")

_SPANS = 16
"""Of one key; of more the oldest are forgotten."""


class Formerly(Generic[K, V]):
    """Former values by key, each with the time until which it was right: what has happened is told by them.

    Values are noted by one thread at a time, and may be asked for by any.

    :param most: keys; of more the one that has been there longest is forgotten.
    """

    def __init__(self, most: int = 16384) -> None:
        self._most = most
        self._spans: dict[K, tuple[tuple[int, V], ...]] = {}

    def left(self, key: K, value: V) -> None:
        """From now on the key stands for this no more."""
        self._spans[key] = (*self._spans.get(key, ())[1 - _SPANS :], (time.monotonic_ns(), value))
        if len(self._spans) > self._most:
            del self._spans[next(iter(self._spans))]

    def last(self, key: K) -> V | None:
        """What a key stood for before now, if anybody remembers."""
        spans = self._spans.get(key)
        return spans[-1][1] if spans else None

    def at(self, key: K, when: int | None) -> V | None:
        """What a key stood for, if it was something else than now.

        :param when: nanoseconds of CLOCK_MONOTONIC; None is now.
        """
        if when is not None:
            for until, value in self._spans.get(key, ()):
                if when < until:
                    return value
        return None
