"""Compiled policies in the kernel: tables of rules, which every change leaves whole for whoever reads them.

The rules of a policy's direction have a table number. New rules are written under a new number, then the
policy gets it, and the old ones go when no program can read them any more: a packet is judged by what there
was before, or by what there is now. Rules of an identity that others know nothing of are added to a table, or
taken from it, as it is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

from attrs import define, field, frozen

from k8sdatapath import maps
from k8sdatapath.datapath.policy_compiler import EntryKey, PolicyTable
from k8sdatapath.datapath.policy_rows import Because, Cause, Entry
from k8sdatapath.errors import CapacityError
from k8sdatapath.model.policy import Action, Toward
from k8sdatapath.tables.counters import CounterRow
from k8sdatapath.tables.grace import Numbers
from k8sdatapath.tables.policy import PolicyFlags, PolicyRow, RuleKey, RuleRow

__all__ = ["PolicyMaps", "RuleCount", "Said"]

Said: TypeAlias = tuple[Toward, Action, Because, tuple[Cause, ...]]
"""What a rule in the kernel says, and for whom: all that say the same are counted as one."""

_OPEN = (Because.NOT_ISOLATED, Because.OWN_NODE)


@frozen
class RuleCount:
    """How many packets something was decisive for, those that followed the first included.

    :ivar causes: the rules of policies, or the policies that isolate.
    """

    toward: Toward
    action: Action
    because: Because
    causes: tuple[Cause, ...]
    packets: int
    bytes: int


@define
class _Half:
    """One direction of a policy, as it is in the kernel."""

    table: int
    revision: int
    rules: dict[RuleKey, Said] = field(factory=dict)
    lengths: Counter[int] = field(factory=Counter)
    closed: int = 0  # rules of policies, or policies that isolate

    def learn(self, key: RuleKey, said: Said, sign: int = 1) -> None:
        if key.protocol:
            self.lengths[key.bits] += sign
        self.closed += sign * (said[2] not in _OPEN)

    @property
    def row(self) -> PolicyRow:
        """What leads to its rules."""
        lengths = sum(1 << bits for bits, count in self.lengths.items() if count)
        flags = PolicyFlags(0) if self.closed else PolicyFlags.OPEN
        return PolicyRow(self.table, self.revision, lengths, flags)


class _Counters:
    """Places in kd_rule_counts, one for all rules that say the same. Place 0 is nobody's."""

    def __init__(self, table: maps.PerCpuArray[CounterRow], wait: Callable[[], None]) -> None:
        self._table = table
        self._numbers = Numbers("rule counters", len(table), wait, [0])
        self._places: dict[Said, int] = {}
        self._uses: Counter[Said] = Counter()

    def use(self, said: Said) -> int:
        if said not in self._places:
            place = self._numbers.take()
            self._table[place] = tuple(CounterRow(0, 0) for _ in self._table[place])
            self._places[said] = place
        self._uses[said] += 1
        return self._places[said]

    def drop(self, said: Said) -> None:
        self._uses[said] -= 1
        if not self._uses[said]:
            del self._uses[said]
            self._numbers.give(self._places.pop(said))

    def read(self) -> Iterable[RuleCount]:
        for said, place in self._places.items():
            rows = self._table[place]
            yield RuleCount(*said, sum(row.packets for row in rows), sum(row.bytes for row in rows))


class PolicyMaps:
    """kd_policies, kd_rules and kd_rule_counts, written for some subjects, by the number of their identity.

    :param wait: returns when every program that runs now has ended.
    """

    def __init__(self, tables: Mapping[str, Any], wait: Callable[[], None]) -> None:
        self._policies: maps.Array[PolicyRow] = tables["kd_policies"]
        self._rules: maps.Hash[RuleKey, RuleRow] = tables["kd_rules"]
        self._counters = _Counters(tables["kd_rule_counts"], wait)
        self._wait = wait
        taken = {at: row for at, row in enumerate(self._policies) if row.table}
        self._numbers = Numbers("policies", len(self._policies) // 2, wait, {0, *(at // 2 for at in taken)})
        self._table = max((row.table for row in taken.values()), default=0)
        self._revision = max((row.revision for row in taken.values()), default=0)
        self._halves: dict[int, tuple[_Half, _Half]] = {}
        self._places: dict[int, int] = {}  # subject -> number of its policy
        self._old: list[tuple[list[RuleKey], list[Said]]] = []
        self._freed: list[int] = []

    def __contains__(self, subject: object) -> bool:
        return subject in self._places

    def __len__(self) -> int:
        return sum(len(half.rules) for halves in self._halves.values() for half in halves)

    @property
    def subjects(self) -> Mapping[int, int]:
        """The number of each subject's policy."""
        return self._places

    def check(self, changed: Mapping[int, PolicyTable], added: int = 0) -> None:
        """See that all there is then fits beside all that there is until then.

        :raises CapacityError: it does not.
        """
        needed = len(self._rules) + added + sum(map(len, changed.values()))
        if needed > self._rules.info.max_entries:
            raise CapacityError(
                "policy rules, old and new ones together,", needed, self._rules.info.max_entries
            )
        missing = len(changed.keys() - self._places.keys())
        if missing > self._numbers.available:
            raise CapacityError(
                "policies", self._numbers.size - self._numbers.available + missing, self._numbers.size
            )

    def replace(self, subject: int, table: PolicyTable) -> None:
        """Give a subject other rules, or its first ones. Live connections do not feel it yet."""
        made: dict[Toward, _Half] = {}
        rows: dict[RuleKey, RuleRow] = {}
        old = self._halves.get(subject)
        for toward in Toward:
            self._table += 1
            made[toward] = _Half(self._table, old[toward].revision if old else self._next())
        for key, entry in table.items():
            rule, row = self._enter(made[key.toward], key, entry)
            rows[rule] = row
        self._rules.update_many(rows)
        if old is None:
            self._places[subject] = self._numbers.take()
        for toward, half in made.items():
            self._write(subject, toward, half)
        for half in old or ():
            self._old.append((list(half.rules), list(half.rules.values())))
        self._halves[subject] = made[Toward.INGRESS], made[Toward.EGRESS]

    def extend(self, subject: int, upserts: Mapping[EntryKey, Entry]) -> None:
        """Add rules that do not change what the others mean."""
        halves, rows = self._halves[subject], {}
        for key, entry in upserts.items():
            self._forget(halves[key.toward], key)
            rule, row = self._enter(halves[key.toward], key, entry)
            rows[rule] = row
        for toward, half in zip(Toward, halves, strict=True):
            self._write(subject, toward, half)
        self._rules.update_many(rows)

    def shrink(self, subject: int, removed: Iterable[EntryKey]) -> None:
        """Take rules away that no packet asks for any more."""
        halves = self._halves[subject]
        gone = [rule for key in removed if (rule := self._forget(halves[key.toward], key)) is not None]
        self._rules.delete_many(gone)
        for toward, half in zip(Toward, halves, strict=True):
            self._write(subject, toward, half)

    def drop(self, subject: int) -> None:
        """A subject has no pods here any more."""
        for half in self._halves.pop(subject):
            self._old.append((list(half.rules), list(half.rules.values())))
        self._freed.append(self._places.pop(subject))

    def restamp(self, subjects: Iterable[int]) -> None:
        """Have live connections asked for again."""
        for subject in subjects:
            for toward, half in zip(Toward, self._halves[subject], strict=True):
                half.revision = self._next()
                self._write(subject, toward, half)

    def settle(self) -> None:
        """Delete what no program reads any more."""
        if not self._old and not self._freed:
            return
        self._wait()
        old, self._old = self._old, []
        self._rules.delete_many([rule for rules, _ in old for rule in rules])
        for _, sayings in old:
            for said in sayings:
                self._counters.drop(said)
        freed, self._freed = self._freed, []
        for place in freed:
            self._policies.update_many({2 * place + toward: PolicyRow() for toward in Toward})
            self._numbers.give(place)

    def counts(self) -> tuple[RuleCount, ...]:
        """What was decisive for how many packets, since it is in force."""
        return tuple(self._counters.read())

    def _next(self) -> int:
        self._revision += 1
        return self._revision

    def _enter(self, half: _Half, key: EntryKey, entry: Entry) -> tuple[RuleKey, RuleRow]:
        rule = _rule(half, key)
        said = key.toward, entry.action, entry.because, entry.causes
        half.rules[rule] = said
        half.learn(rule, said)
        return rule, RuleRow(entry.precedence, self._counters.use(said), entry.action is Action.DENY)

    def _forget(self, half: _Half, key: EntryKey) -> RuleKey | None:
        rule = _rule(half, key)
        said = half.rules.pop(rule, None)
        if said is None:
            return None
        half.learn(rule, said, -1)
        self._counters.drop(said)
        return rule

    def _write(self, subject: int, toward: Toward, half: _Half) -> None:
        self._policies[2 * self._places[subject] + toward] = half.row


def _rule(half: _Half, key: EntryKey) -> RuleKey:
    return RuleKey(half.table, key.identity, key.port, key.protocol, key.bits)
