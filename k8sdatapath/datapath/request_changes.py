"""What a change of rules about requests allows and cuts: only what there is an example of.

A rule that goes cuts nothing if another one has all of it, and one that comes may allow nothing new. So of
all that rules ask for, methods, paths, hosts and names, one text is made for each set of expressions that a
text can match, and requests are put together of these; the other answer, ``judge``, judges them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import product
from typing import TypeAlias

from attrs import frozen

from k8sdatapath.datapath.automaton import START, automaton
from k8sdatapath.datapath.http_tables import BAD_PATH
from k8sdatapath.errors import CapacityError
from k8sdatapath.model.http import judge, written
from k8sdatapath.model.http_rules import HTTPRule
from k8sdatapath.model.names import NamePattern
from k8sdatapath.model.regex import Regex

__all__ = ["RequestChange", "Sides", "request_changes"]

Sides: TypeAlias = tuple[frozenset[Hashable], ...]
"""What requests have to be, one of these is enough, by each end of a connection; none at all: anything."""

_WORDS = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
_METHODS = ("GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS")
_METHOD = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789!#$%&'*+-.^_`|~"
_PATH = _WORDS + b"/-._~?=&%+,;:@!$'()*\"<>[]^`{|}"
_HOST = _WORDS + b"-.:[]_"
_NAME = b"abcdefghijklmnopqrstuvwxyz0123456789-_."
_NO_NAME = Regex(r"\..+|.+\.|.*\.\..*")


@frozen
class RequestChange:
    """Requests that are allowed after a change and were not before, or the other way round.

    :ivar requests: the rules that they are of.
    :ivar others: it is all requests, and what is none, but for those of these rules.
    :ivar example: one of them; empty: none is known.
    """

    allowed: bool
    requests: tuple[str, ...]
    others: bool
    example: str


@lru_cache(1 << 12)
def request_changes(before: Sides, after: Sides) -> tuple[RequestChange, ...]:
    """What becomes of requests over a connection that is allowed before and after."""
    return tuple(
        change
        for at, (was, now) in enumerate(zip(before, after, strict=True))
        if was != now
        for change in (
            *_told(False, was, now, _others(before, at)),
            *_told(True, now, was, _others(after, at)),
        )
    )


def _others(sides: Sides, at: int) -> Sides:
    return tuple(each for place, each in enumerate(sides) if place != at and each)


def _told(
    allowed: bool, some: frozenset[Hashable], instead: frozenset[Hashable], also: Sides
) -> Iterator[RequestChange]:
    """What some rules allow and those instead of them do not, as far as other sides allow it as well."""
    if some and instead:
        told = {str(each): _example(each, also, instead) for each in sorted(some - instead, key=str)}
        there = {rule: example for rule, example in told.items() if example is not None}
        if there:
            yield RequestChange(allowed, tuple(there), False, next(filter(None, there.values()), ""))
    elif instead:
        names = any(isinstance(each, NamePattern) for each in instead)
        example = _example(NamePattern("*") if names else HTTPRule(), also, instead)
        yield RequestChange(allowed, tuple(sorted(map(str, instead))), True, example or "")


def _example(rule: Hashable, also: Sides, but: frozenset[Hashable]) -> str | None:
    """A request that a rule allows, and some sets, and another set not; None: there is none.

    It is empty where none is known: rules are of two kinds, or take too many states.
    """
    rules = frozenset(each for those in (*also, but, (rule,)) for each in those)
    try:
        if isinstance(rule, HTTPRule) and all(isinstance(each, HTTPRule) for each in rules):
            return _http(rules).example(rule, also, but)
        if isinstance(rule, NamePattern) and all(isinstance(each, NamePattern) for each in rules):
            return _name(rule, also, but, _names(rules))
    except CapacityError:
        pass
    return ""


@lru_cache(64)
def _http(rules: frozenset[Hashable]) -> _Requests:
    return _Requests([each for each in rules if isinstance(each, HTTPRule)])


@lru_cache(64)
def _names(rules: frozenset[Hashable]) -> tuple[str, ...]:
    patterns = [_expression(each) for each in rules if isinstance(each, NamePattern)]
    return tuple(_texts(patterns, _NAME, bad=_NO_NAME).values())


def _expression(pattern: NamePattern) -> Regex:
    if pattern.text == "*":
        return Regex("[-a-z0-9_.]+")
    above, text = (
        ("([-a-z0-9_]+\\.)+", pattern.text[3:]) if pattern.text.startswith("**.") else ("", pattern.text)
    )
    return Regex(above + text.replace(".", "\\.").replace("*", "[-a-z0-9_]*"))


def _name(
    rule: NamePattern, also: Sequence[Iterable[Hashable]], but: Iterable[Hashable], names: Iterable[str]
) -> str | None:
    def fits(name: str, those: Iterable[Hashable]) -> bool:
        return any(isinstance(each, NamePattern) and each.matches(name) for each in those)

    for name in names:
        if fits(name, [rule]) and all(fits(name, each) for each in also) and not fits(name, but):
            return name
    return None


class _Requests:
    """Requests of which one is enough wherever rules say the same of several."""

    def __init__(self, rules: Sequence[HTTPRule]) -> None:
        self._methods = _texts(_given(each.method for each in rules), _METHOD, first=_METHODS)
        self._paths = _texts(_given(each.path for each in rules), _PATH, begin=b"/", bad=BAD_PATH)
        self._hosts = _texts(_given(each.host for each in rules), _HOST, first=("",))
        values = {header.value for each in rules for header in each.headers}
        self._value = next(
            text for text in ("x" * n for n in range(1, len(values) + 2)) if text not in values
        )

    def example(self, rule: HTTPRule, also: Sides, but: frozenset[Hashable]) -> str | None:
        """See :func:`_example`."""
        lines = product(
            *(
                [each for each in texts.items() if wanted is None or wanted in each[0]]
                for texts, wanted in (
                    (self._methods, rule.method),
                    (self._paths, rule.path),
                    (self._hosts, rule.host),
                )
            )
        )
        for (methods, method), (paths, path), (hosts, host) in lines:
            met = _met(methods, paths, hosts)
            missed, *others = (
                [each for each in those if isinstance(each, HTTPRule) and met(each)] for those in (but, *also)
            )
            for together in product(*others):
                headers = self._headers([rule, *together])
                if headers is None or any(_has(headers, each) for each in missed):
                    continue
                named = [f"{name}: {value}" for name, value in headers.items()]
                text = "\n".join([f"{method} {path}", *([f"Host: {host}"] if host else []), *named])
                if all(_allowed(text, [each]) for each in (rule, *together)) and not _allowed(text, missed):
                    return text
        return None

    def _headers(self, rules: Iterable[HTTPRule]) -> dict[str, str] | None:
        """The fewest that all of these ask for; None: what they ask for cannot be."""
        found: dict[str, str | None] = {}
        for each in (header for rule in rules for header in rule.headers):
            there = found.get(each.name)
            if None not in (there, each.value) and there != each.value:
                return None
            found[each.name] = there if each.value is None else each.value
        return {name: self._value if value is None else value for name, value in found.items()}


def _given(expressions: Iterable[Regex | None]) -> list[Regex]:
    return list(dict.fromkeys(each for each in expressions if each is not None))


def _met(
    methods: Collection[Regex], paths: Collection[Regex], hosts: Collection[Regex]
) -> Callable[[HTTPRule], bool]:
    """Whether a rule is met by a request, but for its headers."""

    def met(rule: HTTPRule) -> bool:
        asked = (rule.method, methods), (rule.path, paths), (rule.host, hosts)
        return all(wanted is None or wanted in there for wanted, there in asked)

    return met


def _has(headers: Mapping[str, str], rule: HTTPRule) -> bool:
    return all(each.name in headers and each.value in (None, headers[each.name]) for each in rule.headers)


def _allowed(text: str, rules: Iterable[HTTPRule]) -> bool:
    return judge(written(text), rules).reason is None


def _texts(
    expressions: Sequence[Regex],
    alphabet: bytes,
    *,
    first: Iterable[str] = (),
    begin: bytes = b"",
    bad: Regex | None = None,
) -> dict[frozenset[Regex], str]:
    """For each set of expressions that a text can match the shortest that does.

    :param alphabet: the bytes that it is made of, the first ones rather than others.
    :param first: texts that are taken rather than others.
    :param begin: what all others begin with; they are not empty.
    :param bad: what no text may match.
    """
    avoided = [] if bad is None else [bad]
    machine = automaton([*avoided, *expressions])
    told_apart = {machine.classes[byte]: byte for byte in reversed(alphabet)}
    found: dict[frozenset[Regex], str] = {}

    def keep(accepts: Collection[int], text: bytes) -> None:
        if all(number >= len(avoided) for number in accepts):
            found.setdefault(frozenset(expressions[n - len(avoided)] for n in accepts), text.decode())

    def step(state: int, byte: int) -> int:
        return machine.table[state * machine.width + machine.classes[byte]]

    for word in first:
        keep(machine.match(word.encode()), word.encode())
    state = START
    for byte in begin:
        state = step(state, byte)
    seen, waiting = set[int](), deque([(state, begin)])
    while waiting:
        state, text = waiting.popleft()
        if text:
            keep(machine.accepts[state], text)
        for byte in sorted(told_apart.values(), key=alphabet.index):
            then = step(state, byte)
            if then not in seen:
                seen.add(then)
                waiting.append((then, text + bytes((byte,))))
    return found
