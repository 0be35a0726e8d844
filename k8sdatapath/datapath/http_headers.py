"""Headers as tables for the kernel: what they mean for the message, and the facts that rules ask for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import count

from k8sdatapath.datapath.automaton import START, Automaton, automaton
from k8sdatapath.datapath.http_builder import (
    ANY,
    CR,
    DIGITS,
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
from k8sdatapath.errors import CapacityError
from k8sdatapath.model.http import HTTPReason
from k8sdatapath.model.http_rules import HTTPRule
from k8sdatapath.model.regex import Regex
from k8sdatapath.tables.l7 import WORDS, Action, FactRow, Framing, Section

__all__ = ["Facts", "common_table", "headers_table"]

_HEX = {byte: int(chr(byte), 16) for byte in b"0123456789abcdefABCDEF"}


class Facts:
    """The facts that rules ask for, as bits; of each header two are that it is there, and there twice."""

    def __init__(self, rules: Sequence[HTTPRule]) -> None:
        self.hosts = list(dict.fromkeys(rule.host for rule in rules if rule.host is not None))
        self.values: dict[str, dict[str, int]] = {}
        numbers = count(0, 2)
        self.names = {name: next(numbers) for name in dict.fromkeys(h.name for r in rules for h in r.headers)}
        if self.hosts:
            self.names.setdefault("host", next(numbers))
        facts = count(next(numbers))
        self.of_host = {host: next(facts) for host in self.hosts}
        for rule in rules:
            for header in rule.headers:
                if header.value is not None:
                    of_name = self.values.setdefault(header.name, {})
                    if header.value not in of_name:
                        of_name[header.value] = next(facts)
        size = next(facts)
        if size > 64 * WORDS:
            raise CapacityError("facts about headers that one set of HTTP rules asks for", size, 64 * WORDS)
        self.at_first = sum(1 << fact for host, fact in self.of_host.items() if host.matches(b""))

    def needs(self, rule: HTTPRule) -> tuple[int, int]:
        """What has to be, and what must not."""
        holds = lacks = 0
        if rule.host is not None:
            holds |= 1 << self.of_host[rule.host]
        for header in rule.headers:
            seen = self.names[header.name]
            holds |= 1 << seen
            if header.value is not None:
                holds |= 1 << self.values[header.name][header.value]
                lacks |= 2 << seen
        return holds, lacks

    def of_value(self, name: str) -> dict[Regex, int]:
        """What a value of a header may be, and the fact that it is."""
        found = {Regex.literal(value): fact for value, fact in self.values.get(name, {}).items()}
        return found | (self.of_host if name == "host" else {})


_FRAMING = {
    "content-length": (Regex("[0-9]+"), Framing.LENGTH, Framing.BAD_LENGTH),
    "transfer-encoding": (Regex("(?i)chunked"), Framing.ENCODING, Framing.BAD_ENCODING),
    "host": (ANY, Framing.HOST, Framing.HOST),
    "upgrade": (ANY, Framing.UPGRADE, Framing.UPGRADE),
}


def headers_table(facts: Facts) -> Table:
    """Headers that rules ask for."""
    values = header_values(facts)
    build, starts = header_section(facts, values)
    return build.table(starts, values)


def header_values(facts: Facts) -> dict[str, Automaton]:
    """The headers that matter, and what reads their values."""
    return {name: _values(facts, name) for name in dict.fromkeys([*_FRAMING, *facts.names])}


def header_section(
    facts: Facts, values: Mapping[str, Automaton], *signatures: Callable[[int], object]
) -> tuple[Builder, dict[Section, int]]:
    """A builder, and the states that read the headers of requests."""
    letters = frozenset("".join(values).encode())
    known = frozenset(b"\r\n: \t0123456789")

    def signature(byte: int) -> object:
        lower = byte | 0x20 if chr(byte).isalpha() and byte < 0x80 else byte
        return (
            byte if byte in known else None,
            lower if lower in letters else None,
            byte in TOKEN,
            byte < 0x20 or byte == 0x7F,
            *(each(byte) for each in signatures),
        )

    build = Builder(signature, values.values())
    headers, value = _headers(build, facts, values)
    return build, {Section.HEADERS: headers, Section.VALUE: value}


def _headers(
    build: Builder, facts: Facts, values: Mapping[str, Automaton], *, of_response: bool = False
) -> tuple[int, int]:
    """The state that begins to read headers, of which some matter, and that of the values of all others.

    :param of_response: what the names of others are does not matter either.
    """
    begin = build.states()
    feed = expect(build, LF, build.go(begin), HTTPReason.LINE)
    entries = {name: _value(build, facts, name, values[name], begin) for name in values}
    other = build.states()

    def any_value(byte: int) -> Cell:
        return _in_value(byte) or build.go(feed if byte == CR else other)

    build.fill(other, any_value)
    stray = other if of_response else build.states()
    read_name = _names(build, entries, other, stray)
    end = build.state(lambda byte: build.go(begin, Action.HEAD) if byte == LF else wrong(HTTPReason.LINE))

    def line(byte: int) -> Cell:
        if byte == CR:
            return build.go(end)
        if byte in b" \t":
            return wrong(HTTPReason.FOLD)
        if byte == ord(":"):
            return wrong(HTTPReason.NAME)
        return read_name(byte)

    return build.fill(begin, line), other


def _values(facts: Facts, name: str) -> Automaton:
    """Whether a value is as it should be, then what rules ask of it."""
    sound = _FRAMING[name][0] if name in _FRAMING else ANY
    return automaton([sound, *facts.of_value(name)])


def _in_value(byte: int) -> Cell:
    """What is wrong with a byte of a value; 0: nothing."""
    if byte == LF:
        return wrong(HTTPReason.LINE)
    if (byte < 0x20 and byte not in (CR, ord("\t"))) or byte == 0x7F:
        return wrong(HTTPReason.VALUE)
    return 0


def _names(build: Builder, entries: Mapping[str, int], other: int, stray: int) -> Read:
    """Reads the names of headers, however they are capitalised; returns how their first byte is read.

    :param other: where the value of one begins that does not matter.
    :param stray: where its name goes on.
    """
    prefixes = {name[:size] for name in entries for size in range(1, len(name) + 1)}
    states = {prefix: build.states() for prefix in sorted(prefixes)}

    def reader(prefix: str) -> Read:
        def read(byte: int) -> Cell:
            if byte in TOKEN:
                return build.go(states.get(prefix + chr(byte).lower(), stray))
            if byte == ord(":"):
                return build.go(entries.get(prefix, other))
            return wrong(HTTPReason.LINE if byte == LF else HTTPReason.NAME)

        return read

    for prefix, state in states.items():
        build.fill(state, reader(prefix))
    if stray != other:
        build.fill(stray, reader("\0"))
    return reader("")


def _value(build: Builder, facts: Facts, name: str, values: Automaton, begin: int) -> int:
    """The state behind the colon of a header that matters: its value without the space around it."""
    wanted = list(facts.of_value(name).values())
    _, sound, unsound = _FRAMING.get(name, (ANY, Framing.NONE, Framing.NONE))
    matters = wanted or sound != unsound  # else it is only passed over
    states: dict[tuple[int, int], int] = {}
    left: list[tuple[int, int]] = []
    ends: dict[int, int] = {}

    def state_of(kept: int, now: int) -> int:
        """One by where the value ends, if only space follows, and by where it is, if it goes on."""
        if (kept, now) not in states:
            states[kept, now] = build.states()
            left.append((kept, now))
        return states[kept, now]

    def end_of(kept: int) -> int:
        if kept not in ends:
            accepts = values.accepts[kept]
            framing = sound if 0 in accepts else unsound
            met = sum(1 << wanted[number - 1] for number in accepts if number >= 1)
            lost = sum(1 << fact for fact in facts.of_host.values()) & ~met if name == "host" else 0
            seen = facts.names[name] + 1 if name in facts.names else 0
            row = FactRow(words(met), words(lost), build.at(begin), framing, 0, 0, seen)
            ends[kept] = expect(build, LF, build.row(Action.HEADER, [row]), HTTPReason.LINE)
        return ends[kept]

    def reader(kept: int, now: int, *, empty: bool = False) -> Read:
        def read(byte: int) -> Cell:
            if found := _in_value(byte):
                return found
            if byte == CR:
                return build.go(end_of(kept))
            if empty and byte in b" \t":
                return build.go(entry)
            after = values.table[now * values.width + values.classes[byte]] if matters else now
            if byte in b" \t":
                return build.go(state_of(kept, after))
            if name == "content-length" and byte in DIGITS:
                return build.go(state_of(after, after), Action.DIGIT, DIGITS[byte])
            return build.go(state_of(after, after))

        return read

    entry = build.states()
    build.fill(entry, reader(START, START, empty=True))
    while left:
        kept, now = left.pop()
        build.fill(states[kept, now], reader(kept, now))
    return entry


# ---- what is the same for all rules


def common_table() -> Table:
    """Headers that no rule asks for, chunks, and the first line of responses."""
    known = frozenset(b"HTP/1.")
    facts = Facts(())
    values = header_values(facts)
    build, starts = header_section(
        facts, values, lambda byte: _HEX.get(byte), lambda byte: byte if byte in known else None
    )
    lengths = {name: values[name] for name in ("content-length", "transfer-encoding")}
    size = build.states()
    feed = expect(build, LF, build.go(size), HTTPReason.CHUNK)
    behind = expect(build, CR, build.go(feed), HTTPReason.CHUNK)
    end = expect(build, LF, build.go(behind, Action.CHUNK), HTTPReason.CHUNK)
    more = build.states()

    def digit(byte: int) -> Cell:
        return build.go(more, Action.HEX, _HEX[byte]) if byte in _HEX else wrong(HTTPReason.CHUNK)

    build.fill(size, digit)
    build.fill(more, lambda byte: build.go(end) if byte == CR else digit(byte))
    feed = expect(build, LF, build.go(0, Action.BODY), HTTPReason.LINE)
    last = expect(build, CR, build.go(feed), HTTPReason.TRAILER)
    answer, _ = _headers(build, facts, lengths, of_response=True)
    starts |= {
        Section.CHUNKS: size,
        Section.LAST: last,
        Section.RESPONSE: _response(build, answer),
        Section.ANSWER: answer,
    }
    return build.table(starts, values)


def _response(build: Builder, headers: int) -> int:
    """The state that begins to read a response."""
    strange = wrong(HTTPReason.VERSION)
    feed = build.state(lambda byte: build.go(headers) if byte == LF else strange)
    phrase = build.states()
    build.fill(phrase, lambda byte: build.go(feed if byte == CR else phrase))

    def digit(then: int) -> Read:
        return lambda byte: build.go(then, Action.STATUS, DIGITS[byte]) if byte in DIGITS else strange

    state = phrase
    for _ in range(3):
        state = build.state(digit(state))
    space = expect(build, SPACE, build.go(state), HTTPReason.VERSION)
    state = build.state(lambda byte: build.go(space) if byte in DIGITS else strange)
    for expected in reversed(b"HTTP/1."):
        state = expect(build, expected, build.go(state), HTTPReason.VERSION)
    return state
