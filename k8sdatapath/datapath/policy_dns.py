"""Addresses by the DNS names that somebody was told they have, for as long as that was said to hold."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping

from k8sdatapath.model import IPAddress
from k8sdatapath.model.names import NamePattern, name_labels
from k8sdatapath.tables.conntrack import FlowFlags, Tuple
from k8sdatapath.tables.policy import TalkRow

__all__ = ["Answers", "live_ends"]

_TCP, _SCTP = 6, 132
_ENDED = FlowFlags.FIN | FlowFlags.RST
_IDLE, _IDLE_STREAM = 120, 8000
"""Seconds after which a talk is over, as the programs have it (``kd/talks.h``)."""


class Answers:
    """What DNS has answered, and the patterns of names that policies have."""

    def __init__(self) -> None:
        self._patterns: Counter[NamePattern] = Counter()
        self._until: dict[IPAddress, dict[str, float]] = {}

    def __iter__(self) -> Iterator[IPAddress]:
        return iter(self._until)

    def use(self, patterns: Iterable[NamePattern]) -> None:
        """Policies come that have these."""
        self._patterns.update(patterns)

    def drop(self, patterns: Iterable[NamePattern]) -> None:
        """Policies go that have these."""
        self._patterns.subtract(patterns)
        self._patterns = +self._patterns

    def knows(self, name: str) -> bool:
        """Whether a policy has a pattern that a name fits."""
        return any(each.matches(name) for each in self._patterns)

    def labels(self, address: IPAddress) -> tuple[str, ...]:
        """Those of an address: of all patterns that one of its names fits."""
        return tuple(name_labels(self._patterns, self._until.get(address, ())))

    def learn(self, name: str, addresses: Iterable[IPAddress], until: float) -> dict[IPAddress, float]:
        """They have a name for so long, or for as long as was said before; returns what was said before."""
        before = {}
        for each in addresses:
            names = self._until.setdefault(each, {})
            before[each] = names.get(name, 0.0)
            names[name] = max(before[each], until)
        return before

    def restore(self, name: str, before: Mapping[IPAddress, float]) -> None:
        """Undo a :meth:`learn`."""
        for each, until in before.items():
            if until:
                self._until[each][name] = until
            else:
                self._forget(each, name)

    def due(self, now: float) -> bool:
        """Whether any name has expired."""
        return any(until <= now for names in self._until.values() for until in names.values())

    def expire(self, now: float, live: Collection[IPAddress]) -> list[IPAddress]:
        """Forget what has expired, but for those that somebody talks to; returns whose names have changed."""
        found = [
            (address, name)
            for address, names in self._until.items()
            if address not in live
            for name, until in names.items()
            if until <= now
        ]
        for address, name in found:
            self._forget(address, name)
        return list(dict.fromkeys(address for address, _ in found))

    def _forget(self, address: IPAddress, name: str) -> None:
        names = self._until[address]
        del names[name]
        if not names:
            del self._until[address]


def live_ends(talks: Mapping[Tuple, TalkRow]) -> set[IPAddress]:
    """The addresses at both ends of all that goes on."""
    now = int(time.clock_gettime(time.CLOCK_MONOTONIC))
    found: set[IPAddress] = set()
    for key, row in talks.items():
        stream = key.protocol in (_TCP, _SCTP) and not row.flags & _ENDED
        if now - row.last_seen <= (_IDLE_STREAM if stream else _IDLE):
            found |= {key.src, key.dst}
    return found
