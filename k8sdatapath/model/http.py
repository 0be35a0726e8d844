"""What a connection's bytes ask for in HTTP/1, and which of its requests rules allow: the other answer.

Written to be read next to RFC 9112, one function per production, and byte by byte, so that it says after
which byte a request is denied. It shares nothing with the automaton of the kernel but the rules; tests hold
both together, and both to real servers. So nothing here may be clever.

What different servers could read differently is denied, whatever the rules say: :class:`HTTPReason` is the
list. Nothing is normalised: a path is what was sent, or the request is denied.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum
from typing import Self

from attrs import frozen

from k8sdatapath.errors import ModelError
from k8sdatapath.model.address import shown
from k8sdatapath.model.http_rules import HeaderRule, HTTPRule

__all__ = ["MAX_BODY", "MAX_HEAD", "HTTPReason", "HTTPRequest", "Judgement", "judge", "written"]

MAX_HEAD = 8192
"""Bytes of a request line and its headers, with the empty line."""
MAX_BODY = 1 << 60
"""Bytes of a body, or of a chunk of one: fewer than this."""


class HTTPReason(IntEnum):
    """Why a request is denied; all but the first whatever the rules say.

    :ivar words: the same for people.
    """

    words: str

    def __new__(cls, number: int, words: str) -> Self:
        """A number that has words."""
        made = int.__new__(cls, number)
        made._value_ = number
        made.words = words
        return made

    NO_RULE = 1, "no rule allows it"
    METHOD = 2, "it does not begin with a method and one space"
    HTTP2 = 3, "it is HTTP/2 where a connection does not begin, or with another preface"
    TARGET = 4, "what it asks for is not a path, nor a path with a query"
    PATH = 5, "its path is one that servers resolve: dots, empty parts, backslashes, needless escapes"
    VERSION = 6, "it is neither of HTTP/1.1 nor of HTTP/1.0"
    LINE = 7, "a line ends with LF alone, or has a CR inside"
    NAME = 8, "a header has no name, no colon, or a space before it"
    FOLD = 9, "a header goes on in the next line"
    VALUE = 10, "a header has a control character"
    LENGTH = 11, "its Content-Length is no plain number, is too large, or is there twice"
    ENCODING = 12, "its Transfer-Encoding is not just chunked, is there twice, or is of HTTP/1.0"
    BOTH = 13, "it has Content-Length and Transfer-Encoding"
    HOST = 14, "it has more than one Host"
    UPGRADE = 15, "it asks for another protocol"
    TOO_LONG = 16, f"its head has more than {MAX_HEAD} bytes"
    CHUNK = 17, "the size of a chunk is none, is too large, has an extension, or is wrong"
    TRAILER = 18, "it has headers behind its body"
    FRAME = 27, "in HTTP/2: headers that are padded or go on in another frame, a push, an unknown frame"
    FIELD = 28, "in HTTP/2: its headers are malformed, or mean what is not there"


@frozen
class HTTPRequest:
    """A request whose head is complete.

    :ivar begin: of its first byte, in the connection.
    :ivar minor: of the version.
    :ivar headers: in order, names in lower case, values without the space around them.
    """

    begin: int
    method: bytes
    target: bytes
    minor: int
    headers: tuple[tuple[str, bytes], ...] = ()

    def values(self, name: str) -> list[bytes]:
        """The values of a header, given in lower case."""
        return [value for each, value in self.headers if each == name]


@frozen
class Judgement:
    """What becomes of the requests of a connection.

    :ivar allowed: those whose heads were allowed, in order. The body of the last may be incomplete, or wrong.
    :ivar reason: why the connection is ended; None: nothing in it is denied.
    :ivar by: bytes of the connection that had to be seen to deny it.
    :ivar complete: the last byte is the last of a request.
    """

    allowed: tuple[HTTPRequest, ...]
    reason: HTTPReason | None = None
    by: int = 0
    complete: bool = False


def written(text: str) -> bytes:
    """The head of a request, as it is sent, of ``"POST /charge"`` and, on lines of their own, its headers.

    :raises ModelError: it is no such text. What is malformed in HTTP is left as it is.
    """
    line, *headers = text.split("\n")
    if not text.isascii() or len(line.split(" ")) != 2:
        raise ModelError(f"{shown(text)} is not a request: write 'GET /path', and headers on lines below")
    return "\r\n".join([f"{line} HTTP/1.1", *headers, "", ""]).encode()


def judge(data: bytes, rules: Iterable[HTTPRule]) -> Judgement:
    """Judge all that a client has sent over one connection of HTTP/1 so far. HTTP/2 is not read here.

    :param rules: one of them is enough; none at all allow nothing.
    """
    reader = _Connection(data, tuple(rules))
    try:
        while reader.at < len(data):
            reader.request()
    except _DeniedError as denied:
        return Judgement(tuple(reader.allowed), denied.reason, reader.at)
    except _EndError:
        return Judgement(tuple(reader.allowed))
    return Judgement(tuple(reader.allowed), complete=True)


class _EndError(Exception):
    """There are no more bytes yet."""


class _DeniedError(Exception):
    def __init__(self, reason: HTTPReason) -> None:
        self.reason = reason


_DIGITS = b"0123456789"
_LETTERS = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
_HEX = _DIGITS + b"abcdefABCDEF"
_TOKEN = _DIGITS + _LETTERS + b"!#$%&'*+-.^_`|~"
_UNRESERVED = _DIGITS + _LETTERS + b"-._~"
_CR, _LF = b"\r\n"


class _Connection:
    """Reads one byte after the other; ``at`` is how many have been read."""

    def __init__(self, data: bytes, rules: tuple[HTTPRule, ...]) -> None:
        self.at = 0
        self.allowed: list[HTTPRequest] = []
        self._data = data
        self._rules = rules
        self._head_end: int | None = None

    def _next(self) -> int:
        """One more byte, which must not be beyond what a head may have."""
        if self.at == len(self._data):
            raise _EndError
        self.at += 1
        if self._head_end is not None and self.at > self._head_end:
            raise _DeniedError(HTTPReason.TOO_LONG)
        return self._data[self.at - 1]

    def _line_feed(self) -> None:
        """What has to follow a CR."""
        if self._next() != _LF:
            raise _DeniedError(HTTPReason.LINE)

    # -- RFC 9112, section 2.1: a request --

    def request(self) -> None:
        begin = self.at
        self._head_end = begin + MAX_HEAD
        method = self._method()
        target = self._target(method)
        rules = [rule for rule in self._rules if _meets_line(rule, method, target)]
        if not rules:
            raise _DeniedError(HTTPReason.NO_RULE)
        minor = self._version()
        headers = self._headers(minor)
        request = HTTPRequest(begin, method, target, minor, headers)
        if not any(_meets_headers(rule, request) for rule in rules):
            raise _DeniedError(HTTPReason.NO_RULE)
        self._head_end = None
        self.allowed.append(request)
        if request.values("transfer-encoding"):
            self._chunks()
        elif request.values("content-length"):
            self._skip(_length(request.values("content-length")[0]))

    # -- section 3: the request line --

    def _method(self) -> bytes:
        found = bytearray()
        while (byte := self._next()) in _TOKEN:
            found.append(byte)
        if byte != ord(" ") or not found:
            raise _DeniedError(HTTPReason.METHOD)
        return bytes(found)

    def _target(self, method: bytes) -> bytes:
        found = bytearray()
        query = False
        while (byte := self._next()) != ord(" "):
            if method == b"PRI" and bytes([*found, byte]) == b"*":
                raise _DeniedError(HTTPReason.HTTP2)
            if not found and byte != ord("/"):
                raise _DeniedError(HTTPReason.TARGET)
            if byte in (_CR, _LF):
                raise _DeniedError(HTTPReason.VERSION)  # HTTP/0.9
            if not 0x20 < byte < 0x7F or byte == ord("#"):
                raise _DeniedError(HTTPReason.TARGET)
            if byte == ord("\\") and not query:
                raise _DeniedError(HTTPReason.PATH)
            found.append(byte)
            if byte == ord("?") and not query:
                query = True
                self._path(bytes(found[:-1]))
        if not found:
            raise _DeniedError(HTTPReason.TARGET)
        if not query:
            self._path(bytes(found))
        return bytes(found)

    def _path(self, path: bytes) -> None:
        """What begins with a slash, and is all of a target that comes before its query."""
        parts = path.split(b"/")[1:]
        if any(part == b"" for part in parts[:-1]):
            raise _DeniedError(HTTPReason.PATH)
        for part in parts:
            if part.split(b";")[0] in (b".", b".."):
                raise _DeniedError(HTTPReason.PATH)
            for escape in part.split(b"%")[1:]:
                if len(escape) < 2 or escape[0] not in _HEX or escape[1] not in _HEX:
                    raise _DeniedError(HTTPReason.PATH)
                if _is_trick(int(escape[:2], 16)):
                    raise _DeniedError(HTTPReason.PATH)

    def _version(self) -> int:
        for expected in b"HTTP/1.":
            if self._next() != expected:
                raise _DeniedError(HTTPReason.VERSION)
        minor = self._next()
        if minor not in b"01":
            raise _DeniedError(HTTPReason.VERSION)
        byte = self._next()
        if byte != _CR:
            raise _DeniedError(HTTPReason.LINE if byte == _LF else HTTPReason.VERSION)
        self._line_feed()
        return minor - ord("0")

    # -- section 5: headers --

    def _headers(self, minor: int) -> tuple[tuple[str, bytes], ...]:
        found: list[tuple[str, bytes]] = []
        while True:
            byte = self._next()
            if byte == _CR:
                self._line_feed()
                return tuple(found)
            if byte in b" \t":
                raise _DeniedError(HTTPReason.FOLD)
            name = self._name(byte)
            value = self._value()
            self._check(name, value, minor, [each for each, _ in found])
            found.append((name, value))

    def _name(self, byte: int) -> str:
        found = bytearray()
        while byte in _TOKEN:
            found.append(byte)
            byte = self._next()
        if byte == _LF:
            raise _DeniedError(HTTPReason.LINE)
        if byte != ord(":") or not found:
            raise _DeniedError(HTTPReason.NAME)
        return found.decode().lower()

    def _value(self) -> bytes:
        found = bytearray()
        while (byte := self._next()) != _CR:
            if byte == _LF:
                raise _DeniedError(HTTPReason.LINE)
            if (byte < 0x20 and byte != ord("\t")) or byte == 0x7F:
                raise _DeniedError(HTTPReason.VALUE)
            found.append(byte)
        self._line_feed()
        return bytes(found).strip(b" \t")

    def _check(self, name: str, value: bytes, minor: int, before: list[str]) -> None:
        """Section 6, and what it says of request smuggling."""
        if name == "upgrade":
            raise _DeniedError(HTTPReason.UPGRADE)
        if name == "host" and name in before:
            raise _DeniedError(HTTPReason.HOST)
        if name == "content-length":
            if "transfer-encoding" in before:
                raise _DeniedError(HTTPReason.BOTH)
            if name in before or not value or any(each not in _DIGITS for each in value):
                raise _DeniedError(HTTPReason.LENGTH)
            if _length(value) >= MAX_BODY:
                raise _DeniedError(HTTPReason.LENGTH)
        if name == "transfer-encoding":
            if "content-length" in before:
                raise _DeniedError(HTTPReason.BOTH)
            if name in before or value.lower() != b"chunked" or minor == 0:
                raise _DeniedError(HTTPReason.ENCODING)

    # -- section 7: bodies --

    def _skip(self, length: int) -> None:
        if self.at + length > len(self._data):
            self.at = len(self._data)
            raise _EndError
        self.at += length

    def _chunks(self) -> None:
        while True:
            size = self._chunk_size()
            if size == 0:
                break
            self._skip(size)
            self._chunk_end()
        if self._next() != _CR:
            raise _DeniedError(HTTPReason.TRAILER)
        self._line_feed()

    def _chunk_size(self) -> int:
        begin, size = self.at, 0
        while (byte := self._next()) in _HEX:
            size = size * 16 + int(chr(byte), 16)
            if size >= MAX_BODY:
                raise _DeniedError(HTTPReason.CHUNK)
        if self.at == begin + 1 or byte != _CR or self._next() != _LF:
            raise _DeniedError(HTTPReason.CHUNK)
        return size

    def _chunk_end(self) -> None:
        if self._next() != _CR or self._next() != _LF:
            raise _DeniedError(HTTPReason.CHUNK)


def _length(digits: bytes) -> int:
    """What digits say; not more than ``MAX_BODY``, however many they are."""
    significant = digits.lstrip(b"0")
    return MAX_BODY if len(significant) > 20 else int(significant or b"0")


def _is_trick(byte: int) -> bool:
    """Whether an escape in a path stands for what needs none, or for what splits or ends a path."""
    return byte in _UNRESERVED or byte in b"/\\" or byte < 0x20 or byte in (0x7F, 0xC0, 0xC1)


def _meets_line(rule: HTTPRule, method: bytes, target: bytes) -> bool:
    return (rule.method is None or rule.method.matches(method)) and (
        rule.path is None or rule.path.matches(target)
    )


def _meets_headers(rule: HTTPRule, request: HTTPRequest) -> bool:
    if rule.host is not None and not rule.host.matches(b"".join(request.values("host"))):
        return False
    return all(_has(request, each) for each in rule.headers)


def _has(request: HTTPRequest, wanted: HeaderRule) -> bool:
    values = request.values(wanted.name)
    return bool(values) if wanted.value is None else values == [wanted.value.encode()]
