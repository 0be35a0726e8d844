"""What clients of HTTP/2 say to a server, and an oracle of what is to become of it.

The oracle shares nothing with the programs in the kernel: it decodes headers with the package hpack, and has
the oracle of HTTP/1 judge what comes of them.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator

from attrs import field, frozen
from hpack import Decoder, Encoder
from hpack.exceptions import HPACKError

from k8sdatapath.model.http import HTTPReason, judge
from k8sdatapath.model.http_rules import HTTPRule

__all__ = ["EXCHANGES", "PREFACE", "RULES", "Exchange", "frame", "heads", "judge2", "request"]

R = HTTPReason
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
RULES = (
    HTTPRule(method="POST", path="/shop.Cart/(Add|Get)"),
    HTTPRule(method="GET", path=r"/public(/.*)?(\?.*)?"),
    HTTPRule(method="GET", path="/shop", host=r"shop\.example"),
    HTTPRule(method="POST", path="/shop.Cart/Drop", headers=["x-tenant: blue"]),
)
DATA, HEADERS, PRIORITY, RESET, SETTINGS, PUSH, PING, AWAY, WINDOW, CONTINUATION = range(10)
Pairs = list[tuple[str, str]]
_PLAIN = frozenset({DATA, PRIORITY, RESET, SETTINGS, PING, AWAY, WINDOW, 16})


@frozen
class Exchange:
    """What a client sends behind the preface.

    :ivar allowed: targets of the requests that are.
    :ivar reason: why the next one is denied; None: there is none.
    """

    name: str
    data: bytes
    allowed: tuple[str, ...] = ()
    reason: HTTPReason | None = None
    pieces: tuple[bytes, ...] = field()

    @pieces.default
    def _whole(self) -> tuple[bytes, ...]:
        return (PREFACE + self.data,)

    def __str__(self) -> str:
        return self.name


def frame(kind: int, payload: bytes = b"", *, flags: int = 0, stream: int = 0) -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def heads(block: bytes, stream: int = 1, flags: int = 5) -> bytes:
    return frame(HEADERS, block, flags=flags, stream=stream)


def request(path: str = "/shop.Cart/Add", *more: tuple[str, str], method: str = "POST") -> Pairs:
    return [(":method", method), (":scheme", "http"), (":path", path), (":authority", "a"), *more]


def _calls(*requests: Pairs, huffman: bool = True) -> bytes:
    """Calls over one connection by an encoder that has a table."""
    encoder, said = Encoder(), frame(SETTINGS)
    for number, pairs in enumerate(requests):
        stream = 2 * number + 1
        said += heads(encoder.encode(pairs, huffman=huffman), stream, 4)
        said += frame(DATA, b"\0\0\0\0\5hello", flags=1, stream=stream)
    return said


def _one(pairs: Pairs) -> bytes:
    return heads(Encoder().encode(pairs, huffman=False))


def literal(name: str, value: str) -> bytes:
    """A header as gRPC's own library writes it: kept, and its name spelled out."""
    return b"".join([b"\x40", *(bytes([len(each)]) + each.encode() for each in (name, value))])


ADD, DROP, GET = "/shop.Cart/Add", "/shop.Cart/Drop", "/shop.Cart/Get"
OK = Encoder().encode(request(), huffman=False)
PATH_FIRST = b"".join(literal(*each) for each in reversed(request("/shop.Cart/Get")))
LONG = "x" * 4000
BLUE = ("x-tenant", "blue")

_ALLOWED: dict[str, tuple[bytes, tuple[str, ...]]] = {
    "no request": (frame(SETTINGS), ()),
    "a call": (_calls(request()), (ADD,)),
    "calls": (_calls(*[request()] * 5, request(GET), *[request()] * 3), (*[ADD] * 5, GET, *[ADD] * 3)),
    "calls without Huffman": (_calls(*[request()] * 3, huffman=False), (ADD,) * 3),
    "in any order": (heads(PATH_FIRST) + heads(b"\xc1\xc0\xbe\xbf", 3), (GET, GET)),
    "a GET": (_one(request("/public/a?b=c", method="GET")), ("/public/a?b=c",)),
    "the right host": (
        _one([*request("/shop", method="GET")[:3], (":authority", "shop.example")]),
        ("/shop",),
    ),
    "the host as a header": (
        _one([*request("/shop", method="GET")[:3], ("host", "shop.example")]),
        ("/shop",),
    ),
    "the right tenant": (_calls(request(DROP, BLUE), request(DROP, BLUE)), (DROP, DROP)),
    "all frames": (
        b"".join(frame(kind, b"12345678") for kind in sorted(_PLAIN)) + heads(OK) + frame(WINDOW, b"1234"),
        (ADD,),
    ),
    "priority in headers": (heads(b"\0\0\0\0\x10" + OK, 1, 0x24), (ADD,)),
    "streams that are left out": (heads(OK, 7) + heads(OK, 99), (ADD, ADD)),
    "a body like a request": (heads(OK, 1, 4) + frame(DATA, _one(request(DROP)), stream=1), (ADD,)),
    "a padded body": (heads(OK, 1, 4) + frame(DATA, b"\3abc\0\0\0", flags=9, stream=1), (ADD,)),
    "a table of nothing": (heads(b"\x20" + OK) + heads(b"\x20" + OK, 3), (ADD, ADD)),
    "a table that comes back": (heads(b"\x20\x3f\xe1\x1f" + OK), (ADD,)),
    "headers that fill the table": (
        _calls(*(request(ADD, (f"x-{n}", "v" * 300)) for n in range(40)), request(GET)),
        (*[ADD] * 40, GET),
    ),
    "a header larger than the table": (_calls(request(ADD, ("x-a", LONG * 2)), request()), (ADD, ADD)),
    "headers of all kinds": (
        _calls(request(ADD, ("te", "trailers"), ("content-length", "10"), ("x-bin", "~}|{`^\\<>"))),
        (ADD,),
    ),
}
_DENIED: dict[str, tuple[bytes, HTTPReason]] = {
    "another method": (_one(request(method="GET")), R.NO_RULE),
    "another service": (_one(request("/shop.Admin/Add")), R.NO_RULE),
    "another call": (_one(request(DROP)), R.NO_RULE),
    "the wrong tenant": (_one(request(DROP, ("x-tenant", "red"))), R.NO_RULE),
    "two tenants": (_one(request(DROP, BLUE, BLUE)), R.NO_RULE),
    "the wrong host": (_one(request("/shop", method="GET")), R.NO_RULE),
    "two hosts": (_one(request(ADD, ("host", "a"))), R.HOST),
    "a path that servers resolve": (_one(request("/public/../shop.Cart/Drop", method="GET")), R.PATH),
    "a star": (_one(request("*", method="OPTIONS")), R.TARGET),
    "no path at all": (_one(request("")), R.TARGET),
    "a path with a space": (_one(request("/shop.Cart/Add HTTP/1.1")), R.TARGET),
    "a method with a line": (_one(request(DROP, method="POST /shop.Cart/Add HTTP/1.1\r\nx:")), R.METHOD),
    "a path of two": (_one([*request(), (":path", DROP)]), R.FIELD),
    "two methods": (_one([(":method", "GET"), *request()]), R.FIELD),
    "two schemes": (_one([(":scheme", "https"), *request()]), R.FIELD),
    "space before a value": (_one(request(DROP, ("x-tenant", " blue"))), R.VALUE),
    "space behind a value": (_one(request(DROP, ("x-tenant", "blue\t"))), R.VALUE),
    "no method": (_one(request()[1:]), R.FIELD),
    "no path": (_one([each for each in request() if each[0] != ":path"]), R.FIELD),
    "a path behind headers": (_one([request()[0], ("x-a", "b"), *request()[1:]]), R.FIELD),
    "a connect": (_one([(":method", "CONNECT"), (":authority", "a:1")]), R.FIELD),
    "a protocol": (_one([(":protocol", "websocket"), *request()]), R.FIELD),
    "a status": (_one([*request(), (":status", "200")]), R.FIELD),
    "a status of the table": (heads(b"\x88" + OK), R.FIELD),
    "a name in capitals": (_one(request(ADD, ("X-Tenant", "blue"))), R.NAME),
    "a name with a colon": (_one(request(ADD, ("x:tenant", "blue"))), R.NAME),
    "a name with a line": (_one(request(ADD, ("x\r\ny", "blue"))), R.NAME),
    "no name": (heads(OK + b"\0\0\1a"), R.NAME),
    "a value with a line": (_one(request(DROP, ("x-a", "b\r\nx-tenant: blue"))), R.VALUE),
    "a value with LF": (_one(request(DROP, ("x-a", "b\nx-tenant: blue"))), R.VALUE),
    "a value with a zero": (_one(request(ADD, ("x-a", "b\0"))), R.VALUE),
    "a value with a control character": (_one(request(ADD, ("x-a", "b\x01"))), R.VALUE),
    "chunks": (_one(request(ADD, ("transfer-encoding", "chunked"))), R.ENCODING),
    "an upgrade": (_one(request(ADD, ("upgrade", "websocket"))), R.UPGRADE),
    "a length that is none": (_one(request(ADD, ("content-length", "x"))), R.LENGTH),
    "8 KB": (_one(request(ADD, ("x-a", LONG), ("x-b", LONG), ("x-c", LONG[:300]))), R.TOO_LONG),
    "a block of 16 KB": (_one(request(ADD, *((f"x-{n}", LONG) for n in range(4)))), R.TOO_LONG),
    "headers that grow": (heads(OK + literal("x-a", "b" * 120) + b"\xbe" * 200), R.TOO_LONG),
    "an index of nothing": (heads(b"\x80" + OK), R.FIELD),
    "an index beyond": (heads(b"\xc5" + OK), R.FIELD),
    "an index that was evicted": (heads(b"\x20\x3f\xe1\x1f" + OK) + heads(b"\x20\xbe", 3), R.FIELD),
    "a number without an end": (heads(b"\xff" * 12), R.FIELD),
    "a table that is larger": (heads(b"\x3f\xe2\x1f" + OK), R.FIELD),
    "a table that changes in between": (heads(OK + b"\x20"), R.FIELD),
    "half a header": (heads(OK[:-1]), R.FIELD),
    "Huffman's code padded with zeros": (heads(OK + b"\0\1a\x81\0"), R.FIELD),
    "Huffman's code with its end": (heads(OK + b"\0\1a\x84\xff\xff\xff\xff"), R.FIELD),
    "Huffman's code padded too far": (heads(OK + b"\0\1a\x82\x1f\xff"), R.FIELD),
    "an empty block": (heads(b""), R.FRAME),
    "padded headers": (heads(b"\1" + OK + b"\0", 1, 0x0D), R.FRAME),
    "continued headers": (heads(OK, 1, 1) + frame(CONTINUATION, b"", flags=4, stream=1), R.FRAME),
    "priority that is not there": (heads(b"\0\0\0\0", 1, 0x24), R.FRAME),
    "a push": (frame(PUSH, OK, flags=4, stream=1), R.FRAME),
    "an unknown frame": (frame(200, b""), R.FRAME),
    "the stream of a server": (heads(OK, 2), R.FRAME),
    "no stream": (heads(OK, 0), R.FRAME),
    "trailers": (heads(OK, 1, 4) + heads(b"\0\1a\1b", 1), R.TRAILER),
    "a stream of before": (heads(OK, 5) + heads(OK, 3), R.TRAILER),
}


def _corpus() -> Iterator[Exchange]:
    for name, (data, allowed) in _ALLOWED.items():
        yield Exchange(f"allowed: {name}", data, allowed)
    for name, (data, reason) in _DENIED.items():
        before = (ADD,) if reason is R.TRAILER or name == "an index that was evicted" else ()
        yield Exchange(f"denied: {name}", data, before, reason)
    second = _calls(request(), request(DROP), request())
    yield Exchange("denied: the second call", second, (ADD,), R.NO_RULE)
    for name, data, allowed, reason in (
        ("a call", _calls(request(ADD, ("x-a", "b"))), (ADD,), None),
        ("the second call", second, (ADD,), R.NO_RULE),
    ):
        said = PREFACE + data
        for at in range(1, len(said)):
            yield Exchange(f"cut at {at}: {name}", data, allowed, reason, (said[:at], said[at:]))


@frozen
class Judgement2:
    """What becomes of requests: their targets, and why the next one is denied."""

    allowed: tuple[str, ...]
    reason: HTTPReason | None


def judge2(data: bytes, rules: Iterable[HTTPRule]) -> Judgement2:
    """Judge what a client says behind the preface; what is incomplete is not judged."""
    decoder, allowed, last = Decoder(max_header_list_size=1 << 30), list[str](), 0
    while len(data) >= 9:
        size, kind, flags = int.from_bytes(data[:3], "big"), data[3], data[4]
        stream = int.from_bytes(data[5:9], "big") & 0x7FFFFFFF
        payload, reason, path = data[9 : 9 + size], None, ""
        if kind != HEADERS:
            reason = None if kind in _PLAIN else R.FRAME
        elif not stream & 1 or flags & 0x0C != 4 or size <= (5 if flags & 0x20 else 0):
            reason = R.FRAME
        elif stream <= last:
            reason = R.TRAILER
        elif size > 8192:
            reason = R.TOO_LONG
        elif len(payload) < size:
            break
        else:
            last = stream
            path, reason = _judge_head(decoder, payload[5 if flags & 0x20 else 0 :], rules)
        if reason is not None:
            return Judgement2(tuple(allowed), reason)
        if kind == HEADERS:
            allowed.append(path)
        data = data[9 + size :]
    return Judgement2(tuple(allowed), None)


def _judge_head(decoder: Decoder, block: bytes, rules: Iterable[HTTPRule]) -> tuple[str, HTTPReason | None]:
    """The target, and why it is denied."""
    try:
        pairs = [(bytes(name), bytes(value)) for name, value in decoder.decode(block, raw=True)]
    except HPACKError:
        return "", R.FIELD
    special = dict[bytes, bytes]()
    lines = list[bytes]()
    for name, value in pairs:
        if (
            not name
            or any(not 0x20 < each < 0x7F or chr(each).isupper() for each in name)
            or b":" in name[1:]
        ):
            return "", R.NAME
        if name.startswith(b":"):
            if name not in (b":method", b":path", b":scheme", b":authority") or lines or name in special:
                return "", R.FIELD
            if name in (b":method", b":path") and any(not 0x20 < each < 0x7F for each in value):
                return "", R.METHOD if name == b":method" else R.TARGET
            special[name] = value
        else:
            lines.append(name + b": " + value)
        if any(each in value for each in (b"\r", b"\n", b"\0")) or value != value.strip(b" \t"):
            return "", R.VALUE
        if name == b"transfer-encoding":
            return "", R.ENCODING
    if not {b":method", b":path"} <= special.keys():
        return "", R.FIELD
    if b":authority" in special:
        lines.insert(0, b"host: " + special[b":authority"])
    head = b" ".join([special[b":method"], special[b":path"], b"HTTP/1.1"])
    text = b"\r\n".join([head, *lines, b"", b""])
    found = judge(text, rules)
    return special[b":path"].decode(), R.TOO_LONG if len(text) > 8170 else found.reason


EXCHANGES = list(_corpus())
