"""Values that are messages elsewhere: frozen here, with the JSON that Protocol Buffers give them.

The mapping is proto3's with the names of the schema: what is zero or empty is left out, enums are names,
64-bit numbers are strings, a point in time is RFC 3339. Here a point in time is a number of nanoseconds, and
an enum may have a number that has no name yet.

Constructors check nothing: hundreds of thousands are built in a second, by code that knows what it does. What
comes from outside is checked by :meth:`Message.from_dict`.
"""

from __future__ import annotations

import json
import re
from calendar import timegm
from collections.abc import Callable, Mapping
from enum import IntEnum, StrEnum
from functools import lru_cache
from time import gmtime, strftime
from typing import Any, Self

from attrs import field, fields, frozen

from k8sdatapath.errors import ModelError
from k8sdatapath.model.address import shown

__all__ = ["Encoder", "Kind", "Message", "Part", "part", "parts", "placed", "timestamp", "timestamp_text"]

_SECOND = 10**9
_RFC3339 = re.compile(
    r"(\d{4}-\d\d-\d\d)[Tt](\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(?:[Zz]|([+-])(\d\d):(\d\d))", re.ASCII
)


@lru_cache(maxsize=64)  # flows come in order of time, many in one second
def _second_text(seconds: int) -> str:
    return strftime("%Y-%m-%dT%H:%M:%S", gmtime(seconds))


def timestamp_text(nanoseconds: int) -> str:
    """A point in time as RFC 3339, with as many digits as it needs: none, 3, 6 or 9."""
    seconds, rest = divmod(nanoseconds, _SECOND)
    digits = f".{rest:09}" if rest else ""
    while digits.endswith("000"):
        digits = digits[:-3]
    return f"{_second_text(seconds)}{digits}Z"


def timestamp(text: str) -> int:
    """The nanoseconds since 1970 of an RFC 3339 text.

    :raises ModelError: it is none.
    """
    found = _RFC3339.fullmatch(text)
    if not found:
        raise ModelError(f"{shown(text)} is not a point in time like 2006-01-02T15:04:05Z")
    day, clock, fraction, sign, hours, minutes = found.groups()
    (year, month, date), (hour, minute, second) = map(int, day.split("-")), map(int, clock.split(":"))
    if not (year and 1 <= month <= 12 and 1 <= date <= 31 and hour < 24 and minute < 60 and second < 60):
        raise ModelError(f"{shown(text)} is not a point in time that there is")
    seconds = timegm((year, month, date, hour, minute, second))
    if sign:
        seconds -= (int(hours) * 3600 + int(minutes) * 60) * (1 if sign == "+" else -1)
    return seconds * _SECOND + int((fraction or "0").ljust(9, "0"))


class Kind(StrEnum):
    """What a part of a message is."""

    PLAIN = "plain"  #: text, a number of up to 32 bits, or a truth value
    LONG = "long"  #: a number of 64 bits
    TIME = "time"  #: nanoseconds since 1970
    ENUM = "enum"
    BITS = "bits"  #: flags, in JSON a message of truth values
    ONE = "one"  #: a message
    WRAPPED = "wrapped"  #: a message of one of several classes, in JSON within one that has nothing else
    CHOICE = "choice"  #: a message of one of several classes, in JSON the part whose name says which


@frozen
class Part:
    """A part of a message: an attribute here, a field there.

    :ivar attribute: its name in Python.
    :ivar name: its name in the schema.
    :ivar of: the type of what is plain, the class of a message or an enum; of a choice, each class by the
        name of its field.
    :ivar many: whether it is a tuple of them.
    :ivar optional: whether zero is something else than nothing, which is None.
    """

    attribute: str
    name: str
    kind: Kind
    of: Any
    many: bool
    optional: bool


def part(kind: Kind, of: Any = int, *, name: str = "", many: bool = False, optional: bool = False) -> Any:
    """An attribute that is a part of a message; see :class:`Part`.

    :param name: that in the schema, where it is another.
    """
    absent = optional or kind in (Kind.ONE, Kind.CHOICE, Kind.WRAPPED)
    default = () if many else None if absent else of(0) if kind in (Kind.ENUM, Kind.BITS) else of()
    return field(default=default, metadata={"part": (name, kind, of, many, optional)})


_PARTS: dict[type[Any], tuple[Part, ...]] = {}


def parts(message: type[Any]) -> tuple[Part, ...]:
    """All parts of a class of messages, in the order of the schema."""
    if message not in _PARTS:
        declared = [(each.name, *each.metadata["part"]) for each in fields(message)]
        _PARTS[message] = tuple(Part(own, name or own, *rest) for own, name, *rest in declared)
    return _PARTS[message]


class Message:
    """Base of values that are messages elsewhere."""

    __slots__ = ()

    def to_dict(self) -> dict[str, Any]:
        """What its JSON says."""
        found: dict[str, Any] = {}
        for attribute, name, optional, encode in _encoders(type(self)):
            value = getattr(self, attribute)
            if value or (optional and value is not None):
                encode(found, name, value)
        return found

    def to_json(self) -> str:
        """One line."""
        return _json(self.to_dict())

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Self:
        """The message of a JSON; names that are not known are passed over.

        :raises ModelError: a part is not what it should be.
        """
        if not isinstance(value, Mapping):
            raise ModelError(f"{shown(value)} is not a {cls.__name__}: an object is expected")
        arguments: dict[str, Any] = {}
        for each in parts(cls):
            given = value if each.kind is Kind.CHOICE else value.get(each.name)
            if given is not None:
                try:
                    arguments[each.attribute] = _decode(each, given)
                except (AttributeError, TypeError, ValueError, RecursionError) as error:
                    told = str(error) if isinstance(error, ModelError) else f"it cannot be {shown(given)}"
                    raise ModelError(f"{each.name} of a {cls.__name__}: {told}") from None
        return cls(**arguments)

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """The message of a line.

        :raises ModelError: it is not JSON, or not of this message.
        """
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ModelError(f"not JSON: {shown(str(error))}") from None
        return cls.from_dict(value)


_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
Encoder = Callable[[dict[str, Any], str, Any], None]
_Encoders = tuple[tuple[str, str, bool, Encoder], ...]
_ENCODERS: dict[type[Any], _Encoders] = {}


def _encoders(message: type[Any]) -> _Encoders:
    if message not in _ENCODERS:
        found = ((each.attribute, each.name, each.optional, _encoder(each)) for each in parts(message))
        _ENCODERS[message] = tuple(found)
    return _ENCODERS[message]


def _encoder(each: Part) -> Encoder:
    """What puts a part that is there into a dict."""
    words = {member.value: member.name for member in each.of} if each.kind is Kind.ENUM else {}
    cases = {of: name for name, of in each.of.items()} if isinstance(each.of, dict) else {}
    encoders: dict[Kind, Callable[[Any], Any]] = {
        Kind.PLAIN: lambda value: value,
        Kind.LONG: str,
        Kind.TIME: timestamp_text,
        Kind.ENUM: lambda value: words.get(value, value),
        Kind.BITS: lambda value: {member.name: True for member in each.of if value & member},
        Kind.ONE: lambda value: value.to_dict(),
        Kind.WRAPPED: lambda value: {cases[type(value)]: value.to_dict()},
        Kind.CHOICE: lambda value: value.to_dict(),
    }
    if each.kind is Kind.PLAIN and not each.many:
        return dict.__setitem__
    return placed(each, encoders[each.kind])


def placed(each: Part, encode: Callable[[Any], Any]) -> Encoder:
    """What puts the value of a part into a dict: encoded, all of them, or under the name of its kind."""
    cases = {of: name for name, of in each.of.items()} if isinstance(each.of, dict) else {}

    def one(into: dict[str, Any], name: str, value: Any) -> None:
        into[name] = encode(value)

    def many(into: dict[str, Any], name: str, value: Any) -> None:
        into[name] = [encode(member) for member in value]

    def choice(into: dict[str, Any], name: str, value: Any) -> None:
        into[cases[type(value)]] = encode(value)

    if each.many:
        return many
    return choice if each.kind is Kind.CHOICE else one


def _decode(each: Part, given: Any) -> Any:
    """The value of a part, of what JSON says."""
    if each.many:
        return tuple(_decode_one(each, value) for value in _checked(given, list))
    return _decode_one(each, given)


def _decode_one(each: Part, given: Any) -> Any:
    if each.kind is Kind.PLAIN:
        return _checked(given, each.of)
    if each.kind is Kind.LONG:
        return _bounded(int(given if type(given) in (int, str) else _checked(given, int)), 64)
    if each.kind is Kind.TIME:
        return timestamp(_checked(given, str))
    if each.kind is Kind.ENUM:
        return _enum(each.of, given)
    if each.kind is Kind.ONE:
        return each.of.from_dict(given)
    if each.kind is Kind.BITS:
        names = [name for name, on in given.items() if _checked(on, bool)]
        return sum((each.of[name] for name in names if name in each.of.__members__), each.of(0))
    found = (of.from_dict(given[case]) for case, of in each.of.items() if given.get(case) is not None)
    return next(found, None)


def _checked(value: Any, kind: type[Any]) -> Any:
    if type(value) is not kind:
        raise ModelError(f"{shown(value)} is not a {kind.__name__}")
    if kind is str and not value.isascii():
        value.encode()  # which half a character cannot be
    return _bounded(value, 32) if kind is int else value


def _bounded(value: Any, bits: int) -> Any:
    if not -(1 << bits - 1) <= value < 1 << bits:
        raise ModelError(f"{shown(value)} does not fit into {bits} bits")
    return value


def _enum(kind: type[IntEnum], value: Any) -> int:
    if isinstance(value, str):
        if value not in kind.__members__:
            raise ModelError(f"{shown(value)} is not a {kind.__name__}")
        return kind[value]
    number: int = _checked(value, int)
    return kind(number) if number in kind.__members__.values() else number
