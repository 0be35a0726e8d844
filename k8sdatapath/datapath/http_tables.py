"""HTTP rules as tables for the kernel: the automata that read requests, byte by byte.

One automaton reads a method and a target, and knows when it has read them which rules they meet: the
automaton of all the rules' methods leads, at the space, to one of the paths of those rules that are left. If
no header matters any more, the request is decided there; otherwise another automaton reads the headers, and
notes facts about them, which add up to a rule or do not.

Rules that multiply each other's states, as ``.*`` does, are shared out among several such pairs, each of
which reads all of a request: what one of them allows is allowed.

What is denied whatever the rules say is part of the tables too: see :mod:`k8sdatapath.model.http`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from attrs import frozen

from k8sdatapath.datapath.automaton import START, Automaton, automaton
from k8sdatapath.datapath.http_builder import (
    ANY,
    CR,
    LF,
    SPACE,
    TOKEN,
    Builder,
    Cell,
    Read,
    Table,
    expect,
    words,
    wrong,
)
from k8sdatapath.datapath.http_headers import Facts, headers_table
from k8sdatapath.errors import CapacityError
from k8sdatapath.model.http import HTTPReason
from k8sdatapath.model.http_rules import HTTPRule
from k8sdatapath.model.regex import Regex
from k8sdatapath.tables.l7 import GROUPS, Action, FactRow, Section

__all__ = ["BAD_PATH", "HTTPGroup", "HTTPTables", "http_tables"]

_IS_HEAD = 1
_MAX_CANDIDATES = 1024


_TRICK = (  # escapes of what needs none, and of what splits or ends a path
    "([01][0-9A-Fa-f]|2[dDeEfF]|3[0-9]|4[1-9A-Fa-f]|5[0-9AaCcFf]|6[1-9A-Fa-f]|7[0-9AaEeFf]|[cC][01])"
)
#: Paths, without a query, that are denied when they are complete.
BAD_PATH = Regex(
    rf"[^?]*(//|/\.\.?(;[^/?]*)?/|%([^0-9A-Fa-f?]|[0-9A-Fa-f][^0-9A-Fa-f?]|{_TRICK}))[^?]*"
    r"|[^?]*(/\.\.?(;[^/?]*)?|%[0-9A-Fa-f]?)"
)
_HAS_QUERY = Regex(r"[^?]*\?(?s:.)*")


@frozen
class HTTPGroup:
    """What holds requests to some of the rules of a set.

    :ivar headers: None: no rule asks for any, and the common table reads them.
    """

    line: Table
    headers: Table | None

    @property
    def tables(self) -> tuple[Table, ...]:
        """Those that there are."""
        return (self.line,) if self.headers is None else (self.line, self.headers)


@frozen
class HTTPTables:
    """What holds requests to some rules.

    :ivar rules: in the order of their numbers, from 1.
    :ivar groups: the first one also says what is malformed.
    """

    rules: tuple[HTTPRule, ...]
    groups: tuple[HTTPGroup, ...]


def http_tables(rules: Iterable[HTTPRule]) -> HTTPTables:
    """The tables of rules, of which one is enough, in as few groups as can be.

    :raises CapacityError: they take too many states, or ask for too many facts about headers.
    """
    ordered = tuple(sorted(set(rules), key=repr))
    numbered = tuple(enumerate(ordered, 1))
    for count in range(1, GROUPS + 1):  # neighbours are alike: they go to different groups
        try:
            groups = tuple(_group(numbered[n::count], alone=count == 1) for n in range(count))
        except CapacityError:
            if count == min(GROUPS, len(ordered)):
                raise
        else:
            return HTTPTables(ordered, groups)
    raise AssertionError


@frozen
class _Known:
    """What a rule that is met leads to depends on it.

    :ivar version: the state that reads it.
    :ivar alone: no other group has rules of the set.
    """

    facts: Facts
    version: int
    alone: bool


def _group(numbered: Sequence[tuple[int, HTTPRule]], *, alone: bool) -> HTTPGroup:
    facts = Facts([rule for _, rule in numbered])
    return HTTPGroup(_line(numbered, facts, alone), headers_table(facts) if facts.names else None)


def _line(numbered: Sequence[tuple[int, HTTPRule]], facts: Facts, alone: bool) -> Table:
    rules = [rule for _, rule in numbered]
    special = [Regex("PRI"), Regex("HEAD")]
    methods = automaton([*special, *(rule.method or ANY for rule in rules)])
    found = dict.fromkeys(methods.accepts)
    kinds = {accepts: tuple(n - len(special) for n in accepts if n >= len(special)) for accepts in found}
    paths = {those: _paths([rules[number] for number in those]) for those in dict.fromkeys(kinds.values())}
    known = frozenset(b" \r\n/*?#\\01HTP.")
    build = Builder(
        lambda byte: (byte if byte in known else None, byte in TOKEN, 0x20 < byte < 0x7F),
        [methods, *paths.values()],
    )
    about = _Known(facts, _version(build), alone)
    targets = {}
    for accepts, those in kinds.items():
        left = [numbered[place] for place in those]
        preface, head = 0 in accepts, 1 in accepts
        targets[accepts] = _target(build, left, paths[those], about, preface=preface, head=head)
    first = build.states(methods.states)

    def reader(state: int, *, empty: bool = False) -> Read:
        row = state * methods.width

        def read(byte: int) -> Cell:
            if byte in TOKEN:
                return build.go(first + methods.table[row + methods.classes[byte]])
            if byte == SPACE and not empty:
                return build.go(targets[methods.accepts[state]])
            return wrong(HTTPReason.METHOD)

        return read

    for state in range(methods.states):
        build.fill(first + state, reader(state))
    # The automaton may come back to its start: having read nothing is a state of its own.
    return build.table({Section.REQUEST: build.state(reader(START, empty=True))})


def _paths(rules: Sequence[HTTPRule]) -> Automaton:
    """Whether a path is a bad one, whether there is a query, then the rules."""
    return automaton([BAD_PATH, _HAS_QUERY, *(rule.path or ANY for rule in rules)])


def _target(
    build: Builder,
    rules: Sequence[tuple[int, HTTPRule]],
    paths: Automaton,
    about: _Known,
    *,
    preface: bool,
    head: bool,
) -> int:
    """The state that begins to read a target, where some rules are left."""
    first = build.states(paths.states)

    def reader(state: int) -> Read:
        row, accepts = state * paths.width, paths.accepts[state]
        bad, query = 0 in accepts, 1 in accepts
        left = [rules[number - 2] for number in accepts if number >= 2]
        end = wrong(HTTPReason.PATH) if bad else _outcome(build, left, about, head)

        def read(byte: int) -> Cell:
            if byte == SPACE:
                return end
            if byte in (CR, LF):
                return wrong(HTTPReason.VERSION)  # HTTP/0.9
            if not 0x20 < byte < 0x7F or byte == ord("#"):
                return wrong(HTTPReason.TARGET)
            if (byte == ord("\\") and not query) or (byte == ord("?") and bad):
                return wrong(HTTPReason.PATH)
            return build.go(first + paths.table[row + paths.classes[byte]])

        return read

    for state in range(paths.states):
        build.fill(first + state, reader(state))
    slash = reader(START)

    def begin(byte: int) -> Cell:
        if byte == ord("/"):
            return slash(byte)
        return wrong(HTTPReason.HTTP2 if preface and byte == ord("*") else HTTPReason.TARGET)

    return build.state(begin)


def _outcome(build: Builder, rules: Sequence[tuple[int, HTTPRule]], about: _Known, head: bool) -> Cell:
    """What a method and a target lead to that meet some rules."""
    if not rules and about.alone:
        return wrong(HTTPReason.NO_RULE)
    plain = [number for number, rule in rules if rule.host is None and not rule.headers]
    candidates = [] if plain else [(number, about.facts.needs(rule)) for number, rule in rules]
    if len(candidates) > _MAX_CANDIDATES:
        raise CapacityError("HTTP rules of one path that ask for headers", len(candidates), _MAX_CANDIDATES)
    nothing = words(0)
    rows = [
        FactRow(
            words(about.facts.at_first),
            nothing,
            build.at(about.version),
            _IS_HEAD if head else 0,
            plain[0] if plain else 0,
            len(candidates),
            0,
        )
    ]
    rows += [FactRow(words(holds), words(lacks), 0, 0, number, 0, 0) for number, (holds, lacks) in candidates]
    return build.row(Action.TARGET, rows)


def _version(build: Builder) -> int:
    """``HTTP/1.1`` or ``HTTP/1.0``, and the end of the line."""

    def end(minor: int) -> int:
        feed = build.state(
            lambda byte: build.go(0, Action.LINE, minor) if byte == LF else wrong(HTTPReason.LINE)
        )

        def read(byte: int) -> Cell:
            if byte == CR:
                return build.go(feed)
            return wrong(HTTPReason.LINE if byte == LF else HTTPReason.VERSION)

        return build.state(read)

    minors = {ord("0"): end(0), ord("1"): end(1)}
    state = build.state(lambda byte: build.go(minors[byte]) if byte in minors else wrong(HTTPReason.VERSION))
    for expected in reversed(b"HTTP/1."):
        state = expect(build, expected, build.go(state), HTTPReason.VERSION)
    return state
