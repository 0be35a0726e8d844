"""The newest events, as they came from the kernel."""

from __future__ import annotations

from threading import Lock

from k8sdatapath import maps
from k8sdatapath.tables.events import EVENT_SIZE, EventRow

__all__ = ["EventStore"]

_SIZE = EVENT_SIZE


class EventStore:
    """A fixed number of events, each under a number that only grows; the oldest are forgotten.

    :param ring: where they come from.
    :param capacity: how many there is room for.
    """

    def __init__(self, ring: maps.RingBuffer[EventRow], capacity: int) -> None:
        self.capacity = capacity
        self._ring = ring
        self._room = bytearray(capacity * _SIZE)
        self._written = 0
        self._lock = Lock()

    @property
    def span(self) -> tuple[int, int]:
        """The number of the oldest that is there, and of the next to come."""
        written = self._written
        return max(0, written - self.capacity), written

    def drain(self) -> int:
        """Take over all that the kernel has; returns how many these were."""
        with self._lock:
            before = self._written
            self._written = self._ring.drain_into(self._room, before)
            return self._written - before

    def add(self, record: bytes) -> None:
        """One more, of our own."""
        with self._lock:
            at = self._written % self.capacity * _SIZE
            self._room[at : at + _SIZE] = record
            self._written += 1

    def read(self, start: int, stop: int) -> tuple[int, bytes]:
        """Those from ``start``, before ``stop``, that are there: the number of the first, and the records."""
        with self._lock:
            oldest, end = self.span
            start = min(max(start, oldest), end)
            stop = max(start, min(stop, end))
            first, last = start % self.capacity, stop % self.capacity
            if start == stop:
                return start, b""
            if first < last:
                return start, bytes(self._room[first * _SIZE : last * _SIZE])
            return start, bytes(self._room[first * _SIZE :]) + bytes(self._room[: last * _SIZE])
