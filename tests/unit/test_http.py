"""HTTP as rules and as bytes: what is understood, what is allowed, and what is denied whatever rules say."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from k8sdatapath.errors import ModelError, RegexError
from k8sdatapath.model.http import MAX_HEAD, HTTPReason, judge
from k8sdatapath.model.http_rules import HeaderRule, HTTPRule

ANY = (HTTPRule(),)
CHARGE = (HTTPRule(method="POST", path="/charge"),)


def head(line: str, *headers: str) -> bytes:
    return "\r\n".join([line, *headers, "", ""]).encode("latin-1")


GET = head("GET / HTTP/1.1", "Host: a")


def test_rules_are_values():
    one = HTTPRule(method="GET", path="/a", headers=["X-Tenant: blue", "x-b"])
    assert one == HTTPRule(
        method="GET", path="/a", headers=[HeaderRule("x-b"), HeaderRule("X-TENANT", "blue")]
    )
    assert str(one) == "GET /a with x-b, x-tenant: blue"
    assert str(HTTPRule(method="", host="a.example")) == "any method any path of a.example"


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("X-Tenant", HeaderRule("x-tenant")),
        ("X-Tenant: blue", HeaderRule("x-tenant", "blue")),
        ("X-Tenant blue", HeaderRule("x-tenant", "blue")),
        ("X-Tenant: dark blue", HeaderRule("x-tenant", "dark blue")),
    ],
)
def test_headers_are_written_as_cilium_has_them(text, rule):
    assert HeaderRule.parse(text) == rule


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: HTTPRule(path="/a("), "column 3: a ( without its )"),
        (lambda: HTTPRule(method="GET\\1"), "column 4: \\1 is not supported"),
        (lambda: HTTPRule(host=7), "7 is not a regular expression"),
        (lambda: HTTPRule(headers="X-A"), "'X-A' is a single one"),
        (lambda: HTTPRule(headers=["X A: b c"]), None),
        (lambda: HTTPRule(headers=["X-A:"]), "'X-A:' is not the name of a header"),
        (lambda: HTTPRule(headers=["X-A: "]), "'' is not the value of a header"),
        (lambda: HeaderRule("X-A", "b\r\nc"), "is not the value of a header"),
        (lambda: HeaderRule("X-A", "grün"), "is not the value of a header"),
        (lambda: HeaderRule("a:b"), "'a:b' is not the name of a header"),
    ],
)
def test_nonsense_is_refused(make, words):
    if words is None:
        assert make().headers == (HeaderRule("x", "A: b c"),)
        return
    with pytest.raises((ModelError, RegexError)) as caught:
        make()
    assert words in str(caught.value)


WELL_FORMED = {
    "one": (GET, 1),
    "pipelined": (GET * 3, 3),
    "body": (head("POST / HTTP/1.1", "Host: a", "Content-Length: 5") + b"GET /" + GET, 2),
    "empty body": (head("POST / HTTP/1.1", "Content-Length: 0") + GET, 2),
    "chunked": (head("POST / HTTP/1.1", "Transfer-Encoding:Chunked") + b"5\r\nGET /\r\n0\r\n\r\n" + GET, 2),
    "1.0": (head("GET / HTTP/1.0"), 1),
    "query": (head("GET /a?b=//../%2e\\\\ HTTP/1.1"), 1),
    "escapes": (head("GET /caf%C3%A9/a%20b%25 HTTP/1.1"), 1),
    "dots": (head("GET /.well-known/a..b/... HTTP/1.1"), 1),
    "value of UTF-8": (head("GET / HTTP/1.1", "X-Name: gr\xfcn\t\xff"), 1),
    "empty value": (head("GET / HTTP/1.1", "X-Name:"), 1),
}


@pytest.mark.parametrize("name", WELL_FORMED)
def test_what_is_well_formed_is_allowed_by_a_rule_for_everything(name):
    data, count = WELL_FORMED[name]
    found = judge(data, ANY)
    assert (len(found.allowed), found.reason, found.complete) == (count, None, True)
    assert judge(data, ()).reason is HTTPReason.NO_RULE


R = HTTPReason
MALFORMED = {
    "TLS": (b"\x16\x03\x01\x02\x00\x01", R.METHOD),
    "empty line before": (b"\r\n" + GET, R.METHOD),
    "preface": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", R.HTTP2),
    "absolute": (head("GET http://a/ HTTP/1.1"), R.TARGET),
    "asterisk": (head("OPTIONS * HTTP/1.1"), R.TARGET),
    "authority": (head("CONNECT a:443 HTTP/1.1"), R.TARGET),
    "fragment": (head("GET /a#b HTTP/1.1"), R.TARGET),
    "two spaces": (head("GET  / HTTP/1.1"), R.TARGET),
    "above ASCII": (head("GET /\xfc HTTP/1.1"), R.TARGET),
    "dots": (head("GET /a/../b HTTP/1.1"), R.PATH),
    "dots at the end": (head("GET /a/.. HTTP/1.1"), R.PATH),
    "one dot": (head("GET /./a HTTP/1.1"), R.PATH),
    "dots with a parameter": (head("GET /a/..;x/b HTTP/1.1"), R.PATH),
    "dots before a query": (head("GET /a/..?b HTTP/1.1"), R.PATH),
    "empty part": (head("GET //a HTTP/1.1"), R.PATH),
    "empty part at the end": (head("GET /a// HTTP/1.1"), R.PATH),
    "backslash": (head("GET /a\\b HTTP/1.1"), R.PATH),
    **{
        f"escape {escape}": (head(f"GET /a{escape}b HTTP/1.1"), R.PATH)
        for escape in (
            "%2e",
            "%2E",
            "%2f",
            "%2F",
            "%5c",
            "%00",
            "%0a",
            "%7f",
            "%61",
            "%c0%af",
            "%",
            "%4",
            "%zz",
        )
    },
    "HTTP/0.9": (b"GET /\r\n", R.VERSION),
    "HTTP/1.2": (head("GET / HTTP/1.2"), R.VERSION),
    "HTTP/2": (head("GET / HTTP/2.0"), R.VERSION),
    "lower case": (head("GET / http/1.1"), R.VERSION),
    "space at the end": (head("GET / HTTP/1.1 "), R.VERSION),
    "bare LF": (b"GET / HTTP/1.1\n\n", R.LINE),
    "bare LF of a header": (b"GET / HTTP/1.1\r\nHost: a\n\r\n", R.LINE),
    "bare CR": (b"GET / HTTP/1.1\r\nX: a\rb\r\n\r\n", R.LINE),
    "no colon": (head("GET / HTTP/1.1", "Host"), R.NAME),
    "space before the colon": (head("GET / HTTP/1.1", "Host : a"), R.NAME),
    "no name": (head("GET / HTTP/1.1", ": a"), R.NAME),
    "fold": (head("GET / HTTP/1.1", "X: a", " b"), R.FOLD),
    "fold of nothing": (head("GET / HTTP/1.1", "\tb"), R.FOLD),
    "NUL": (head("GET / HTTP/1.1", "X: a\0b"), R.VALUE),
    **{
        f"length {value!r}": (head("POST / HTTP/1.1", f"Content-Length: {value}"), R.LENGTH)
        for value in ("", "+5", "-1", "5,5", "5 5", "0x5", "5\xb2", str(1 << 60), "9" * 5000)
    },
    "length twice": (head("POST / HTTP/1.1", "Content-Length: 5", "Content-Length: 5"), R.LENGTH),
    **{
        f"encoding {value!r}": (head("POST / HTTP/1.1", f"Transfer-Encoding: {value}"), R.ENCODING)
        for value in ("", "gzip", "gzip, chunked", "chunked, chunked", "chunked;a", '"chunked"', "x")
    },
    "encoding twice": (
        head("POST / HTTP/1.1", "Transfer-Encoding: chunked", "Transfer-Encoding: chunked"),
        R.ENCODING,
    ),
    "encoding of 1.0": (head("POST / HTTP/1.0", "Transfer-Encoding: chunked"), R.ENCODING),
    "CL.TE": (head("POST / HTTP/1.1", "Content-Length: 5", "Transfer-Encoding: chunked"), R.BOTH),
    "TE.CL": (head("POST / HTTP/1.1", "Transfer-Encoding: chunked", "Content-Length: 5"), R.BOTH),
    "two hosts": (head("GET / HTTP/1.1", "Host: a", "Host: a"), R.HOST),
    "upgrade": (head("GET / HTTP/1.1", "Connection: upgrade", "Upgrade: h2c"), R.UPGRADE),
    "long": (head("GET / HTTP/1.1", "X: " + "a" * MAX_HEAD), R.TOO_LONG),
    "long path": (b"GET /" + b"a" * MAX_HEAD, R.TOO_LONG),
    **{
        f"chunk {chunk!r}": (head("POST / HTTP/1.1", "Transfer-Encoding: chunked") + chunk, R.CHUNK)
        for chunk in (
            *(b"\r\n", b"g\r\n", b"5;a=b\r\n", b" 5\r\n", b"5 \r\n", b"0x5\r\n", b"5\n", b"1\r\nab\r\n"),
            *(b"1\r\na\n", b"1" + b"0" * 15 + b"\r\n", b"5,5\r\n", b"-1\r\n"),
        )
    },
    "trailer": (head("POST / HTTP/1.1", "Transfer-Encoding: chunked") + b"0\r\nA: b\r\n\r\n", R.TRAILER),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_what_is_not_is_denied_whatever_the_rules(name):
    data, reason = MALFORMED[name]
    assert judge(data, ANY).reason is reason
    behind = judge(GET + data, ANY)
    assert (behind.reason, behind.by) == (reason, judge(data, ANY).by + len(GET))
    assert behind.allowed[0].target == b"/"


def test_a_head_may_be_as_long_as_it_may():
    fill = "a" * (MAX_HEAD - len(head("GET / HTTP/1.1", "X: ")))
    assert judge(head("GET / HTTP/1.1", "X: " + fill), ANY).complete
    assert judge(head("GET / HTTP/1.1", "X: a" + fill), ANY).reason is HTTPReason.TOO_LONG


def test_a_request_is_denied_at_the_end_of_its_path():
    denied = judge(b"GET /charge ", CHARGE)
    assert (denied.allowed, denied.reason, denied.by) == ((), HTTPReason.NO_RULE, 12)
    assert judge(b"GET /charge", CHARGE).reason is None
    assert judge(head("POST /charge HTTP/1.1"), CHARGE).complete
    assert judge(head("POST /charges HTTP/1.1"), CHARGE).reason is HTTPReason.NO_RULE
    assert judge(head("POST /charge?a HTTP/1.1"), CHARGE).reason is HTTPReason.NO_RULE


@pytest.mark.parametrize(
    ("rule", "headers", "allowed"),
    [
        (HTTPRule(host=r"(.*\.)?a\.example"), ("Host:  b.a.example ",), True),
        (HTTPRule(host=r"(.*\.)?a\.example"), ("Host: a.example:80",), False),
        (HTTPRule(host=r"(.*\.)?a\.example"), ("Host: A.EXAMPLE",), False),
        (HTTPRule(host=r"(.*\.)?a\.example"), (), False),
        (HTTPRule(headers=["X-T"]), ("x-t: a", "X-T: b"), True),
        (HTTPRule(headers=["X-T"]), ("X-TT: a",), False),
        (HTTPRule(headers=["X-T: a"]), ("x-T:\ta ",), True),
        (HTTPRule(headers=["X-T: a"]), ("X-T: A",), False),
        (HTTPRule(headers=["X-T: a"]), ("X-T: a", "X-T: a"), False),
        (HTTPRule(headers=["X-T: a", "X-U"]), ("X-T: a",), False),
    ],
)
def test_hosts_and_headers(rule, headers, allowed):
    found = judge(head("GET / HTTP/1.1", *headers), [HTTPRule(path="/other"), rule])
    assert found.complete is allowed
    assert found.reason is (None if allowed else HTTPReason.NO_RULE)


def test_rules_are_not_mixed():
    """One rule has to have all: not the path of one and the header of another."""
    rules = [HTTPRule(path="/a", headers=["X"]), HTTPRule(path="/b")]
    assert judge(head("GET /a HTTP/1.1"), rules).reason is HTTPReason.NO_RULE
    assert judge(head("GET /b HTTP/1.1"), rules).complete


@given(st.sampled_from([data for data, _ in (*WELL_FORMED.values(), *MALFORMED.values())]), st.data())
def test_more_bytes_never_change_what_was_decided(data, draw):
    """So it does not matter how a connection is cut into segments."""
    whole = judge(data, ANY)
    part = judge(data[: draw.draw(st.integers(0, len(data)))], ANY)
    assert part.allowed == whole.allowed[: len(part.allowed)]
    if part.reason is not None:
        assert part == whole
    if whole.reason is not None:
        assert judge(data[: whole.by], ANY) == whole
        assert judge(data[: whole.by - 1], ANY).reason is None
