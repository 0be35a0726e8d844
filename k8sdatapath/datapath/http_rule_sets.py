"""Sets of HTTP rules in the kernel, each under a number that it has until no connection has."""

from __future__ import annotations

import threading
from array import array
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from attrs import frozen

from k8sdatapath import maps
from k8sdatapath.datapath.http_builder import Table
from k8sdatapath.datapath.http_headers import common_table
from k8sdatapath.datapath.http_tables import HTTPGroup, HTTPTables, http_tables
from k8sdatapath.datapath.policy_names import fitting
from k8sdatapath.errors import CapacityError, MapFullError, ModelError
from k8sdatapath.model.http_rules import HTTPRule
from k8sdatapath.tables.grace import Numbers, Ranges, room
from k8sdatapath.tables.l7 import COMMON, AutomatonRow, ConnRow, FactRow, RuleNameKey, Section
from k8sdatapath.tables.policy import NameRow

__all__ = ["RuleSets"]


@frozen
class _Set:
    """A set of rules that has a number.

    :ivar others: of further automata: of headers, and of further groups.
    """

    tables: HTTPTables
    number: int
    others: tuple[int, ...]


class RuleSets:
    """kd_l7_table, kd_l7_rows and kd_l7_automata: the automata of sets of rules.

    A number that nobody uses any more is kept for connections in the middle of a request, and given away when
    there is none. What an earlier process has left in pinned maps is used again by who asks for the same; the
    rest stays in force until :meth:`drop_strange`.

    :param wait: returns when every program that runs now has ended.
    """

    def __init__(self, tables: Mapping[str, Any], wait: Callable[[], None]) -> None:
        self._table: memoryview = tables["kd_l7_table"].view().cast("I")
        self._rows: maps.Array[FactRow] = tables["kd_l7_rows"]
        self._automata: maps.Array[AutomatonRow] = tables["kd_l7_automata"]
        self._conns: maps.Hash[int, ConnRow] = tables["kd_l7_conns"]
        self._names: maps.Hash[RuleNameKey, NameRow] = tables["kd_l7_names"]
        self._wait = wait
        self._lock = threading.RLock()
        there = {n: row for n, row in enumerate(self._automata) if row.generation and n}
        self._generation = max((row.generation for row in there.values()), default=0)
        self._numbers = Numbers("sets of HTTP rules", len(self._automata), wait, {0, COMMON, *there})
        cells = ((row.cells, row.cells_size) for row in there.values())
        self._cells = Ranges("cells of HTTP rules", len(self._table), wait, cells)
        facts = ((row.rows, row.rows_size) for row in there.values() if row.rows_size)
        self._facts = Ranges("rows of HTTP rules", len(self._rows), wait, facts)
        self._sets: dict[frozenset[Hashable], _Set] = {}
        self._uses: Counter[frozenset[Hashable]] = Counter()
        self._made: dict[frozenset[Hashable], HTTPTables] = {}  # looked at, and soon to be used
        self._old: dict[int, tuple[int, ...]] = {}  # number, and those of further automata
        self._strange = _sets_of({n: row for n, row in there.items() if n != COMMON})
        common = common_table()
        if COMMON not in there:
            self._write(COMMON, common, COMMON)
        elif not self._is_there(COMMON, common):  # of another version
            before = there[COMMON]
            self._write(COMMON, common, COMMON)
            self._give(before)

    def close(self) -> None:
        """Give back the memory of the table."""
        self._table.release()

    def check(self, sets: Iterable[frozenset[Hashable]]) -> None:
        """See that these, some of which there may be already, fit beside all that there are.

        :raises CapacityError: they do not.
        :raises ModelError: one has something that is no HTTP rule.
        """
        with self._lock:
            made = {each: self._tables(each) for each in sets if each not in self._sets}
            new = [each for each in made.values() if self._left(each) is None]
            parts = [part for each in new for group in each.groups for part in group.tables]
            cells, rows = sum(room(len(p.cells)) for p in parts), sum(room(len(p.rows)) for p in parts)
            if self._lacks(len(parts), cells, rows):
                self.tend()
            if lack := self._lacks(len(parts), cells, rows):
                raise CapacityError(*lack)
            self._made = made

    def use(self, rules: frozenset[Hashable]) -> int:
        """The number of a set, which is enforced by the time this returns."""
        with self._lock:
            if rules not in self._sets:
                self._sets[rules] = self._add(rules)
            self._uses[rules] += 1
            return self._sets[rules].number

    def drop(self, rules: frozenset[Hashable]) -> None:
        """Undo one :meth:`use`. A request that has begun is held to the set still."""
        with self._lock:
            self._uses[rules] -= 1
            if not self._uses[rules]:
                del self._uses[rules]
                gone = self._sets.pop(rules)
                self._old[gone.number] = gone.others

    def tend(self) -> None:
        """Give numbers away that nobody uses, and no connection has."""
        with self._lock:
            if not self._old:
                return
            self._wait()  # for programs that have found a rule just before it went
            had = {row.rules for row in self._conns.values()}
            free = [number for number in self._old if number not in had]
            for number in free:
                for each in (number, *self._old.pop(number)):
                    self._remove(each)
            if free:
                self._names.delete_many([key for key in self._names if key.rules in free])

    def drop_strange(self) -> None:
        """Who wants a set has asked for it: what an earlier process has left goes, as :meth:`drop`."""
        with self._lock:
            self._old |= self._strange
            self._strange = {}

    @property
    def rules(self) -> dict[int, tuple[HTTPRule, ...]]:
        """The rules of each number, in the order of their own numbers, from 1."""
        with self._lock:
            return {each.number: each.tables.rules for each in self._sets.values()}

    def _tables(self, rules: frozenset[Hashable]) -> HTTPTables:
        if rules in self._made:
            return self._made[rules]
        found = [each for each in rules if isinstance(each, HTTPRule)]
        if len(found) < len(rules):
            raise ModelError("requests can only be held to HTTP rules")
        return http_tables(found)

    def _lacks(self, numbers: int, cells: int, rows: int) -> tuple[str, int, int] | None:
        for have, needed in ((self._numbers, numbers), (self._cells, cells), (self._facts, rows)):
            if needed > have.available:
                return have.resource, have.size - have.available + needed, have.size
        return None

    def _add(self, rules: frozenset[Hashable]) -> _Set:
        tables = self._tables(rules)
        self._made.pop(rules, None)
        if (left := self._left(tables)) is not None:
            self._call(left, tables.rules)
            return _Set(tables, left, self._strange.pop(left))
        taken = [0]
        for group in reversed(tables.groups):
            more, headers = taken[-1], COMMON
            if group.headers is not None:
                taken.insert(0, headers := self._numbers.take())
                self._write(headers, group.headers, headers)
            taken.append(self._numbers.take())
            self._write(taken[-1], group.line, headers, more)
        *others, number = taken
        self._call(number, tables.rules)
        return _Set(tables, number, tuple(filter(None, others)))

    def _call(self, number: int, rules: Sequence[HTTPRule]) -> None:
        """Write down what rules there are, for people: where there is no room for it, they see less."""
        with suppress(MapFullError):
            self._names.update_many(
                {
                    RuleNameKey(number, place): NameRow(fitting(str(rule)))
                    for place, rule in enumerate(rules, 1)
                }
            )

    def _write(self, number: int, table: Table, headers: int, more: int = 0) -> None:
        cells = self._cells.take(len(table.cells))
        self._table[cells : cells + len(table.cells)] = memoryview(array("I", table.cells))
        rows = self._facts.take(len(table.rows)) if table.rows else 0
        self._rows.update_many({rows + place: row for place, row in enumerate(table.rows)})
        self._generation += 1
        starts = tuple(table.start.get(section, 0) for section in Section)
        sizes = len(table.cells), len(table.rows)
        self._automata[number] = AutomatonRow(
            cells, rows, self._generation, headers, more, *sizes, starts, table.initials, table.classes
        )

    def _left(self, tables: HTTPTables) -> int | None:
        """The number that an earlier process has given to the same."""
        return next((number for number in self._strange if self._are_there(number, tables.groups)), None)

    def _are_there(self, number: int, groups: Sequence[HTTPGroup]) -> bool:
        """Whether the kernel has groups, the first of which has a number."""
        for group in groups:
            if not number or not self._is_there(number, group.line):
                return False
            row = self._automata[number]
            if (row.headers == COMMON) is not (group.headers is None):
                return False
            if group.headers is not None and not self._is_there(row.headers, group.headers):
                return False
            number = row.more
        return not number

    def _is_there(self, number: int, table: Table) -> bool:
        """Whether the kernel has an automaton under a number."""
        row = self._automata[number]
        starts = tuple(table.start.get(section, 0) for section in Section)
        about = len(table.cells), len(table.rows), starts, table.initials, table.classes
        if (row.cells_size, row.rows_size, row.start, row.initials, row.classes) != about:
            return False
        cells = self._table[row.cells : row.cells + row.cells_size]
        if cells.tobytes() != array("I", table.cells).tobytes():
            return False
        return all(self._rows[row.rows + place] == fact for place, fact in enumerate(table.rows))

    def _remove(self, number: int) -> None:
        row = self._automata[number]
        self._automata[number] = AutomatonRow()
        self._give(row)
        self._numbers.give(number)

    def _give(self, row: AutomatonRow) -> None:
        self._cells.give(row.cells, row.cells_size)
        if row.rows_size:
            self._facts.give(row.rows, row.rows_size)


def _sets_of(rows: Mapping[int, AutomatonRow]) -> dict[int, tuple[int, ...]]:
    """The numbers of sets, and of their further automata; these alone if their writer was killed."""
    others = {number: {row.headers, row.more} & rows.keys() - {number} for number, row in rows.items()}
    inner = set().union(*others.values())
    return {number: tuple(_reached(number, others)) for number in rows.keys() - inner}


def _reached(number: int, others: Mapping[int, set[int]]) -> Iterator[int]:
    for each in others[number]:
        yield each
        yield from _reached(each, others)
