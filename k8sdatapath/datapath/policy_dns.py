"""Addresses by the DNS names that somebody was told they have, for as long as that was said to hold."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import count

from k8sdatapath.datapath.policy_names import Names
from k8sdatapath.model import IPAddress
from k8sdatapath.model import address as to_address
from k8sdatapath.model.names import NamePattern, name_labels
from k8sdatapath.tables.policy import Named

__all__ = ["Answers", "KeptAnswers"]


class Answers:
    """What DNS has answered, and the patterns of names that policies have."""

    def __init__(self) -> None:
        self._patterns: Counter[NamePattern] = Counter()
        self._until: dict[IPAddress, dict[str, float]] = {}

    def __iter__(self) -> Iterator[IPAddress]:
        return iter(self._until)

    @property
    def patterns(self) -> Collection[NamePattern]:
        """Those that policies have."""
        return self._patterns.keys()

    def use(self, patterns: Iterable[NamePattern]) -> None:
        """Policies come that have these."""
        self._patterns.update(patterns)

    def drop(self, patterns: Iterable[NamePattern]) -> None:
        """Policies go that have these."""
        self._patterns.subtract(patterns)
        self._patterns = +self._patterns

    @property
    def names(self) -> dict[str, list[IPAddress]]:
        """The addresses of all names."""
        found: dict[str, list[IPAddress]] = {}
        for ip, names in self._until.items():
            for name in names:
                found.setdefault(name, []).append(ip)
        return found

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

    def until(self, name: str, address: IPAddress) -> float:
        """How long an address has a name that it was told to have."""
        return self._until[address][name]

    def expire(self, now: float, live: Collection[IPAddress]) -> list[tuple[IPAddress, str]]:
        """Forget what has expired, but for those that somebody talks to; returns what that was."""
        found = [
            (address, name)
            for address, names in self._until.items()
            if address not in live
            for name, until in names.items()
            if until <= now
        ]
        for address, name in found:
            self._forget(address, name)
        return found

    def _forget(self, address: IPAddress, name: str) -> None:
        names = self._until[address]
        del names[name]
        if not names:
            del self._until[address]


class KeptAnswers:
    """What DNS has answered, in kd_names: there the process after this one finds it.

    Times are the kernel's clock, which no process begins anew.
    """

    def __init__(self, names: Names) -> None:
        self._names = names
        self._numbers: dict[tuple[IPAddress, str], int] = {}
        self._next = count()

    def take_over(self, found: Mapping[int, str], answers: Answers) -> None:
        """What the process before this one has kept holds."""
        self._next = count(max(found, default=-1) + 1)
        self._names.call(Named.ANSWER, found)
        for number, text in found.items():
            until, where, name = text.split(" ", 2)
            ip = to_address(where)
            self._numbers[ip, name] = number
            answers.learn(name, [ip], float(until))

    def keep(self, name: str, addresses: Iterable[IPAddress], answers: Answers) -> None:
        """They have a name, for as long as ``answers`` says."""
        rows = {}
        for ip in addresses:
            if (ip, name) not in self._numbers:
                self._numbers[ip, name] = next(self._next)
            rows[self._numbers[ip, name]] = f"{answers.until(name, ip)} {ip} {name}"
        self._names.call(Named.ANSWER, rows)

    def forget(self, gone: Iterable[tuple[IPAddress, str]]) -> None:
        """They have these names no more."""
        self._names.forget(Named.ANSWER, [self._numbers.pop(each) for each in gone])
