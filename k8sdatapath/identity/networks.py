"""Numbers that a node gives by itself, to networks that policies name."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from k8sdatapath.errors import CapacityError, KeyNotFoundError
from k8sdatapath.identity.timing import clock
from k8sdatapath.model.identity import LOCAL_NUMBERS, Identity, cidr_labels
from k8sdatapath.model.labels import Labels

__all__ = ["NetworkAllocator"]


class NetworkAllocator:
    """Identities of networks, which mean something on this node only.

    :param numbers: those to give, one after the other, so that one is not soon used again.
    :param quarantine: seconds for which a number that was released is given to nobody.
    :param withheld: numbers that an earlier run gave, and that the kernel may still know: not for others.
    """

    def __init__(
        self,
        *,
        numbers: range = LOCAL_NUMBERS,
        quarantine: float = 600.0,
        withheld: Iterable[int] = (),
        clock: Callable[[], float] = clock,
    ) -> None:
        self._numbers, self._quarantine, self._clock = numbers, quarantine, clock
        self._next = 0
        self._withheld = set(withheld)
        self._counts: dict[Labels, int] = {}
        self._given: dict[Labels, Identity] = {}
        self._by_number: dict[int, Identity] = {}
        self._freed: deque[tuple[float, int]] = deque()
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"<NetworkAllocator {len(self._given)} in use>"

    def acquire(self, network: Any) -> Identity:
        """The identity of a network, until it was released as often.

        :raises CapacityError: there is no number left.
        :raises ModelError: it is not a network.
        """
        labels = cidr_labels(network)
        with self._lock:
            found = self._given.get(labels)
            if found is None:
                found = Identity(self._number(), labels)
                self._given[labels] = self._by_number[found.number] = found
            self._counts[labels] = self._counts.get(labels, 0) + 1
            return found

    def release(self, identity: Identity) -> None:
        """Not used any more by who acquired it.

        :raises KeyNotFoundError: it is not in use here.
        """
        with self._lock:
            if self._by_number.get(identity.number) != identity:
                raise KeyNotFoundError(str(identity))
            self._counts[identity.labels] -= 1
            if not self._counts[identity.labels]:
                del self._counts[identity.labels], self._given[identity.labels]
                del self._by_number[identity.number]
                self._freed.append((self._clock(), identity.number))

    def lookup(self, number: int) -> Identity | None:
        """Whose number it is."""
        return self._by_number.get(number)

    def settle(self) -> None:
        """What an earlier run gave is out of the kernel: from now its numbers are only in quarantine."""
        with self._lock:
            now = self._clock()
            self._freed.extend((now, number) for number in sorted(self._withheld))
            self._withheld.clear()

    def _number(self) -> int:
        while self._freed and self._clock() - self._freed[0][0] >= self._quarantine:
            self._freed.popleft()
        busy = self._withheld | {number for _, number in self._freed}
        for _ in self._numbers:
            number = self._numbers[self._next]
            self._next = (self._next + 1) % len(self._numbers)
            if number not in busy and number not in self._by_number:
                return number
        raise CapacityError("numbers of networks", len(self._numbers) + 1, len(self._numbers))
