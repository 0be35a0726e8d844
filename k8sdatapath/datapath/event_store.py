"""The newest events, as they came from the kernel."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from operator import itemgetter
from threading import Lock

from k8sdatapath.datapath.event_source import EventSource
from k8sdatapath.tables.events import EVENT_SIZE, EVENT_TIME

__all__ = ["EventStore"]

_SIZE, _TIME = EVENT_SIZE, EVENT_TIME


class EventStore:
    """A fixed number of events, each under a number that only grows; the oldest are forgotten.

    :param source: where they come from.
    :param capacity: how many there is room for.
    """

    def __init__(self, source: EventSource, capacity: int) -> None:
        self.capacity = capacity
        self._source = source
        self._room = bytearray(capacity * _SIZE)
        self._written = 0
        self._shown = 0  # of them: what is behind is not in its place yet
        self._lock = Lock()

    @property
    def span(self) -> tuple[int, int]:
        """The number of the oldest that is there, and of the next to come."""
        return min(max(0, self._written - self.capacity), self._shown), self._shown

    def drain(self) -> int:
        """Take over all that the kernel has, to be seen after :meth:`show`; returns how many these were."""
        with self._lock:
            before = self._written
            self._written = self._source.drain_into(self._room, before)
            return self._written - before

    def show(self, ours: Sequence[bytes] = ()) -> None:
        """Let what was drained be seen, with records of our own among it where their time puts them."""
        with self._lock:
            if ours:
                self._merge(ours)
            self._shown = self._written

    def _merge(self, ours: Sequence[bytes]) -> None:
        start = max(self._shown, self._written - self.capacity)
        drained = (start + number for number in range(self._written - start))
        records = [bytes(self._room[at : at + _SIZE]) for at in map(self._place, drained)]
        times = accumulate(map(_time, records), max)  # as they came, whatever their own time
        placed = [*zip(times, records, strict=True), *((_time(each), each) for each in ours)]
        placed.sort(key=itemgetter(0))
        for number, (_, record) in enumerate(placed, start):
            at = self._place(number)
            self._room[at : at + _SIZE] = record
        self._written = start + len(placed)

    def _place(self, number: int) -> int:
        return number % self.capacity * _SIZE

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


def _time(record: bytes) -> int:
    return memoryview(record)[_TIME : _TIME + 8].cast("Q")[0]
