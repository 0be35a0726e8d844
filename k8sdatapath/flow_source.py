"""Where flows are read from: rings that keep the last so many, each under a number that only grows.

Whoever reads keeps the number of what is next; the ring knows no readers. So one that is slow costs no memory
and holds nobody up: what was overwritten before it came is told by a
:class:`~k8sdatapath.model.flow.LostEvent`.
"""

from __future__ import annotations

import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import TypeAlias

from attrs import frozen

from k8sdatapath.errors import ModelError
from k8sdatapath.model.flow import Flow, LostEvent, LostEventSource
from k8sdatapath.model.flow_match import Matcher

__all__ = ["LOST_EVERY", "Chunk", "FlowCursor", "FlowRing", "FlowSource", "Seen"]

Seen: TypeAlias = Flow | LostEvent

_CHUNK = 256
"""Flows that are read at once: each is made of a record when it is read."""
LOST_EVERY = 1.0
"""Seconds in which a reader is told of losses once at most."""


@frozen
class Chunk:
    """Neighbours in a ring.

    :ivar start: the number of the first; more than was asked for where that was overwritten.
    """

    start: int
    items: Sequence[Seen]


class FlowSource(ABC):
    """A ring of flows, in order of time. Three methods make one; the others are told by them."""

    @abstractmethod
    def span(self) -> tuple[int, int]:
        """The number of the oldest that is there, and of the next to come."""

    @abstractmethod
    def read(self, start: int, stop: int) -> Chunk:
        """Those with numbers from ``start``, before ``stop``, that are there."""

    @abstractmethod
    def wait(self, number: int, timeout: float) -> None:
        """Return when this one is there, or the seconds are over."""

    @property
    @abstractmethod
    def capacity(self) -> int:
        """How many it keeps."""

    def last(
        self,
        number: int | None = None,
        *,
        matches: Matcher | None = None,
        since: int | None = None,
        until: int | None = None,
    ) -> list[Seen]:
        """The newest that match, oldest first, with what was lost between them.

        :param number: so many flows; None is all.
        :param since: nanoseconds; with it, ``number`` counts from there on.
        :raises ModelError: a number below 0; so in the other methods.
        """
        end = self.span()[1]
        start = self.position(number, matches=matches, since=since, end=end)
        return list(self.cursor(start, end=end, matches=matches, until=until, limit=number).drain())

    def first(self, number: int, *, matches: Matcher | None = None, until: int | None = None) -> list[Seen]:
        """The oldest that match."""
        _check(number)
        start, end = self.span()
        return list(self.cursor(start, end=end, matches=matches, until=until, limit=number).drain())

    def follow(
        self, *, matches: Matcher | None = None, last: int = 0, since: int | None = None
    ) -> FlowCursor:
        """What comes from now on, and before it the ``last`` that match, or all ``since``."""
        start = self.span()[1] if not last and since is None else None
        if start is None:
            start = self.position(last, matches=matches, since=since)
        return self.cursor(start, matches=matches)

    def cursor(
        self,
        start: int,
        *,
        end: int | None = None,
        matches: Matcher | None = None,
        until: int | None = None,
        limit: int | None = None,
    ) -> FlowCursor:
        """A reader that begins at a number.

        :param end: the number to end before; None goes on for ever.
        :param until: nanoseconds; the first that is later ends it.
        :param limit: so many flows end it.
        """
        return FlowCursor(self, start, end, matches, until, limit)

    def position(
        self,
        number: int | None,
        *,
        matches: Matcher | None = None,
        since: int | None = None,
        end: int | None = None,
    ) -> int:
        """The number to begin at for the last so many that match, or for all since then.

        :param end: count back from this number, that a reader is to end before; None is from the newest.
        """
        _check(number)
        oldest, newest = self.span()
        end = newest if end is None else end
        if since is not None:
            return self._first_at(since)
        if number is None:
            return oldest
        count, stop = 0, end
        while stop > oldest:
            chunk = self.read(max(oldest, stop - _CHUNK), stop)
            for offset in range(len(chunk.items) - 1, -1, -1):
                item = chunk.items[offset]
                if isinstance(item, Flow) and (matches is None or matches(item)):
                    count += 1
                    if count == number:
                        return chunk.start + offset
            stop = max(oldest, stop - _CHUNK)
        return oldest

    def _first_at(self, when: int) -> int:
        """The number of the first that is not earlier: found by halves, as they are in order."""
        low, high = self.span()
        while low < high:
            middle = (low + high) // 2
            items = self.read(middle, middle + 1).items
            low, high = (low, middle) if items and _time(items[0]) >= when else (middle + 1, high)
        return low

    def rate(self, seconds: float = 60.0) -> float:
        """Flows a second, of late."""
        oldest, end = self.span()
        now = time.time_ns()
        low = self._first_at(now - int(seconds * 10**9))
        begun = self.read(low, low + 1).items
        if low == oldest and begun and end > oldest:  # the ring does not reach back so far
            seconds = max((now - _time(begun[0])) / 10**9, 1.0)
        return (end - low) / seconds


def _check(number: int | None) -> None:
    if number is not None and number < 0:
        raise ModelError(f"{number} flows: a number of flows is 0 or more")


def _time(item: Seen) -> int:
    return item.time if isinstance(item, Flow) else item.last


class FlowCursor:
    """A reader of a ring; see :meth:`FlowSource.cursor`. Iterating it waits for what comes."""

    def __init__(
        self,
        source: FlowSource,
        start: int,
        end: int | None,
        matches: Matcher | None,
        until: int | None,
        limit: int | None,
    ) -> None:
        self._source = source
        self._next = start
        self._end = sys.maxsize if end is None else end
        self._matches = matches
        self._until = until
        self._left = limit
        self._lost = 0
        self._told = 0.0
        self._seen_at = 0

    @property
    def position(self) -> int:
        """The number of what is next."""
        return self._next

    @property
    def missed(self) -> int:
        """How many were lost of which it was not told yet."""
        return self._lost

    @property
    def over(self) -> bool:
        """Whether nothing more can come."""
        return self._has_ended and not self._lost

    @property
    def _has_ended(self) -> bool:
        return self._left == 0 or self._next >= self._end

    def end_at(self, number: int) -> None:
        """End before this number, with what was lost until then."""
        self._end = number

    def take(self, timeout: float = 0.0) -> list[Seen]:
        """What there is now, at most a chunk; if nothing, what comes within the seconds, maybe nothing."""
        deadline = time.monotonic() + timeout
        while True:
            found = [] if self.over else self._chunk()
            left = deadline - time.monotonic()
            if found or self.over or left <= 0:
                return found
            if self._source.span()[1] <= self._next:
                self._source.wait(self._next, left)

    def drain(self) -> Iterator[Seen]:
        """All up to the end."""
        while not self.over:
            yield from self.take()

    def __iter__(self) -> Iterator[Seen]:
        while not self.over:
            yield from self.take(1.0)

    def _chunk(self) -> list[Seen]:
        chunk = self._source.read(self._next, min(self._next + _CHUNK, self._end))
        start, before = min(chunk.start, self._end), self._seen_at
        found: list[Seen] = []
        if start > self._next:
            self._lost += start - self._next
            self._next = start
        for item in chunk.items:
            self._next += 1
            if not isinstance(item, Flow):
                found.append(item)
                continue
            self._seen_at = item.time
            if self._until is not None and item.time > self._until:
                self._left = 0
                break
            if self._matches is None or self._matches(item):
                found.append(item)
                if self._left is not None:
                    self._left -= 1
                    if not self._left:
                        break
        if self._lost and (self._has_ended or time.monotonic() - self._told >= LOST_EVERY):
            found.insert(0, self._loss(chunk, before))
        return found

    def _loss(self, chunk: Chunk, before: int) -> LostEvent:
        after = _time(chunk.items[0]) if chunk.items else time.time_ns()
        lost = LostEvent(LostEventSource.HUBBLE_RING_BUFFER, self._lost, None, before or after, after)
        self._lost, self._told = 0, time.monotonic()
        return lost


class FlowRing(FlowSource):
    """A ring in memory, of flows as values: for tests, and for what others have written.

    :param capacity: how many it keeps.
    """

    def __init__(self, capacity: int = 4095) -> None:
        self._items: list[Seen | None] = [None] * capacity
        self._end = 0
        self._changed = threading.Condition()

    @property
    def capacity(self) -> int:
        """How many it keeps."""
        return len(self._items)

    def add(self, *items: Seen) -> None:
        """Put these in, over the oldest."""
        with self._changed:
            for item in items:
                self._items[self._end % len(self._items)] = item
                self._end += 1
            self._changed.notify_all()

    def span(self) -> tuple[int, int]:
        """The number of the oldest that is there, and of the next to come."""
        end = self._end
        return max(0, end - len(self._items)), end

    def read(self, start: int, stop: int) -> Chunk:
        """Those with numbers from ``start``, before ``stop``, that are there."""
        with self._changed:
            oldest, end = self.span()
            start = min(max(start, oldest), end)
            numbers = range(start, min(stop, end))
            items = [self._items[number % len(self._items)] for number in numbers]
        return Chunk(start, [item for item in items if item is not None])

    def wait(self, number: int, timeout: float) -> None:
        """Return when this one is there, or the seconds are over."""
        with self._changed:
            self._changed.wait_for(lambda: self._end > number, timeout)
