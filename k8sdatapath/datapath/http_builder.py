"""Automata of the kernel in the making."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeAlias

from attrs import field, frozen

from k8sdatapath.datapath.automaton import Automaton
from k8sdatapath.errors import CapacityError
from k8sdatapath.model.http import HTTPReason
from k8sdatapath.model.regex import Regex
from k8sdatapath.tables.l7 import NAME, RUN, WORDS, Action, FactRow, Section

__all__ = [
    "ANY",
    "CR",
    "DIGITS",
    "LF",
    "SPACE",
    "TOKEN",
    "Builder",
    "Cell",
    "Read",
    "Table",
    "expect",
    "words",
    "wrong",
]

CR, LF, SPACE = b"\r\n "
TOKEN = frozenset(b"!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
DIGITS = {byte: byte - ord("0") for byte in b"0123456789"}
ANY = Regex("(?s:.)*")

Cell: TypeAlias = int
Read: TypeAlias = Callable[[int], Cell]
"""What a state makes of a byte."""


@frozen(repr=False)
class Table:
    """An automaton as the kernel has it.

    :ivar cells: see ``struct kd_l7_block``.
    :ivar start: where sections begin.
    :ivar initials: by the length of a header's name: bits of the letters that those begin with that matter.
    """

    classes: bytes
    width: int
    cells: array[int] = field(eq=False)
    rows: tuple[FactRow, ...]
    start: Mapping[Section, int]
    initials: tuple[int, ...]

    def __repr__(self) -> str:
        return f"<Table states={len(self.cells) // self.width} classes={self.width} rows={len(self.rows)}>"


class Builder:
    """States are numbered as they are asked for, and filled in any order.

    :param signature: bytes of which it says the same are one class, as far as ``automata`` allow.
    """

    def __init__(self, signature: Callable[[int], object], automata: Iterable[Automaton] = ()) -> None:
        kinds: dict[tuple[object, ...], int] = {}
        automata = list(automata)
        self.classes = bytes(
            kinds.setdefault((signature(byte), *(each.classes[byte] for each in automata)), len(kinds))
            for byte in range(256)
        )
        self.width = len(kinds)
        self.bytes = [self.classes.index(number) for number in range(self.width)]  # one of each class
        self.rows: list[FactRow] = []
        self._cells: list[list[Cell]] = []
        self._known: dict[FactRow | tuple[FactRow, ...], int] = {}

    def states(self, number: int = 1) -> int:
        """The first of so many new ones."""
        first = len(self._cells)
        self._cells += [[] for _ in range(number)]
        return first

    def fill(self, state: int, read: Read) -> int:
        """What a state makes of each byte; returns the state."""
        self._cells[state] = [read(byte) for byte in self.bytes]
        return state

    def state(self, read: Read) -> int:
        """A new one, filled."""
        return self.fill(self.states(), read)

    def go(self, state: int, action: Action = Action.GO, arg: int = 0) -> Cell:
        """To another state, with something to do on the way."""
        return self.at(state) << 8 | action << 4 | arg

    def at(self, state: int) -> int:
        """Where the row of a state begins."""
        return state * self.width

    def row(self, action: Action, rows: Sequence[FactRow]) -> Cell:
        """An action with a row, and those behind it."""
        key = tuple(rows)
        if key not in self._known:
            self._known[key] = len(self.rows)
            self.rows += rows
        return self._known[key] << 8 | action << 4

    def table(self, start: Mapping[Section, int], names: Iterable[str] = ()) -> Table:
        """What has come of it.

        :param names: headers that matter.
        """
        cells = array("I", [cell for row in self._cells for cell in row])
        if runs := self._runs():
            cells = array(
                "I", [cell | RUN if not cell & 0xFF and cell >> 8 in runs else cell for cell in cells]
            )
        if self.at(len(self._cells)) >= 1 << 24:
            raise CapacityError("cells of a table of HTTP rules", len(cells), 1 << 24)
        places = {section: self.at(state) for section, state in start.items()}
        return Table(self.classes, self.width, cells, tuple(self.rows), places, _initials(names))

    def _runs(self) -> set[int]:
        """Where rows of states begin that no byte changes but a control character."""
        plain = {self.classes[byte] for byte in range(0x20, 0x100) if byte != 0x7F}
        states = enumerate(self._cells)
        return {self.at(n) for n, row in states if all(row[each] == self.go(n) for each in plain)}


def _initials(names: Iterable[str]) -> tuple[int, ...]:
    """Programs leave to the automaton what is longer, or does not begin with a letter."""
    found = [0] * NAME
    for name in names:
        if len(name) < NAME and "a" <= name[0] <= "z":
            found[len(name)] |= 1 << ord(name[0]) - ord("a")
    return tuple(found)


def wrong(reason: HTTPReason) -> Cell:
    """The message is denied."""
    return reason << 8 | Action.ERROR << 4


def expect(build: Builder, expected: int, then: Cell, reason: HTTPReason) -> int:
    """A state that takes one byte only."""
    return build.state(lambda byte: then if byte == expected else wrong(reason))


def words(facts: int) -> tuple[int, ...]:
    """Facts as the kernel has them."""
    return tuple(facts >> 64 * word & (1 << 64) - 1 for word in range(WORDS))
