"""Numbers and ranges that may be given out again only when no program can still hold them.

A program reads a set, then a slot, then a row. Between two of those reads user space may have taken the old
set away; what it pointed to must not get a new meaning until that program has ended. Waiting costs
milliseconds, so what is given back is kept aside, and the wait is made only when nothing else is left: once
for all that has gathered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from k8sdatapath.errors import CapacityError

__all__ = ["Numbers", "Ranges", "room"]


class Numbers:
    """Numbers below ``size``, each given to one taker at a time.

    :param resource: what they number, for messages.
    :param wait: returns when every program that runs now has ended.
    :param used: numbers that are taken already.
    """

    def __init__(self, resource: str, size: int, wait: Callable[[], None], used: Iterable[int] = ()) -> None:
        self.resource = resource
        self.size = size
        self._wait = wait
        taken = set(used)
        if taken and not 0 <= min(taken) <= max(taken) < size:
            raise ValueError(f"{resource} have numbers below {size}, not {max(taken)}")
        self._next = max(taken, default=-1) + 1  # never given out yet, from here on
        self._free = [number for number in range(self._next) if number not in taken]
        self._aside: list[int] = []

    @property
    def available(self) -> int:
        """How many can still be taken."""
        return self.size - self._next + len(self._free) + len(self._aside)

    def take(self) -> int:
        """One that nobody has.

        :raises CapacityError: all are taken.
        """
        if self._free:
            return self._free.pop()
        if self._next < self.size:
            self._next += 1
            return self._next - 1
        if not self._aside:
            raise CapacityError(self.resource, self.size + 1, self.size)
        self._wait()
        self._free, self._aside = self._aside, []
        return self._free.pop()

    def take_many(self, count: int) -> list[int]:
        """As many at once, in a row where that can be.

        :raises CapacityError: there are not so many; none is taken.
        """
        if count > self.available:
            raise CapacityError(self.resource, self.size - self.available + count, self.size)
        fresh = min(count, self.size - self._next)
        start, self._next = self._next, self._next + fresh
        return [*range(start, self._next), *(self.take() for _ in range(count - fresh))]

    def put_back(self, number: int) -> None:
        """Undo a take whose number no program has seen."""
        self._free.append(number)

    def give(self, number: int) -> None:
        """Return a number that programs may still be holding."""
        self._aside.append(number)


class Ranges:
    """Runs of consecutive places below ``size``: a buddy allocator over powers of two.

    A run of ``count`` places takes up the next power of two. Sizes as in :class:`Numbers`.
    """

    def __init__(
        self, resource: str, size: int, wait: Callable[[], None], used: Iterable[tuple[int, int]] = ()
    ) -> None:
        self.resource = resource
        self.size = size
        self._wait = wait
        self._free: list[set[int]] = [set() for _ in range(size.bit_length() + 1)]  # by order
        self._aside: list[tuple[int, int]] = []
        self.available = 0  # places that nobody has, in runs of whatever length
        end = 0
        for offset, count in sorted(used):
            if not end <= offset <= size - room(count):
                raise ValueError(f"a run of {count} {resource} at {offset} lies outside, or in another one")
            self._add_gap(end, offset)
            end = offset + (1 << _order(count))
        self._add_gap(end, size)

    def take(self, count: int) -> int:
        """The offset of a run of ``count`` places that nobody has.

        :raises CapacityError: there is no such run.
        """
        order = _order(count)
        offset = self._take(order)
        if offset is None and self._aside:
            self._wait()
            aside, self._aside = self._aside, []
            for one, size in aside:
                self._put(one, _order(size))
            offset = self._take(order)
        if offset is None:
            raise CapacityError(f"{self.resource} in one run", count, self._largest())
        self.available -= 1 << order
        return offset

    def put_back(self, offset: int, count: int) -> None:
        """Undo a :meth:`take` whose run no program has seen."""
        self._put(offset, _order(count))
        self.available += room(count)

    def give(self, offset: int, count: int) -> None:
        """Return a run that programs may still be reading."""
        self._aside.append((offset, count))
        self.available += room(count)

    def _put(self, offset: int, order: int) -> None:
        while (buddy := offset ^ (1 << order)) in self._free[order]:
            self._free[order].discard(buddy)
            offset = min(offset, buddy)
            order += 1
        self._free[order].add(offset)

    def _take(self, order: int) -> int | None:
        found = next((have for have in range(order, len(self._free)) if self._free[have]), None)
        if found is None:
            return None
        offset = self._free[found].pop()
        while found > order:
            found -= 1
            self._free[found].add(offset + (1 << found))
        return offset

    def _largest(self) -> int:
        return max((1 << order for order, offsets in enumerate(self._free) if offsets), default=0)

    def _add_gap(self, start: int, end: int) -> None:
        """Cut a gap into the largest aligned blocks that fit."""
        while start < end:
            aligned = (start & -start).bit_length() - 1 if start else self.size.bit_length()
            order = min(aligned, (end - start).bit_length() - 1)
            self._free[order].add(start)
            self.available += 1 << order
            start += 1 << order


def room(count: int) -> int:
    """Places that a run of so many takes up."""
    return 1 << _order(count) if count else 0


def _order(count: int) -> int:
    return (count - 1).bit_length()
