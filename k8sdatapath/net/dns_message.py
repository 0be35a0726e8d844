"""DNS messages, read as far as names, addresses and how long they hold.

What is read was written by strangers. So a message is taken as a whole or not at all, every length is held
against what is there, a name only points backwards, and there are bounds on all that is repeated.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from enum import IntEnum
from ipaddress import IPv4Address, IPv6Address

from attrs import frozen

from k8sdatapath.errors import ModelError
from k8sdatapath.model import IPAddress

__all__ = ["DnsMessage", "RecordType", "first_of", "unframed"]

_HEADER = struct.Struct("!6H")
_LENGTH = struct.Struct("!H")
_RECORD = struct.Struct("!HHIH")
_ANSWER, _OPCODE, _TRUNCATED, _RCODE = 0x8000, 0x7800, 0x0200, 0x000F
_INTERNET = 1
_LABEL = re.compile(rb"[-A-Za-z0-9_]{1,63}")
_LONGEST_NAME = 255
_MOST_RECORDS = 256
_LONGEST_CHAIN = 16
_POINTER = 0xC0


class RecordType(IntEnum):
    """Those that a name is followed through to its addresses."""

    A = 1
    CNAME = 5
    AAAA = 28


@frozen
class _Record:
    name: str
    type: int
    ttl: int
    data: IPAddress | str | None


@frozen(kw_only=True)
class DnsMessage:
    """A question to a name server, or its answer.

    :ivar name: that is asked for: lower case, without the dot at the end.
    :ivar type: of records that are asked for; likewise ``types`` of those that are answered.
    :ivar addresses: what the name stands for, at the end of its aliases.
    :ivar ttl: seconds that all this holds.
    :ivar aliases: names that it leads to, in turn.
    :ivar truncated: there is more to the answer, over TCP.
    """

    id: int
    answer: bool
    rcode: int
    truncated: bool
    name: str
    type: int
    addresses: tuple[IPAddress, ...] = ()
    ttl: int = 0
    aliases: tuple[str, ...] = ()
    types: tuple[int, ...] = ()

    @classmethod
    def parse(cls, data: bytes) -> DnsMessage:
        """Read one.

        :raises ModelError: it is malformed, asks for no name or several, or for something else than names.
        """
        try:
            return cls._parse(data)
        except (struct.error, IndexError):
            raise ModelError(f"a DNS message of {len(data)} bytes ends too early") from None

    @classmethod
    def _parse(cls, data: bytes) -> DnsMessage:
        ident, flags, questions, answers, _, _ = _HEADER.unpack_from(data)
        if flags & _OPCODE or questions != 1:
            raise ModelError("a DNS message that asks no single question")
        name, at = _name(data, _HEADER.size)
        kind, family = struct.unpack_from("!HH", data, at)
        if family != _INTERNET:
            raise ModelError("a DNS message of another class than the internet's")
        if answers > _MOST_RECORDS:
            raise ModelError(f"a DNS message of {answers} records, at most {_MOST_RECORDS} are expected")
        answer = bool(flags & _ANSWER)
        records = tuple(_records(data, at + 4, answers)) if answer else ()
        addresses, aliases, ttl = _followed(name, records)
        return cls(
            id=ident,
            answer=answer,
            rcode=flags & _RCODE,
            truncated=bool(flags & _TRUNCATED),
            name=name,
            type=kind,
            addresses=addresses,
            ttl=ttl,
            aliases=aliases,
            types=tuple(dict.fromkeys(each.type for each in records)),
        )


def unframed(data: bytes) -> tuple[list[bytes], bytes]:
    """The whole messages that a TCP connection's bytes begin with, and what is left behind them."""
    found = []
    while len(data) >= _LENGTH.size:
        end = _LENGTH.size + _LENGTH.unpack_from(data)[0]
        if len(data) < end:
            break
        found.append(data[_LENGTH.size : end])
        data = data[end:]
    return found, data


def first_of(data: bytes) -> bytes:
    """What there is of the message that a TCP connection's bytes begin with."""
    return data[_LENGTH.size :]


def _name(data: bytes, at: int) -> tuple[str, int]:
    """The name at an offset, and where what follows begins."""
    labels: list[str] = []
    left, end, length = at, 0, 0
    while size := data[at]:
        if size & _POINTER == _POINTER:
            target = (size & ~_POINTER) << 8 | data[at + 1]
            end = end or at + 2
            if target >= left or target < _HEADER.size:
                raise ModelError("a DNS name that does not point backwards")
            at = left = target
            continue
        label = data[at + 1 : at + 1 + size]
        length += size + 1
        if size & _POINTER or len(label) < size or length >= _LONGEST_NAME or not _LABEL.fullmatch(label):
            raise ModelError("a DNS name that is none")
        labels.append(label.decode().lower())
        at += 1 + size
    return ".".join(labels) or ".", end or at + 1


def _records(data: bytes, at: int, number: int) -> Iterator[_Record]:
    for _ in range(number):
        name, at = _name(data, at)
        kind, family, ttl, size = _RECORD.unpack_from(data, at)
        at += _RECORD.size
        raw = data[at : at + size]
        if len(raw) < size:
            raise ModelError("a DNS record that ends too early")
        found: IPAddress | str | None = None
        if family == _INTERNET and kind in (RecordType.A, RecordType.AAAA):
            if size != (4 if kind == RecordType.A else 16):
                raise ModelError(f"an address of {size} bytes in a DNS record")
            found = IPv4Address(raw) if kind == RecordType.A else IPv6Address(raw)
        elif family == _INTERNET and kind == RecordType.CNAME:
            found, end = _name(data, at)
            if end != at + size:
                raise ModelError("a DNS alias of another length than its record")
        yield _Record(name, kind, ttl if ttl < 1 << 31 else 0, found)
        at += size


def _followed(name: str, records: tuple[_Record, ...]) -> tuple[tuple[IPAddress, ...], tuple[str, ...], int]:
    """The addresses that a name has, the aliases on the way, and how long all of it holds."""
    aliases: list[str] = []
    ttls: list[int] = []
    for _ in range(_LONGEST_CHAIN):
        step = next((each for each in records if each.name == name and isinstance(each.data, str)), None)
        if step is None or not isinstance(step.data, str):
            break
        name = step.data
        aliases.append(name)
        ttls.append(step.ttl)
    found: list[IPAddress] = []
    for each in records:
        if each.name == name and isinstance(each.data, IPv4Address | IPv6Address):
            if isinstance(each.data, IPv6Address) and each.data.ipv4_mapped:
                continue  # the tables could not tell it from the other family's
            found.append(each.data)
            ttls.append(each.ttl)
    return tuple(dict.fromkeys(found)), tuple(aliases), min(ttls, default=0)
