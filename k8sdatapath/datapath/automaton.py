"""Many regular expressions as one automaton: one step per byte, however many expressions there are.

Expressions become Thompson's automaton here, and that becomes a deterministic one in C. Bytes that no
expression tells apart are one class, so a row has some tens of columns instead of 256.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

from attrs import field, frozen

from k8sdatapath.errors import CapacityError
from k8sdatapath.model.regex import Anchor, Bytes, Choice, Regex, Repeat, Series, Tree
from k8sdatapath.pybpf.dfa import NodeKind, build

__all__ = ["Automaton", "automaton"]

#: Bounds of one automaton: its states, and the time that making it may take (about a second).
MAX_STATES = 1 << 14
MAX_NODES = 1 << 18
MAX_WORK = 1 << 24

DEAD, START = 0, 1


@frozen(repr=False)
class Automaton:
    """Tells which of its expressions match a text.

    :ivar classes: the class of each of the 256 bytes.
    :ivar width: how many classes there are.
    :ivar table: the next state, by ``state * width + class``. State 0 is dead, 1 the start.
    :ivar accepts: by state, the numbers of the expressions that match what led to it.
    """

    classes: bytes
    width: int
    table: array[int] = field(eq=False)
    accepts: tuple[tuple[int, ...], ...]

    @property
    def states(self) -> int:
        """How many states there are."""
        return len(self.accepts)

    def match(self, text: bytes) -> tuple[int, ...]:
        """The numbers of the expressions that match the whole text."""
        state = START
        for byte in text:
            state = self.table[state * self.width + self.classes[byte]]
        return self.accepts[state]

    def __repr__(self) -> str:
        return f"<Automaton states={self.states} classes={self.width}>"


def automaton(
    expressions: Sequence[Regex],
    *,
    max_states: int = MAX_STATES,
    max_work: int = MAX_WORK,
    told_apart: bool = True,
) -> Automaton:
    """One automaton of some expressions; their numbers are their places.

    Expressions that begin with ``.*`` multiply each other's states: several automata take fewer.

    :param told_apart: otherwise all have the number 0, which takes fewer states.
    :raises CapacityError: it takes more states, or more work, than it may.
    """
    nodes = _Nodes()
    try:
        starts = [
            nodes.of(expression.tree, nodes.add(NodeKind.ACCEPT, number if told_apart else 0))
            for number, expression in enumerate(expressions)
        ]
        start = nodes.any_of(starts)
    except _TooManyError:
        start = None
    if start is not None:
        classes, sets = _classes(list(nodes.sets))
        dfa = build(nodes.nodes, start, sets, max_states=max_states, max_work=max_work)
        if dfa is not None:
            return Automaton(classes, max(classes) + 1, dfa.table, dfa.accepts)
    raise CapacityError("states of an automaton", max_states + 1, max_states)


class _TooManyError(Exception):
    """The expressions have more nodes than an automaton may."""


class _Nodes:
    """Thompson's automaton, built from its end: each part is told what follows it."""

    def __init__(self) -> None:
        self.nodes: list[tuple[NodeKind, int, int]] = []
        self.sets: dict[int, int] = {}

    def add(self, kind: NodeKind, arg: int = 0, next: int = 0) -> int:
        if len(self.nodes) >= MAX_NODES:
            raise _TooManyError
        self.nodes.append((kind, arg, next))
        return len(self.nodes) - 1

    def any_of(self, starts: Sequence[int]) -> int:
        """A node that leads to all of some; to none, to nothing."""
        if not starts:
            return self.add(NodeKind.SET, self.sets.setdefault(0, len(self.sets)))
        first = starts[-1]
        for other in reversed(starts[:-1]):
            first = self.add(NodeKind.SPLIT, other, first)
        return first

    def of(self, tree: Tree, next: int) -> int:
        """The first node of a tree that ``next`` follows."""
        match tree:
            case Bytes(mask):
                return self.add(NodeKind.SET, self.sets.setdefault(mask, len(self.sets)), next)
            case Anchor(end):
                return self.add(NodeKind.LAST if end else NodeKind.FIRST, 0, next)
            case Series(parts):
                for part in reversed(parts):
                    next = self.of(part, next)
                return next
            case Choice(parts):
                return self.any_of([self.of(part, next) for part in parts])
            case Repeat(part, low, high):
                return self.repeat(part, low, high, next)

    def repeat(self, part: Tree, low: int, high: int | None, next: int) -> int:
        if high is None:
            again = self.add(NodeKind.SPLIT, 0, next)
            self.nodes[again] = (NodeKind.SPLIT, self.of(part, again), next)
            next = again
        else:
            end = next
            for _ in range(high - low):
                next = self.add(NodeKind.SPLIT, self.of(part, next), end)
        for _ in range(low):
            next = self.of(part, next)
        return next


def _classes(masks: Sequence[int]) -> tuple[bytes, list[bytes]]:
    """The class of every byte, and for each mask which classes it has."""
    kinds: dict[tuple[bool, ...], int] = {}
    classes = bytes(
        kinds.setdefault(tuple(bool(mask >> byte & 1) for mask in masks), len(kinds)) for byte in range(256)
    )
    return classes, [bytes(kind[number] for kind in kinds) for number in range(len(masks))]
