"""Some hundred things that clients say to a server of HTTP, fair and foul, and what is to become of each.

What an exchange is expected to come to was written by hand: neither the oracle nor the kernel was asked. In
what is denied, ``/admin`` is what the client is after: it is never allowed.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from attrs import field, frozen

from k8sdatapath.model.http import MAX_HEAD, HTTPReason
from k8sdatapath.model.http_rules import HTTPRule

R = HTTPReason

RULES = (
    HTTPRule(method="GET|HEAD", path=r"/public(/.*)?(\?.*)?"),
    HTTPRule(method="POST|PUT", path="/charge"),
    HTTPRule(method="GET", path="/shop", host=r"shop\.example(:[0-9]+)?"),
    HTTPRule(method="GET", path="/tenant", headers=["X-Tenant: blue"]),
    HTTPRule(method="DELETE", path="/orders/[0-9]+", headers=["X-Admin", "X-Reason"]),
)


@frozen
class Exchange:
    """What a client sends over one connection.

    :ivar allowed: how many requests of it are.
    :ivar reason: why the next one is denied; None: there is none.
    :ivar pieces: as it is sent, one after the other.
    """

    name: str
    data: bytes
    allowed: int = 0
    reason: HTTPReason | None = None
    pieces: tuple[bytes, ...] = field()

    @pieces.default
    def _whole(self) -> tuple[bytes, ...]:
        return (self.data,)

    def __str__(self) -> str:
        return self.name


def head(line: str, *headers: str, host: str = "a") -> bytes:
    return "\r\n".join([line, *([f"Host: {host}"] if host else []), *headers, "", ""]).encode("latin-1")


def get(path: str = "/public", *headers: str, host: str = "a") -> bytes:
    return head(f"GET {path} HTTP/1.1", *headers, host=host)


def post(*headers: str, body: bytes = b"") -> bytes:
    return head("POST /charge HTTP/1.1", *headers) + body


def sized(body: bytes, *headers: str) -> bytes:
    return post(f"Content-Length: {len(body)}", *headers, body=body)


def chunked(body: bytes, *headers: str) -> bytes:
    return post("Transfer-Encoding: chunked", *headers, body=body)


ADMIN = get("/admin")
OK = get()
DELETE = "DELETE /orders/17 HTTP/1.1"
LAST = b"0\r\n\r\n"
TOUR = OK + sized(ADMIN) + chunked(b"5\r\nhello\r\n" + LAST) + get("/public/b?c=d")  # 4 requests of all kinds

ALLOWED: dict[str, tuple[bytes, int]] = {
    "a path": (OK, 1),
    "a path below": (get("/public/a/b.html"), 1),
    "a query": (get("/public?a=b&c=%2e%2e%2f//../"), 1),
    "an escape": (get("/public/caf%C3%A9%20%25"), 1),
    "dots in names": (get("/public/.well-known/a..b/c."), 1),
    "three dots": (get("/public/.../a"), 1),
    "a slash at the end": (get("/public/a/"), 1),
    "parameters": (get("/public/a;b=c/d;e"), 1),
    "all of a path's characters": (get("/public/-._~!$&'()*+,;=:@"), 1),
    "HEAD": (head("HEAD /public HTTP/1.1"), 1),
    "PUT": (head("PUT /charge HTTP/1.1", "Content-Length: 0"), 1),
    "a POST without a body": (post("Content-Length: 0"), 1),
    "HTTP/1.0": (head("GET /public HTTP/1.0"), 1),
    "HTTP/1.0 without a host": (head("GET /public HTTP/1.0", host=""), 1),
    "HTTP/1.0 with a body": (head("POST /charge HTTP/1.0", "Content-Length: 5") + b"hello", 1),
    "connection: close": (get("/public", "Connection: close"), 1),
    "connection: keep-alive": (get("/public", "Connection: keep-alive") * 2, 2),
    "the right host": (get("/shop", host="shop.example"), 1),
    "the right host and a port": (get("/shop", host="shop.example:8080"), 1),
    "spaces around the host": (get("/shop", host="\t shop.example \t"), 1),
    "host in capitals": (b"GET /shop HTTP/1.1\r\nHOST:shop.example\r\n\r\n", 1),
    "the right tenant": (get("/tenant", "X-Tenant: blue"), 1),
    "the right tenant, capitalised otherwise": (get("/tenant", "x-TENANT:blue"), 1),
    "headers that must be there": (head(DELETE, "X-Reason: none", "X-Admin: 1", "X-Admin: 2"), 1),
    "no value": (get("/public", "X-Empty:"), 1),
    "a value of UTF-8": (get("/public", "X-Name: gr\xc3\xbcn"), 1),
    "tabs in a value": (get("/public", "X-Name: \ta\tb\t"), 1),
    "a colon in a value": (get("/public", "Referer: http://a:80//b/../c"), 1),
    "many headers": (get("/public", *(f"X-{number}: {number}" for number in range(60))), 1),
    "names of all characters": (get("/public", "!#$%&'*+-.^`|~0aZ: b"), 1),
    "a TE": (get("/public", "TE: trailers"), 1),
    "an expectation": (post("Content-Length: 5", "Expect: 100-continue", body=b"hello"), 1),
    "a length with zeros": (post("Content-Length: 0005", body=b"hello"), 1),
    "a length with spaces": (post("Content-Length: \t 5 ", body=b"hello"), 1),
    "a body like a request": (sized(ADMIN), 1),
    "a body like a chunk": (sized(b"5\r\nhello\r\n" + LAST), 1),
    "a body of all bytes": (sized(bytes(range(256))), 1),
    "a large body": (sized(ADMIN * 2000), 1),
    "a body on a GET": (get("/public", f"Content-Length: {len(ADMIN)}") + ADMIN, 1),
    "no chunks": (chunked(LAST), 1),
    "a chunk": (chunked(b"5\r\nhello\r\n" + LAST), 1),
    "chunks": (chunked(b"5\r\nhello\r\n1\r\n \r\n5\r\nworld\r\n" + LAST), 1),
    "a chunk like a request": (chunked(b"%x\r\n%b\r\n" % (len(ADMIN), ADMIN) + LAST), 1),
    "a chunk like the last one": (chunked(b"7\r\n\r\n" + LAST + b"\r\n" + LAST), 1),
    "a size with zeros": (chunked(b"005\r\nhello\r\n" + LAST), 1),
    "a size in capitals": (chunked(b"1A\r\n" + b"x" * 26 + b"\r\n" + LAST), 1),
    "a large chunk": (chunked(b"%x\r\n" % (len(ADMIN) * 999) + ADMIN * 999 + b"\r\n" + LAST), 1),
    "small chunks": (chunked(b"1\r\nx\r\n" * 500 + LAST), 1),
    "chunked in capitals": (post("TRANSFER-ENCODING:CHUNKED", body=b"1\r\nx\r\n" + LAST), 1),
    "two": (OK * 2, 2),
    "fifty": (OK * 50, 50),
    "a tour": (TOUR, 4),
    "chunks, then more": (chunked(b"3\r\nabc\r\n" + LAST) * 3, 3),
    "bodies, then more": (sized(b"abc") * 3 + OK, 4),
    "as long as it may be": (get("/public", "X: " + "a" * (MAX_HEAD - len(get("/public", "X: ")))), 1),
}

DENIED: dict[str, bytes] = {
    "another path": ADMIN,
    "another method": head("POST /public HTTP/1.1", "Content-Length: 0"),
    "a method in small letters": head("get /public HTTP/1.1"),
    "a longer method": head("GETS /public HTTP/1.1"),
    "a shorter method": head("GE /public HTTP/1.1"),
    "a longer path": head("POST /charges HTTP/1.1", "Content-Length: 0"),
    "a shorter path": head("POST /charg HTTP/1.1", "Content-Length: 0"),
    "a path in capitals": get("/PUBLIC"),
    "a query where none is allowed": head("POST /charge?a HTTP/1.1", "Content-Length: 0"),
    "a path in the query": get("/admin?/public"),
    "a path in parameters": get("/admin;/public"),
    "another host": get("/shop", host="shop.example.org"),
    "a host that the right one ends": get("/shop", host="a.shop.example"),
    "no host": get("/shop", host=""),
    "an empty host": get("/shop", host=" "),
    "the right host elsewhere": get("/shop", "X-Forwarded-Host: shop.example"),
    "another tenant": get("/tenant", "X-Tenant: green"),
    "a tenant in capitals": get("/tenant", "X-Tenant: BLUE"),
    "a longer tenant": get("/tenant", "X-Tenant: bluer"),
    "a shorter tenant": get("/tenant", "X-Tenant: blu"),
    "two tenants": get("/tenant", "X-Tenant: blue", "X-Tenant: green"),
    "one tenant twice": get("/tenant", "X-Tenant: blue", "X-Tenant: blue"),
    "no tenant": get("/tenant"),
    "a header of a longer name": get("/tenant", "X-Tenants: blue"),
    "a header of a shorter name": get("/tenant", "X-Tenan: blue"),
    "one header of two": head(DELETE, "X-Admin: 1"),
    "the headers of another rule": head(DELETE, "X-Tenant: blue"),
    "a path of one rule, a host of another": get("/admin", host="shop.example"),
}

_PATHS = (
    *("/public/../admin", "/public/..", "/public/../", "/public/..?a", "/public/./../admin", "/./admin"),
    *("/public/..;/admin", "/public/..;a=b/admin", "/public/.;/../admin", "/..", "/../admin", "/."),
    *("//admin", "/public//admin", "///", "/public//", "/public\\..\\admin", "/public/..\\admin"),
    *("/public/%2e%2e/admin", "/public/%2E%2E/admin", "/public/.%2e/admin", "/public/%2e./admin"),
    *("/public/..%2fadmin", "/public/..%2Fadmin", "/public/..%5cadmin", "/public%2f..%2fadmin"),
    *("/public/%5C../admin", "/public/%00", "/public%00/../admin", "/public/%0d%0aX:%20a", "/public/%7f"),
    *("/public/%c0%ae%c0%ae/admin", "/public/..%c0%afadmin", "/public/..%c1%9cadmin"),
    *("/%70ublic", "/public/%61", "/public/%7e", "/public/%", "/public/%2", "/public/%zz", "/public/%2g?a"),
    *("/public/a%", "/public/%u002e%u002e/admin"),
)
_TARGETS = {
    "an absolute one": "http://a/admin",
    "an absolute one that is allowed": "http://a/public",
    "an absolute one of TLS": "https://a/public",
    "one without a slash": "public",
    "an asterisk": "*",
    "an authority": "a:443",
    "one of two slashes and a host": "\\\\a/admin",
    "a fragment": "/public#/admin",
    "a fragment in a query": "/public?a#/admin",
    "one above ASCII": "/public/\xe9",
    "a tab": "/public\t/admin",
    "a NUL": "/public\0/admin",
    "DEL": "/public\x7f",
    "a control character": "/public\x01",
    "a vertical tab": "/public\x0bHTTP/1.1",
    "a query alone": "?a",
}
_VERSIONS = (
    *("HTTP/2.0", "HTTP/1.2", "HTTP/1.9", "HTTP/0.9", "HTTP/3", "http/1.1", "HTTP/1.", "HTTP/11"),
    *("HTTP/1.1 ", "HTTP/1.10", "HTTP/01.1", "HTTP 1.1", "HTTP/1,1", "ICY/1.1", "HTTP/1.\xb9"),
)
_LENGTHS = (
    *("", "+5", "-5", "-0", "5,5", "5, 5", "5 5", "0x5", "5a", "a", "5.0", "5e0", "5;5", "\xb2", "'5'"),
    *("5_0", str(1 << 60), str((1 << 64) + 5), str((1 << 96) + 5), "9" * 4500),
)
_ENCODINGS = (
    *("", "identity", "gzip", "gzip, chunked", "chunked, gzip", "chunked, identity", "chunked,"),
    *(",chunked", "chunked, chunked", "chunked;a=b", "xchunked", "chunkedx", '"chunked"', "chun ked"),
    "chunke\xe4",
)
_LINES = {
    "an empty line": (b"\r\n" + OK, R.METHOD),
    "LF": (b"\n" + OK, R.METHOD),
    "a space": (b" " + OK, R.METHOD),
    "a NUL": (b"\0" + OK, R.METHOD),
    "TLS": (bytes.fromhex("16030100c8010000c40303") + bytes(200), R.METHOD),
    "TLS of SSLv2": (bytes.fromhex("802e010002001500000010"), R.METHOD),
    "PROXY": (b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\n" + ADMIN, R.TARGET),
    "PROXY version 2": (b"\r\n\r\n\0\r\nQUIT\n" + ADMIN, R.METHOD),
    "SSH": (b"SSH-2.0-OpenSSH_9.2\r\n", R.METHOD),
    "SMTP": (b"EHLO a\r\n", R.TARGET),
    "Redis": (b"*1\r\n$4\r\nPING\r\n", R.METHOD),
    "PostgreSQL": (bytes.fromhex("0000000804d2162f"), R.METHOD),
    "a WebSocket's frame": (bytes.fromhex("818537fa213d7f9f4d5158"), R.METHOD),
    "a method alone": (b"GET\r\n\r\n", R.METHOD),
    "a method and LF": (b"GET\n", R.METHOD),
    "a comma in the method": (b"GE,T /public HTTP/1.1\r\n\r\n", R.METHOD),
    "a tab after the method": (b"GET\t/public HTTP/1.1\r\n\r\n", R.METHOD),
    "two spaces after the method": (b"GET  /public HTTP/1.1\r\n\r\n", R.TARGET),
    "HTTP/0.9": (b"GET /public\r\n", R.VERSION),
    "HTTP/0.9 and LF": (b"GET /public\n", R.VERSION),
    "two spaces before the version": (b"GET /public  HTTP/1.1\r\n\r\n", R.VERSION),
    "a word before the version": (b"GET /public /admin HTTP/1.1\r\n\r\n", R.VERSION),
    "no version": (b"GET /public \r\n\r\n", R.VERSION),
    **{f"version {version}": (head(f"GET /public {version}"), R.VERSION) for version in _VERSIONS},
    "LF after the version": (b"GET /public HTTP/1.1\nHost: a\r\n\r\n", R.LINE),
    "CR CR LF after the version": (b"GET /public HTTP/1.1\r\r\nHost: a\r\n\r\n", R.LINE),
    "only LF": (OK.replace(b"\r\n", b"\n"), R.LINE),
    "only CR": (OK.replace(b"\r\n", b"\r"), R.LINE),
}
_HEADERS: dict[str, tuple[str, HTTPReason]] = {
    "a space before the colon": ("Content-Length : 5", R.NAME),
    "a tab before the colon": ("Transfer-Encoding\t: chunked", R.NAME),
    "a space in the name": ("Content Length: 5", R.NAME),
    "no name": (": 5", R.NAME),
    "no colon": ("Content-Length", R.NAME),
    "a NUL in the name": ("Content-Length\0: 5", R.NAME),
    "UTF-8 in the name": ("Content-L\xc3\xa4nge: 5", R.NAME),
    "quotes in the name": ('"Content-Length": 5', R.NAME),
    "brackets in the name": ("X(a): b", R.NAME),
    "a fold": ("X-A: b\r\n c", R.FOLD),
    "a fold of a tab": ("X-A: b\r\n\tContent-Length: 5", R.FOLD),
    "a fold of a length": ("Content-Length:\r\n 5", R.LENGTH),
    "a fold of an encoding": ("Transfer-Encoding:\r\n chunked", R.ENCODING),
    "a NUL": ("X-A: b\0c", R.VALUE),
    "a control character": ("X-A: b\x1bc", R.VALUE),
    "DEL": ("X-A: \x7f", R.VALUE),
    "a vertical tab": ("Transfer-Encoding:\x0bchunked", R.VALUE),
    "a form feed": ("Content-Length: \x0c5", R.VALUE),
    "LF": ("X-A: b\nContent-Length: 5", R.LINE),
    "CR": ("X-A: b\rContent-Length: 5", R.LINE),
    "CR CR LF": ("X-A: b\r\r\nContent-Length: 5", R.LINE),
    "an LF before the colon": ("X-A\n: b", R.LINE),
    "a host twice": ("Host: b", R.HOST),
    "one host twice": ("host:a", R.HOST),
    "an upgrade": ("Upgrade: websocket", R.UPGRADE),
    "an upgrade to HTTP/2": ("Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c", R.UPGRADE),
    "an upgrade to nothing": ("upgrade:", R.UPGRADE),
    **{f"a length of {value!r}": (f"Content-Length: {value}", R.LENGTH) for value in _LENGTHS},
    "two lengths": ("Content-Length: 5\r\nContent-Length: 6", R.LENGTH),
    "one length twice": ("Content-Length: 5\r\nContent-Length: 5", R.LENGTH),
    "a length in small letters twice": ("content-length: 5\r\nX-A: b\r\ncontent-length: 5", R.LENGTH),
    "two lengths of nothing": ("Content-Length: 0\r\nContent-Length: 00", R.LENGTH),
    **{f"an encoding of {value!r}": (f"Transfer-Encoding: {value}", R.ENCODING) for value in _ENCODINGS},
    "two encodings": ("Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked", R.ENCODING),
    "one encoding twice": ("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked", R.ENCODING),
    "an encoding and another": ("Transfer-Encoding: chunked\r\ntransfer-encoding: identity", R.ENCODING),
    "CL.TE": ("Content-Length: 5\r\nTransfer-Encoding: chunked", R.BOTH),
    "TE.CL": ("Transfer-Encoding: chunked\r\nContent-Length: 5", R.BOTH),
    "CL.TE with a length of nothing": ("Content-Length: 0\r\ntransfer-encoding:chunked", R.BOTH),
    "TE.CL with more between": ("Transfer-Encoding: chunked\r\nX-A: b\r\ncontent-length: 0", R.BOTH),
}
_CHUNKS: dict[str, tuple[bytes, HTTPReason]] = {
    "no size": (b"\r\nhello\r\n", R.CHUNK),
    "no digits": (b"hello\r\n", R.CHUNK),
    "a sign": (b"+5\r\nhello\r\n", R.CHUNK),
    "a minus": (b"-1\r\n", R.CHUNK),
    "0x": (b"0x5\r\nhello\r\n", R.CHUNK),
    "a space before": (b" 5\r\nhello\r\n", R.CHUNK),
    "a space after": (b"5 \r\nhello\r\n", R.CHUNK),
    "a tab after": (b"5\t\r\nhello\r\n", R.CHUNK),
    "an underscore": (b"1_0\r\n" + b"x" * 16 + b"\r\n", R.CHUNK),
    "an extension": (b"5;a=b\r\nhello\r\n", R.CHUNK),
    "an extension alone": (b"5;\r\nhello\r\n", R.CHUNK),
    "an extension with LF": (b"5;a\nhello\r\n", R.CHUNK),
    "an extension of the last": (b"0;a=b\r\n\r\n", R.CHUNK),
    "LF after the size": (b"5\nhello\r\n", R.CHUNK),
    "CR after the size": (b"5\rhello\r\n", R.CHUNK),
    "LF after the chunk": (b"5\r\nhello\n", R.CHUNK),
    "nothing after the chunk": (b"5\r\nhello0\r\n\r\n", R.CHUNK),
    "too much": (b"5\r\nhello!\r\n", R.CHUNK),
    "two lines after the chunk": (b"5\r\nhello\r\n\r\n", R.CHUNK),
    "a size that is too large": (b"1" + b"0" * 15 + b"\r\n", R.CHUNK),
    "a size beyond 64 bits": (b"1" + b"0" * 16 + b"5\r\nhello\r\n", R.CHUNK),
    "a size of many digits": (b"f" * 40 + b"\r\n", R.CHUNK),
    "LF after the last": (b"0\n\n", R.CHUNK),
    "a trailer": (b"0\r\nX-A: b\r\n\r\n", R.TRAILER),
    "a trailer of a length": (b"0\r\nContent-Length: 5\r\n\r\n", R.TRAILER),
    "a request as a trailer": (b"0\r\n" + ADMIN, R.TRAILER),
    "LF at the end": (b"0\r\n\n", R.TRAILER),
    "a CR at the end": (b"0\r\n\rX", R.LINE),
}
_SIZES = {
    "a path": (b"GET /public/" + b"a" * MAX_HEAD + b" HTTP/1.1\r\n\r\n", R.TOO_LONG),
    "a path without end": (b"GET /" + b"a" * 3 * MAX_HEAD, R.TOO_LONG),
    "a method without end": (b"A" * 3 * MAX_HEAD, R.TOO_LONG),
    "one byte too many": (get("/public", "X: a" + "a" * (MAX_HEAD - len(get("/public", "X: ")))), R.TOO_LONG),
    "a header": (get("/public", "X: " + "a" * MAX_HEAD), R.TOO_LONG),
    "a name without end": (OK[:-2] + b"A" * 2 * MAX_HEAD, R.TOO_LONG),
    "many headers": (get("/public", *("X: a",) * 2000), R.TOO_LONG),
    "spaces": (get("/public", "X:" + " " * MAX_HEAD), R.TOO_LONG),
}


def _malformed() -> Iterator[tuple[str, bytes, int, HTTPReason]]:
    """Each with what it would smuggle behind it."""
    for path in _PATHS:
        yield f"path {path!r}", get(path) + ADMIN, 0, R.PATH
    for name, target in _TARGETS.items():
        yield f"target: {name}", get(target) + ADMIN, 0, R.TARGET
    for name, (data, reason) in _LINES.items():
        yield f"line: {name}", data + ADMIN, 0, reason
    for name, (header, reason) in _HEADERS.items():
        yield f"header: {name}", post(header, body=b"0\r\n\r\n" + ADMIN), 0, reason
    for name, (chunks, reason) in _CHUNKS.items():
        yield f"chunk: {name}", chunked(chunks) + ADMIN, 1, reason
    for name, (data, reason) in _SIZES.items():
        yield f"size: {name}", data + ADMIN, 0, reason
    yield "line: HTTP/2 in between", OK + b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 1, R.HTTP2
    yield (
        "header: an encoding of HTTP/1.0",
        (head("POST /charge HTTP/1.0", "Transfer-Encoding: chunked") + LAST + ADMIN),
        0,
        R.ENCODING,
    )


def _behind(exchange: Exchange) -> Exchange:
    """The same behind a request that is allowed."""
    return Exchange(f"{exchange.name}, second", OK + exchange.data, exchange.allowed + 1, exchange.reason)


def _cut(name: str, data: bytes, allowed: int, reason: HTTPReason | None, *cuts: int) -> Exchange:
    ends = (0, *cuts, len(data))
    pieces = tuple(data[begin:end] for begin, end in itertools.pairwise(ends))
    return Exchange(f"{name}, cut at {', '.join(map(str, cuts[:3]))}", data, allowed, reason, pieces)


#: What clients leave unfinished, and then say that it was all: some servers take that for a request.
UNFINISHED = tuple(
    Exchange(f"unfinished: {data[-40:]!r}{' second' if before else ''}", before + data, bool(before))
    for before in (b"", OK)
    for data in (
        *(b"GET /admin", b"GET /admin?", b"GET /public/../admin", b"GET /adm", b"GET /public", b"GET "),
        *(
            b"GET /shop HTTP/1.1",
            b"GET /shop HTTP/1.1\r",
            b"GET /shop HTTP/1.1\r\n",
            b"GET /public HTTP/1.0\r\n",
        ),
        b"GET /shop HTTP/1.1\r\nHost: shop.example.org",
        b"GET /shop HTTP/1.1\r\nHost: shop.example.org\r\n",
        b"GET /tenant HTTP/1.1\r\nHost: a\r\nX-Tenant: green\r\n\r",
        b"GET /public HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n",
    )
)
WHOLE = (
    *(Exchange(f"allowed: {name}", *each) for name, each in ALLOWED.items()),
    *(Exchange(f"denied: {name}", data, 0, R.NO_RULE) for name, data in DENIED.items()),
    *(Exchange(*each) for each in _malformed()),
)
SECOND = tuple(_behind(each) for each in WHOLE if each.reason is not None)
CUT = (
    *(_cut("a tour", TOUR, 4, None, at) for at in range(1, len(TOUR))),
    *(_cut("behind one", OK + ADMIN + OK, 1, R.NO_RULE, at) for at in range(1, len(OK + ADMIN))),
    *(
        _cut(each.name, each.data, each.allowed, each.reason, *range(1, len(each.data)))
        for each in WHOLE
        if len(each.data) < 300
    ),
)
EXCHANGES = (*WHOLE, *SECOND, *CUT)
