"""HTTP as rules and as bytes: what is understood, what is allowed, and what is denied whatever rules say."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from k8sdatapath.errors import ModelError, RegexError
from k8sdatapath.model.http import MAX_HEAD, HTTPReason, judge
from k8sdatapath.model.http_rules import HeaderRule, HTTPRule
from tests.support.http_exchanges import RULES, SECOND, WHOLE, head

ANY = (HTTPRule(),)
CHARGE = (HTTPRule(method="POST", path="/charge"),)


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


@pytest.mark.parametrize("exchange", [*WHOLE, *SECOND], ids=str)
def test_what_becomes_of_an_exchange(exchange):
    found = judge(exchange.data, RULES)
    assert (len(found.allowed), found.reason) == (exchange.allowed, exchange.reason)
    assert found.complete is (exchange.reason is None)
    assert all(not each.target.startswith(b"/admin") for each in found.allowed)


@pytest.mark.parametrize("exchange", WHOLE, ids=str)
def test_what_is_malformed_is_denied_whatever_the_rules(exchange):
    if exchange.reason is HTTPReason.NO_RULE:
        assert judge(exchange.data, ANY).reason is None
    else:
        assert judge(exchange.data, ANY).reason is exchange.reason
    assert judge(exchange.data, ()).reason is not None


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
    found = judge(head("GET / HTTP/1.1", *headers, host=""), [HTTPRule(path="/other"), rule])
    assert found.complete is allowed
    assert found.reason is (None if allowed else HTTPReason.NO_RULE)


def test_rules_are_not_mixed():
    """One rule has to have all: not the path of one and the header of another."""
    rules = [HTTPRule(path="/a", headers=["X"]), HTTPRule(path="/b")]
    assert judge(head("GET /a HTTP/1.1"), rules).reason is HTTPReason.NO_RULE
    assert judge(head("GET /b HTTP/1.1"), rules).complete


@given(st.sampled_from([*WHOLE, *SECOND]), st.data())
def test_more_bytes_never_change_what_was_decided(exchange, draw):
    """So it does not matter how a connection is cut into segments."""
    data = exchange.data
    whole = judge(data, RULES)
    part = judge(data[: draw.draw(st.integers(0, len(data)))], RULES)
    assert part.allowed == whole.allowed[: len(part.allowed)]
    if part.reason is not None:
        assert part == whole
    if whole.reason is not None:
        assert judge(data[: whole.by], RULES) == whole
        assert judge(data[: whole.by - 1], RULES).reason is None
