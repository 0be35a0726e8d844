"""NameSets: names that pods may ask name servers for, each set of them as one automaton in the kernel."""

from __future__ import annotations

import threading
from array import array
from collections import Counter
from collections.abc import Callable, Hashable, Iterable
from contextlib import suppress
from typing import Any

from attrs import frozen

from k8sdatapath import maps
from k8sdatapath.datapath.automaton import automaton
from k8sdatapath.datapath.contract import Bindable, bind_maps
from k8sdatapath.datapath.policy_names import fitting
from k8sdatapath.errors import CapacityError, MapFullError, ModelError
from k8sdatapath.model.names import NamePattern
from k8sdatapath.model.regex import Regex
from k8sdatapath.pybpf.memory import wait_for_programs
from k8sdatapath.resource import Resource
from k8sdatapath.tables.dns import FITS, DnsBlock, DnsNameKey, DnsSetRow
from k8sdatapath.tables.grace import Numbers, Ranges, room
from k8sdatapath.tables.policy import NAMES, NameRow

__all__ = ["CONTRACT", "NameSets"]

CONTRACT = {
    "kd_dns_table": maps.Array[DnsBlock],
    "kd_dns_sets": maps.Array[DnsSetRow],
    "kd_dns_names": maps.Hash[DnsNameKey, NameRow],
}
_LETTER = "[-a-z0-9_]"


@frozen
class _Table:
    """An automaton as it stands in the kernel."""

    cells: array[int]
    width: int
    dot: int
    classes: bytes

    def row(self, cells: int) -> DnsSetRow:
        return DnsSetRow(cells, len(self.cells), self.width, self.dot, self.classes)


class NameSets(Resource):
    """kd_dns_sets, kd_dns_table and, for people, kd_dns_names: what names of rules become. It is for
    :class:`IdentityPolicy`.

    Over pinned maps, what an earlier process has left is used again by who asks for the same; the rest stays
    in force until :meth:`forget_strangers`.
    """

    def __init__(self, source: Bindable, *, wait: Callable[[], None] = wait_for_programs) -> None:
        tables, self._own = bind_maps(source, CONTRACT, "names of DNS", keep=True)
        self._cells: memoryview = tables["kd_dns_table"].view().cast("H")
        self._own.callback(self._cells.release)
        self._rows: maps.Array[DnsSetRow] = tables["kd_dns_sets"]
        self._names: maps.Hash[DnsNameKey, NameRow] = tables["kd_dns_names"]
        self._wait = wait
        self._lock = threading.RLock()
        self._strange = {number: row for number, row in enumerate(self._rows) if row.size}
        self._numbers = Numbers("sets of DNS names", len(self._rows), wait, {0, *self._strange})
        runs = ((row.cells, row.size) for row in self._strange.values())
        self._runs = Ranges("cells of DNS names", len(self._cells), wait, runs)
        self._sets: dict[frozenset[Hashable], int] = {}
        self._uses: Counter[frozenset[Hashable]] = Counter()
        self._made: dict[frozenset[Hashable], _Table] = {}  # looked at, and soon to be used
        self._old: list[int] = []  # nobody's, though programs may have found them just before

    def check(self, sets: Iterable[frozenset[Any]]) -> None:
        """See that these, some of which there may be already, fit beside all that there are.

        :raises CapacityError: they do not.
        """
        with self._lock:
            self._made = {each: _table(each) for each in sets if each not in self._sets}
            self._tend()
            cells = sum(room(len(each.cells)) for each in self._made.values())
            for have, needed in ((self._numbers, len(self._made)), (self._runs, cells)):
                if needed > have.available:
                    raise CapacityError(have.resource, have.size - have.available + needed, have.size)

    def use(self, requests: frozenset[Any]) -> int:
        """The number of a set, which is enforced by the time this returns."""
        with self._lock:
            if requests not in self._sets:
                made = self._made.pop(requests) if requests in self._made else _table(requests)
                self._sets[requests] = self._add(made)
                self._call(self._sets[requests], requests)
            self._uses[requests] += 1
            return self._sets[requests] | NAMES

    def drop(self, requests: frozenset[Any]) -> None:
        """Undo one :meth:`use`."""
        with self._lock:
            self._uses[requests] -= 1
            if not self._uses[requests]:
                del self._uses[requests]
                self._old.append(self._sets.pop(requests))

    def forget_strangers(self) -> None:
        """No rule leads any more to what an earlier process has used."""
        with self._lock:
            self._old += self._strange
            self._strange = {}

    def _tend(self) -> None:
        """Give numbers away that no program has any more."""
        if self._old:
            self._wait()
            self._names.delete_many([key for key in self._names if key.set in self._old])
            for number in self._old:
                row = self._rows[number]
                self._rows[number] = DnsSetRow()
                self._runs.give(row.cells, row.size)
                self._numbers.give(number)
            self._old = []

    def _add(self, table: _Table) -> int:
        for number, row in self._strange.items():
            if row == table.row(row.cells) and self._cells[row.cells : row.cells + row.size] == table.cells:
                del self._strange[number]
                return number
        self._tend()
        cells = self._runs.take(len(table.cells))
        self._cells[cells : cells + len(table.cells)] = memoryview(table.cells)
        number = self._numbers.take()
        self._rows[number] = table.row(cells)
        return number

    def _call(self, number: int, patterns: Iterable[NamePattern]) -> None:
        """Write down what names there are, for people: where there is no room for it, they see less."""
        texts = sorted(each.text for each in patterns)
        rows = {DnsNameKey(number, at): NameRow(fitting(text)) for at, text in enumerate(texts, 1)}
        self._names.delete_many([key for key in self._names if key.set == number and key not in rows])
        with suppress(MapFullError):
            self._names.update_many(rows)

    def close(self) -> None:
        """Let go of the maps; questions are judged as they are."""
        self._own.close()


def _table(requests: Iterable[Hashable]) -> _Table:
    patterns = [each for each in requests if isinstance(each, NamePattern)]
    made = automaton([_expression(each) for each in patterns], max_states=FITS - 1, told_apart=False)
    cells = array("H", (state | FITS if made.accepts[state] else state for state in made.table))
    classes = bytearray(made.classes)
    classes[ord(".")] = made.classes[0]  # inside of a label it is no dot, and no letter of a name
    classes[ord("A") : ord("Z") + 1] = made.classes[ord("a") : ord("z") + 1]
    if len(patterns) < len([*requests]):
        raise ModelError("questions to name servers can only be held to names and patterns of them")
    return _Table(cells, made.width, made.classes[ord(".")], bytes(classes))


def _expression(pattern: NamePattern) -> Regex:
    """About a name in lower case that ends with a dot."""
    if pattern.text == "*":
        return Regex(rf"({_LETTER}+\.)+|\.")
    if pattern.text == ".":
        return Regex(r"\.")
    if not pattern.text.strip("*"):  # one label, which only the root has not
        return Regex(rf"{_LETTER}+\.")
    above, rest = "", pattern.text
    if rest.startswith("**."):
        above, rest = rf"({_LETTER}+\.)+", rest.removeprefix("**.")
    return Regex(above + rest.replace(".", r"\.").replace("*", f"{_LETTER}*") + r"\.")
