"""Compiled policies in the kernel: tables of rules, which every change leaves whole for whoever reads them.

The rules of a policy's direction have a table number; policies that have them in common share it. New rules
are written under a new number, then the policy gets it, and the old ones go when no program can read them any
more: a packet is judged by what there was before, or by what there is now. Rules of an identity that others
know nothing of are added to a table, or taken from it, as it is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container, Hashable, Iterable, Iterator, Mapping
from typing import Any, Protocol, TypeAlias

from attrs import define, field, frozen

from k8sdatapath import maps
from k8sdatapath.datapath.formerly import Formerly
from k8sdatapath.datapath.policy_compiler import MapChange, PolicyTable
from k8sdatapath.datapath.policy_names import Names
from k8sdatapath.datapath.policy_rows import Because, Cause, Entry, PortKey, Row
from k8sdatapath.errors import CapacityError
from k8sdatapath.model.policy import Action, Toward
from k8sdatapath.tables.counters import CounterRow
from k8sdatapath.tables.grace import Numbers
from k8sdatapath.tables.policy import LENGTHS_TABLE, NAMES, Named, PolicyFlags, PolicyRow, RuleKey, RuleRow

__all__ = ["PolicyMaps", "RequestRules", "Requests", "RuleCount", "Said"]

Requests: TypeAlias = frozenset[Hashable]
"""What requests have to be, one of these is enough; none at all: anything."""

Said: TypeAlias = tuple[Toward, Action, Because, tuple[Cause, ...], Requests]
"""What a rule in the kernel says, and for whom: all that say the same are counted as one."""

_NODE = 1
"""The number of the node's own policy, as programs know it."""
_OPEN = (Because.NOT_ISOLATED, Because.OWN_NODE)


class RequestRules(Protocol):
    """Who enforces what policies ask of requests (L7), and has a number for each set of alternatives."""

    def check(self, sets: Iterable[Requests]) -> None:
        """See that these, some of which there may be already, fit beside all that there are.

        :raises CapacityError: they do not.
        """

    def use(self, requests: Requests) -> int:
        """The number of a set, never 0, which is enforced by the time this returns: rules lead there."""

    def drop(self, requests: Requests) -> None:
        """Undo one :meth:`use`: the rule is gone, though programs may have found it just before."""

    def forget_strangers(self) -> None:
        """No rule leads any more to what an earlier process has used."""


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


@define(eq=False)
class _Half:
    """One direction of some policies, as it is in the kernel.

    :ivar source: what the compiler has for it; equal policies have the same.
    :ivar modes: how they are enforced, beside what is so for all policies, or for the pod; and that rules
        ask for names, or did.
    """

    source: Mapping[int, Row]
    table: int
    modes: PolicyFlags
    users: int = 0
    rules: dict[RuleKey, Said] = field(factory=dict)
    lengths: Counter[int] = field(factory=Counter)
    lengths_of_all: Counter[int] = field(factory=Counter)
    closed: int = 0  # rules of policies, or policies that isolate

    def learn(self, key: RuleKey, said: Said, sign: int = 1) -> None:
        if key.protocol:
            self.lengths[key.bits] += sign
            self.lengths_of_all[key.bits] += sign * (key.number == 0)
        self.closed += sign * (said[2] not in _OPEN)

    def row(self, revision: int, modes: PolicyFlags) -> PolicyRow:
        """What leads a policy to its rules."""
        lengths = sum(1 << bits for bits, count in self.lengths.items() if count)
        named = sum(1 << bits for bits in range(17) if not self.lengths_of_all[bits])
        flags = PolicyFlags(0) if self.closed else PolicyFlags.OPEN
        table = self.table << LENGTHS_TABLE & 0xFFFFFFFF
        return PolicyRow(self.table, revision, table | lengths, table | named, flags | self.modes | modes)


@define(eq=False)
class _Subject:
    """A policy in the kernel: its number, and of each direction the rules and the revision.

    :ivar number: 0: it was the node's, which has another one by now.
    """

    number: int
    halves: list[_Half]
    revisions: list[int]
    modes: PolicyFlags


class _Counters:
    """Places in kd_rule_counts, one for all rules that say the same. Place 0 is nobody's."""

    def __init__(self, table: maps.PerCpuArray[CounterRow], names: Names, wait: Callable[[], None]) -> None:
        self._table, self._names = table, names
        self._numbers = Numbers("rule counters", len(table), wait, [0])
        self._places: dict[Said, int] = {}
        self._said: dict[int, Said] = {}
        self._former: Formerly[int, Said] = Formerly()
        self._uses: Counter[Said] = Counter()

    def use(self, said: Said) -> int:
        if said not in self._places:
            place = self._numbers.take()
            self._table[place] = tuple(CounterRow(0, 0) for _ in self._table[place])
            self._places[said] = place
            self._said[place] = said
            self._names.call(Named.COUNTER, {place: _said(said)})
        self._uses[said] += 1
        return self._places[said]

    def drop(self, said: Said) -> None:
        self._uses[said] -= 1
        if not self._uses[said]:
            del self._uses[said]
            place = self._places.pop(said)
            self._former.left(place, self._said.pop(place))
            self._names.forget(Named.COUNTER, [place])
            self._numbers.give(place)

    def said(self, place: int, at: int | None) -> Said | None:
        return self._former.at(place, at) or self._said.get(place)

    def go_on_in(self, table: maps.PerCpuArray[CounterRow]) -> None:
        self._table = table

    def read(self) -> Iterable[RuleCount]:
        for said, place in self._places.items():
            rows = self._table[place]
            yield RuleCount(*said[:4], sum(row.packets for row in rows), sum(row.bytes for row in rows))


class PolicyMaps:
    """kd_policies, kd_rules and kd_rule_counts, written for some subjects, by the number of their identity.

    :param names: what its counters are called there.
    :param wait: returns when every program that runs now has ended.
    :param l7: who enforces what requests have to be; None: no policy asks for any.
    """

    def __init__(
        self,
        tables: Mapping[str, Any],
        names: Names,
        wait: Callable[[], None],
        l7: RequestRules | None = None,
    ) -> None:
        self._counters = _Counters(tables["kd_rule_counts"], names, wait)
        self._wait = wait
        self._l7 = l7
        self._modes = PolicyFlags(0)
        self._open(tables)
        self._table = max((row.table for row in self._policies), default=0)
        self._revision = max((row.revision for row in self._policies), default=0)
        self._subjects: dict[int, _Subject] = {}
        self._halves: dict[int, _Half] = {}  # by the identity of their source, which they keep alive
        self._size = len(self._rules)
        self._old: list[_Half] = []
        self._freed: list[int] = []

    def _open(self, tables: Mapping[str, Any]) -> None:
        self._policies: maps.Array[PolicyRow] = tables["kd_policies"]
        self._rules: maps.Hash[RuleKey, RuleRow] = tables["kd_rules"]
        taken = {at // 2 for at, row in enumerate(self._policies) if row.table}
        first = {0, _NODE} if len(self._policies) > 2 * _NODE else {0}
        self._numbers = Numbers("policies", len(self._policies) // 2, self._wait, first | taken)

    def go_on_in(self, tables: Mapping[str, Any]) -> None:
        """The same stands in other maps now, under the same numbers."""
        self._wait()  # what was given back is free then
        self._open(tables)
        self._counters.go_on_in(tables["kd_rule_counts"])

    def __contains__(self, subject: object) -> bool:
        return subject in self._subjects

    def __iter__(self) -> Iterator[int]:
        return iter(self._subjects)

    def __len__(self) -> int:
        """Rules in the kernel."""
        return self._size

    @property
    def revision(self) -> int:
        """The latest; over the processes that have written here they only grow."""
        return self._revision

    def number(self, subject: int) -> int:
        """Of a subject's policy."""
        return self._subjects[subject].number

    def revision_of(self, subject: int, toward: Toward) -> int:
        """Of one direction of a subject's policy."""
        return self._subjects[subject].revisions[toward]

    def check(self, tables: Mapping[int, PolicyTable], changes: Mapping[int, MapChange]) -> None:
        """See that all there is then fits beside all that there is until then.

        :param tables: of the subjects that are new or changed, as they are to be.
        :param changes: what has led there.
        :raises CapacityError: it does not.
        """
        needed, seen, sets = self._size, set(), set[Requests]()
        for subject, table in tables.items():
            for toward, source in zip(Toward, table.halves, strict=True):
                if id(source) in seen:
                    continue
                seen.add(id(source))
                if id(source) not in self._halves:
                    entries = [entry for row in source.values() for entry in row.values()]
                elif subject in changes:
                    upserts = changes[subject].upserts
                    entries = [entry for key, entry in upserts.items() if key.toward is toward]
                else:
                    continue
                needed += len(entries)
                sets.update(entry.l7 for entry in entries if entry.l7)
        if needed > self._rules.info.max_entries:
            raise CapacityError(
                "policy rules, old and new ones together,", needed, self._rules.info.max_entries
            )
        missing = len(tables.keys() - self._subjects.keys())
        if missing > self._numbers.available:
            taken = self._numbers.size - self._numbers.available
            raise CapacityError("policies", taken + missing, self._numbers.size)
        if self._l7 and sets:
            self._l7.check(sets)

    def apply(
        self,
        tables: Mapping[int, PolicyTable],
        changes: Mapping[int, MapChange],
        audited: Container[int] = frozenset(),
        node: int = 0,
    ) -> None:
        """Give subjects other rules, or their first ones. Live connections do not feel it yet.

        :param audited: subjects that are new, and whose policies only look on.
        :param node: the subject that is the node itself; there is room for one, the latest.
        """
        old = dict(self._halves)
        done: set[int] = set()
        left: list[_Half] = []
        rows: dict[int, PolicyRow] = {}
        for subject, table in tables.items():
            for toward, source in zip(Toward, table.halves, strict=True):
                if id(source) not in done:
                    done.add(id(source))
                    if id(source) not in old:
                        self._make(toward, table)
                    elif subject in changes:
                        self._change(old[id(source)], toward, changes[subject])
            halves = [self._halves[id(source)] for source in table.halves]
            known = self._subjects.get(subject)
            for half in halves:
                half.users += 1
            left += known.halves if known else ()
            if known is None:
                modes = PolicyFlags.AUDIT if subject in audited else PolicyFlags(0)
                number = self._node_number() if subject == node else self._numbers.take()
                known = _Subject(number, halves, [self._next(), self._next()], modes)
                self._subjects[subject] = known
            known.halves = halves
        for subject in self._subjects:
            if subject in tables or any(id(half.source) in done for half in self._subjects[subject].halves):
                rows |= self._rows(subject)
        self._policies.update_many(rows)
        for half in left:
            self._leave(half)

    def shrink(self, changes: Mapping[int, MapChange]) -> None:
        """Take rules away that no packet asks for any more."""
        done: set[int] = set()
        for subject, change in changes.items():
            for toward, half in zip(Toward, self._subjects[subject].halves, strict=True):
                if id(half) not in done:
                    done.add(id(half))
                    self._change(half, toward, change)

    def drop(self, subject: int) -> None:
        """A subject has no pods here any more."""
        known = self._subjects.pop(subject)
        for half in known.halves:
            self._leave(half)
        if known.number > _NODE:
            self._freed.append(known.number)

    def set_modes(self, modes: PolicyFlags) -> None:
        """How all policies are enforced, as live connections feel at once."""
        self._modes = modes
        rows: dict[int, PolicyRow] = {}
        for subject in self._subjects:
            rows |= self._rows(subject)
        self._policies.update_many(rows)  # before the revisions: who reads one has the mode as well
        self.restamp(self._subjects)

    def restamp(self, subjects: Iterable[int]) -> None:
        """Have live connections asked for again."""
        rows: dict[int, PolicyRow] = {}
        for subject in subjects:
            self._subjects[subject].revisions = [self._next(), self._next()]
            rows |= self._rows(subject)
        self._policies.update_many(rows)

    def settle(self, *, wait: bool = False) -> None:
        """Delete what no program reads any more.

        :param wait: for who reads what the caller is going to delete.
        """
        if not self._old and not self._freed and not wait:
            return
        self._wait()
        old, self._old = self._old, []
        for half in old:
            self._size -= self._rules.delete_many(half.rules)
            self._drop(half.rules.values())
        freed, self._freed = self._freed, []
        for place in freed:
            self._policies.update_many({2 * place + toward: PolicyRow() for toward in Toward})
            self._numbers.give(place)

    def drop_strange(self) -> None:
        """Delete what an earlier process has left, once no pod has its policies any more."""
        numbers = {each.number for each in self._subjects.values()}
        rows = {
            at: PolicyRow() for at, row in enumerate(self._policies) if row.table and at // 2 not in numbers
        }
        self._policies.update_many(rows)
        tables = {half.table for half in self._halves.values()}
        self._wait()
        self._size -= self._rules.delete_many([rule for rule in self._rules if rule.table not in tables])
        for number in {at // 2 for at in rows} - {_NODE}:
            self._numbers.give(number)

    def ruling(self, counter: int, at: int | None = None) -> tuple[Because, tuple[Cause, ...]] | None:
        """What a counter stood for; None: nobody remembers."""
        said = self._counters.said(counter, at)
        return None if said is None else (said[2], said[3])

    def counts(self) -> tuple[RuleCount, ...]:
        """What was decisive for how many packets, since it is in force."""
        return tuple(self._counters.read())

    def _next(self) -> int:
        self._revision += 1
        return self._revision

    def _node_number(self) -> int:
        """The node's own, which whoever it was before has no more."""
        for each in self._subjects.values():
            if each.number == _NODE:
                each.number = 0
        return _NODE

    def _rows(self, subject: int) -> dict[int, PolicyRow]:
        known = self._subjects[subject]
        if not known.number:
            return {}
        return {
            2 * known.number + toward: half.row(revision, self._modes | known.modes)
            for toward, half, revision in zip(Toward, known.halves, known.revisions, strict=True)
        }

    def _make(self, toward: Toward, table: PolicyTable) -> None:
        self._table += 1
        source = table.halves[toward]
        modes = PolicyFlags.AUDIT if table.audits(toward) else PolicyFlags(0)
        half = self._halves[id(source)] = _Half(source, self._table, modes)
        self._write(
            half, toward, ((n, key, entry) for n, row in source.items() for key, entry in row.items())
        )

    def _change(self, half: _Half, toward: Toward, change: MapChange) -> None:
        """Of rules that stand by themselves."""
        added = [(k.identity, k[2:], entry) for k, entry in change.upserts.items() if k.toward is toward]
        gone = [(k.identity, k[2:]) for k in change.removed if k.toward is toward]
        replaced = self._forget(half, [(number, key) for number, key, _ in added])
        self._size -= len(replaced)
        self._write(half, toward, added)
        removed = self._forget(half, gone)
        self._size -= self._rules.delete_many(removed)
        self._drop([*replaced.values(), *removed.values()])

    def _write(self, half: _Half, toward: Toward, rules: Iterable[tuple[int, PortKey, Entry]]) -> None:
        rows = {}
        for number, (protocol, port, bits), entry in rules:
            rule = RuleKey(half.table, number, port, protocol, bits)
            said = toward, entry.action, entry.because, entry.causes, entry.l7
            half.rules[rule] = said
            half.learn(rule, said)
            l7 = self._l7.use(entry.l7) if self._l7 and entry.l7 else 0
            if l7 & NAMES:
                half.modes |= PolicyFlags.NAMES
            rows[rule] = RuleRow(entry.precedence, self._counters.use(said), entry.action is Action.DENY, l7)
        self._size += len(rows)
        self._rules.update_many(rows)

    def _forget(self, half: _Half, keys: Iterable[tuple[int, PortKey]]) -> dict[RuleKey, Said]:
        found = {}
        for number, (protocol, port, bits) in keys:
            rule = RuleKey(half.table, number, port, protocol, bits)
            said = half.rules.pop(rule, None)
            if said is not None:
                half.learn(rule, said, -1)
                found[rule] = said
        return found

    def _drop(self, rules: Iterable[Said]) -> None:
        """Rules are not in the kernel any more, though programs may have found them."""
        for said in rules:
            self._counters.drop(said)
            if self._l7 and said[4]:
                self._l7.drop(said[4])

    def _leave(self, half: _Half) -> None:
        half.users -= 1
        if not half.users:
            del self._halves[id(half.source)]
            self._old.append(half)


def _said(said: Said) -> str:
    """For people: the rules, or what else decides."""
    _, _, because, causes, _ = said
    words = "; ".join(map(str, causes))
    return {
        Because.RULE: words,
        Because.DEFAULT_DENY: f"default deny: {words}",
        Because.NOT_ISOLATED: "no policy isolates",
        Because.OWN_NODE: "the pod's own node",
        Because.ITSELF: "itself",
        Because.OWN_POD: "a pod of its own",
    }[because]
