"""The program that reads requests, run on any bytes in any pieces: it says what the oracle does."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from k8sdatapath.datapath import http_tables
from k8sdatapath.datapath.http_tables import HTTPGroup
from k8sdatapath.datapath.l7_policy import L7Policy, L7Port
from k8sdatapath.datapath.request_judge import RequestJudge, RequestVerdict
from k8sdatapath.errors import CapacityError
from k8sdatapath.model import address
from k8sdatapath.model.http import judge
from k8sdatapath.model.http_rules import HTTPRule
from k8sdatapath.model.policy import Toward
from k8sdatapath.objects import ObjectSpec
from tests.support import http2_exchanges as http2
from tests.support.http_exchanges import EXCHANGES, RULES
from tests.support.http_fuzz import ALPHABETS, built, damaged, requests_of

pytestmark = pytest.mark.kernel

CLIENT, SERVER = address("10.0.0.1"), address("fd00::2")
HEADERS = ["X: a", "X: b", "x:a", "Y: b", "Host: a", "Host: ab"]
MOST = 3000  # bytes that one run takes
#: Headers that matter and others, many to a packet: well-formed or nearly so, of all lengths.
LINES = [
    *(
        b"Host: a",
        b"host:b",
        b"X: a",
        b"x:b ",
        b"Y: b",
        b"Content-Length: 5",
        b"content-length:",
        b"Content-Length: 0x",
    ),
    *(
        b"Transfer-Encoding: chunked",
        b"Upgrade: x",
        b"Upgrade-Insecure-Requests: 1",
        b"Cool-Accidents: 9",
        b"Hook: a",
    ),
    *(
        b"Accept-Encoding: gzip, br",
        b"A:",
        b"A:\t b\tc\t",
        b"A: \xe9",
        b"A: b: c",
        b"1-a: 2",
        b"-: -",
        b"_x: y",
        b"X-a_b: c",
    ),
    *(
        b"X: " + 300 * b"x",
        b"X-Long:" + 70 * b"l",
        b"Z: " + 600 * b"z",
        31 * b"n" + b": o",
        32 * b"n" + b": o",
    ),
    *(
        33 * b"N" + b": o",
        b" fold",
        b"\tfold",
        b"X : y",
        b"X y: z",
        b": z",
        b"none",
        b"\xe9: 1",
        b"@: 1",
        b"[: 1",
    ),
    *(b"A: \0", b"A: \x7f", b"A: \x1f", b"A: b\rc", b"A: b\nHost: c", b"A\r", b"\x7f: a", b"X\n: a"),
]
PLAIN = [
    b"User-Agent: Mozilla/5.0 (X11; Linux x86_64) Gecko/20100101",
    b"Accept: */*",
    b"Referer: http://a/b?c=d",
]
PACKETS = [1, *range(60, 70), 200, 256, 257, MOST]


@pytest.fixture(scope="module")
def policy() -> Iterator[L7Policy]:
    with L7Policy.load() as l7:
        yield l7


@pytest.fixture(scope="module")
def kernel(policy: L7Policy) -> Iterator[RequestJudge]:
    with policy.judge() as made:
        yield made


@pytest.fixture(params=[1, 2, 4], ids=["one automaton", "two", "four"])
def grouped(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, policy: L7Policy
) -> Iterator[None]:
    """How many automata share the rules, as if these were too many for fewer."""
    made, rules = http_tables._group, 0

    def group(numbered: Sequence[tuple[int, HTTPRule]], *, alone: bool) -> HTTPGroup:
        nonlocal rules
        rules = len(numbered) if alone else rules
        if len(numbered) > math.ceil(rules / request.param):
            raise CapacityError("rules of an automaton", rules, request.param)
        return made(numbered, alone=alone)

    monkeypatch.setattr(http_tables, "_group", group)
    yield
    policy.remove((SERVER, 8080))


def said(data: bytes, rules: tuple[HTTPRule, ...]) -> tuple[int, str]:
    verdict = judge(data, rules)
    return len(verdict.allowed), "" if verdict.reason is None else verdict.reason.name


def told(verdict: RequestVerdict) -> tuple[int, str]:
    return verdict.allowed, verdict.reason


@pytest.mark.usefixtures("grouped")
def test_the_corpus(policy: L7Policy, kernel: RequestJudge) -> None:
    policy.upsert(L7Port(SERVER, 8080, RULES))
    for each in EXCHANGES:
        pieces = [piece[at : at + MOST] for piece in each.pieces for at in range(0, len(piece), MOST)]
        verdict = kernel.judge(CLIENT, SERVER, 8080, *pieces)
        assert told(verdict) == (each.allowed, each.reason.name if each.reason else ""), each


@pytest.mark.usefixtures("grouped")
def test_the_corpus_of_http2(policy: L7Policy, kernel: RequestJudge) -> None:
    """Byte by byte; sockets have it whole, and cut anywhere, in a test of their own."""
    policy.upsert(L7Port(SERVER, 8080, http2.RULES))
    for each in http2.EXCHANGES:
        said = b"".join(each.pieces)
        if len(each.pieces) == 1 and len(said) < MOST:
            verdict = kernel.judge(CLIENT, SERVER, 8080, *(bytes([byte]) for byte in said))
            assert told(verdict) == (len(each.allowed), each.reason.name if each.reason else ""), each


@settings(max_examples=400)
@given(st.one_of(built, damaged()), st.lists(st.integers(1, MOST), max_size=3))
def test_requests_of_any_kind(policy: L7Policy, kernel: RequestJudge, data: bytes, cuts: list[int]) -> None:
    """And h11 sees no others in what is passed."""
    policy.upsert(L7Port(SERVER, 8080, RULES))
    ends = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    pieces = [data[begin:end] for begin, end in itertools.pairwise(ends)]
    verdict = kernel.judge(CLIENT, SERVER, 8080, *pieces)
    assert told(verdict) == said(data, RULES)
    if not verdict.reason:
        seen = requests_of(data)
        assert len(seen) <= verdict.allowed


@st.composite
def rules(draw: st.DrawFn) -> tuple[HTTPRule, ...]:
    """A few rules over few characters, so that requests meet them often."""
    found = []
    for _ in range(draw(st.integers(1, 4))):
        part = {name: draw(st.one_of(st.none(), texts)) for name, texts in ALPHABETS.items()}
        headers = draw(st.lists(st.sampled_from(["X", "X: a", "Y", "Y: b"]), max_size=2))
        found.append(HTTPRule(**part, headers=headers))
    return tuple(found)


@st.composite
def asked(draw: st.DrawFn) -> bytes:
    """A request that is well-formed, mostly."""
    line = f"{draw(st.sampled_from(['A', 'AB', 'B']))} /{draw(st.text('ab/.', max_size=4))} HTTP/1.1"
    headers = draw(st.lists(st.sampled_from(HEADERS), max_size=4))
    return "\r\n".join([line, *headers, "", ""]).encode()


@pytest.mark.usefixtures("grouped")
@settings(max_examples=80)
@given(rules(), st.lists(asked(), min_size=1, max_size=6))
def test_rules_of_any_kind(
    policy: L7Policy, kernel: RequestJudge, rules: tuple[HTTPRule, ...], requests: list[bytes]
) -> None:
    policy.upsert(L7Port(SERVER, 8080, rules))
    for each in requests:
        assert told(kernel.judge(CLIENT, SERVER, 8080, each)) == said(each, rules)


WITH_HEADERS = HTTPRule(path="/a", headers=["X", "Y: b"])


@pytest.mark.usefixtures("grouped")
@pytest.mark.parametrize(
    "rules",
    [
        (HTTPRule(),),
        (WITH_HEADERS, HTTPRule(path="/b")),
        (WITH_HEADERS, HTTPRule(path="/a", headers=["Z"]), HTTPRule(path="/a", host="b")),
    ],
    ids=["any", "of one path", "alike"],
)
def test_headers_that_matter_and_others(
    policy: L7Policy, kernel: RequestJudge, rules: tuple[HTTPRule, ...]
) -> None:
    """Most are passed over by the line, in packets that are large enough."""
    policy.upsert(L7Port(SERVER, 8080, rules))
    for line, size in itertools.product(LINES, PACKETS):
        for head in ([b"Host: a", *PLAIN, line, *PLAIN], [line, *PLAIN, b"X: y"]):
            data = b"\r\n".join([b"GET /a HTTP/1.1", *head, b"", b"hello"])
            pieces = [data[at : at + size] for at in range(0, len(data), size)]
            assert told(kernel.judge(CLIENT, SERVER, 8080, *pieces)) == said(data, rules), (line, size)


@settings(max_examples=200)
@given(st.lists(st.sampled_from([*PLAIN, *LINES]), max_size=12), st.sampled_from(PACKETS))
def test_headers_of_any_kind(policy: L7Policy, kernel: RequestJudge, lines: list[bytes], size: int) -> None:
    policy.upsert(L7Port(SERVER, 8080, RULES))
    data = b"\r\n".join([b"GET /public HTTP/1.1", *lines, b"", b"hello"])
    pieces = [data[at : at + size] for at in range(0, len(data), size)]
    assert told(kernel.judge(CLIENT, SERVER, 8080, *pieces)) == said(data, RULES)


def test_rules_that_are_too_many_for_one_automaton(policy: L7Policy, kernel: RequestJudge) -> None:
    """Each of them doubles its states, or takes bits that it has a number of."""
    words = [HTTPRule(method="GET", path=f".*word{n}/.*") for n in range(8)]
    tenants = [HTTPRule(path="/tenant", host="a", headers=[f"X: {n}"]) for n in range(300)]
    assert len(http_tables.http_tables(words).groups) == len(http_tables.http_tables(tenants).groups) == 2
    policy.upsert(L7Port(SERVER, 8080, [*words, *tenants]))
    texts = [f"GET /a/word{n}/ HTTP/1.1\r\n\r\n" for n in range(9)]
    texts += [f"GET /tenant HTTP/1.1\r\nHost: a\r\nX: {n}\r\n\r\n" for n in (0, 1, 2, 3, 299, 300)]
    for rule, text in zip([*words, None, *tenants[:4], tenants[299], None], texts, strict=True):
        for pieces in ([text.encode()], [bytes([byte]) for byte in text.encode()]):
            verdict = kernel.judge(CLIENT, SERVER, 8080, *pieces)
            assert told(verdict) == ((0, "NO_RULE") if rule is None else (1, ""))
            assert verdict.rule == ("" if rule is None else str(rule))


def test_rules_that_are_too_many_for_all_automata(policy: L7Policy) -> None:
    before = policy.ports
    with pytest.raises(CapacityError, match="states of an automaton"):
        policy.upsert(L7Port(SERVER, 8080, [HTTPRule(path=f".*word{n}/.*") for n in range(60)]))
    assert policy.ports == before


def test_a_port_that_is_shown_is_kept_where_there_is_no_room_to_show_it_without() -> None:
    spec = ObjectSpec.from_file("stream").with_maps(kd_l7_automata=3)  # two of which everybody needs
    with spec.load(programs=()) as loaded, L7Policy.bind(loaded) as policy:
        policy.upsert(L7Port(SERVER, 8080, [HTTPRule(path="/a")]))
        policy.show([SERVER], [(Toward.INGRESS, 8080)])
        before = policy.ports
        with pytest.raises(CapacityError, match="nothing was changed"):
            policy.remove((SERVER, 8080))
        assert policy.ports == before
        policy.show([SERVER], [])
        policy.remove((SERVER, 8080))
        assert not policy.ports


def test_who_is_not_held_to_rules_is_told_so(policy: L7Policy, kernel: RequestJudge) -> None:
    policy.upsert(L7Port(SERVER, 8080, [HTTPRule(path="/a"), HTTPRule(path="/b", method="PUT")]))
    verdict = kernel.judge(CLIENT, SERVER, 8080, b"PUT /b HTTP/1.1\r\n\r\n")
    assert (verdict.held, verdict.rule, verdict.audited) == (True, "PUT /b", False)
    assert not kernel.judge(CLIENT, SERVER, 8081, b"PUT /b HTTP/1.1\r\n\r\n").held
