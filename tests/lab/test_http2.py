"""HTTP policy and HTTP/2 in cleartext: what passes, byte by byte, and real gRPC."""

from __future__ import annotations

import json
import socket
import struct
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, suppress

import pytest
from attrs import define
from hpack import Encoder, HeaderTuple, NeverIndexedHeaderTuple
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from k8sdatapath import Lab
from k8sdatapath.datapath.l7_policy import L7Policy, L7Port
from k8sdatapath.lab.lab import Pod
from k8sdatapath.model.http import HTTPReason
from tests.support.http2_exchanges import (
    EXCHANGES,
    PREFACE,
    RULES,
    Exchange,
    frame,
    heads,
    judge2,
)
from tests.support.http_servers import DATA

pytestmark = pytest.mark.lab

PORT, REAL = 8080, 8081


@define(eq=False)
class Pair:
    """A client, and a server that reads whatever comes."""

    client: Pod
    server: Pod
    l7: L7Policy
    listening: socket.socket

    def exchange(self, exchange: Exchange) -> tuple[tuple[str, ...], HTTPReason | None, bytes]:
        """What was allowed, why the rest is denied, and what came of it."""
        self.l7.events()
        data = b"".join(exchange.pieces)
        with self.client.tcp(self.server.address, PORT, timeout=10) as one:
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            other, _ = self.listening.accept()
            with other:
                for piece in exchange.pieces:
                    with suppress(OSError):  # it was denied by now
                        one.sendall(piece)
                received, events = b"", []
                deadline = time.monotonic() + 10
                other.settimeout(0.001)
                while len(received) < len(data) and not any(each.verdict == "denied" for each in events):
                    assert time.monotonic() < deadline, f"{exchange}: {received!r} of {data!r}"
                    with suppress(OSError):
                        received += other.recv(1 << 20)
                    events += self.l7.events()
                with suppress(OSError):
                    received += other.recv(1 << 20, socket.MSG_DONTWAIT)
                events += self.l7.events()
        denied = [each.reason for each in events if each.verdict == "denied"]
        allowed = tuple(each.path for each in events if each.verdict == "allowed")
        return allowed, HTTPReason[denied[0]] if denied else None, received


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    with Lab.start() as lab, L7Policy.load() as l7, ExitStack() as own:
        client, server = lab.pod("client"), lab.pod("server")
        l7.attach(lab.node.cgroup.path)
        l7.attach_pod(server.netns)
        l7.upsert(*(L7Port(server.address, port, RULES, observe=True) for port in (PORT, REAL)))
        listening = own.enter_context(server.socket(socket.AF_INET))
        listening.bind((str(server.address), PORT))
        listening.listen()
        yield Pair(client, server, l7, listening)


def test_the_kernel_decides_what_the_oracle_does(pair: Pair) -> None:
    """Whole, and cut anywhere."""
    wrong = []
    for exchange in EXCHANGES:
        allowed, reason, received = pair.exchange(exchange)
        said = b"".join(exchange.pieces)
        if (allowed, reason) != (exchange.allowed, exchange.reason):
            wrong.append(f"{exchange}: {allowed} {reason!r}, not {exchange.allowed} {exchange.reason!r}")
        if not said.startswith(received.rstrip(b"\5")) or (received == said) is not (reason is None):
            wrong.append(f"{exchange}: {received!r} came of {said!r}")
    assert not wrong, "\n".join(wrong[:20])


_TEXT = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=40).map(str.strip)
_PATHS = ("/shop.Cart/Add", "/shop.Cart/Get", "/shop.Cart/Drop", "/shop", "/public/a", "/public/", "/admin")
_HEADERS = st.tuples(
    st.sampled_from(["x-tenant", "x-a", "te", "user-agent", "x-long"]), _TEXT | st.just("blue")
)
_REQUESTS = st.builds(
    lambda path, method, host, more, order: [
        *(
            [(":method", method), (":path", path), (":scheme", "http"), (":authority", host)][at]
            for at in order
        ),
        *more,
    ],
    st.sampled_from(_PATHS),
    st.sampled_from(["POST", "POST", "GET"]),
    st.sampled_from(["a", "shop.example"]),
    st.lists(_HEADERS, max_size=4),
    st.permutations(range(4)),
)


@st.composite
def _connections(draw: st.DrawFn) -> bytes:
    """Requests by an encoder that uses all there is, however it may."""
    encoder, said = Encoder(), frame(4)
    for number in range(draw(st.integers(1, 8))):
        if draw(st.integers(0, 5)) == 0:
            encoder.header_table_size = draw(st.sampled_from([0, 64, 200, 4096]))
        pairs = [(*each, draw(st.integers(0, 9)) == 0) for each in draw(_REQUESTS)]
        block = encoder.encode([_header(*each) for each in pairs], huffman=draw(st.booleans()))
        ranked = draw(st.booleans())
        said += heads(b"\0\0\0\0\1" * ranked + block, 2 * number + 1, 0x24 if ranked else 4)
        said += frame(draw(st.sampled_from([0, 8, 6, 16])), draw(st.binary(max_size=30)), stream=1)
    return said


def _header(name: str, value: str, secret: bool) -> object:
    return (NeverIndexedHeaderTuple if secret else HeaderTuple)(name, value)


def _cut(data: bytes, at: int) -> tuple[bytes, ...]:
    said = PREFACE + data
    at %= len(said)
    return tuple(each for each in (said[:at], said[at:]) if each)


_FUZZ = settings(
    max_examples=150, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True, database=None
)


@_FUZZ
@given(_connections(), st.integers(0, 1 << 16))
def test_whatever_encoders_do(pair: Pair, data: bytes, at: int) -> None:
    allowed, reason, _ = pair.exchange(Exchange("fuzz", data, pieces=_cut(data, at)))
    wanted = judge2(data, RULES)
    assert (allowed, reason) == (wanted.allowed, wanted.reason)


@_FUZZ
@given(_connections(), st.lists(st.tuples(st.integers(0, 4096), st.integers(0, 255)), min_size=1, max_size=4))
def test_what_is_broken_is_never_taken_for_something_else(
    pair: Pair, data: bytes, changes: list[tuple[int, int]]
) -> None:
    """All that the kernel allows, who decodes it finds to be allowed."""
    broken = bytearray(data)
    for at, byte in changes:
        broken[at % len(broken)] = byte
    allowed, reason, _ = pair.exchange(Exchange("broken", bytes(broken)))
    wanted = judge2(bytes(broken), RULES)
    assert wanted.allowed[: len(allowed)] == allowed
    assert reason is not None or allowed == wanted.allowed
    assert reason is not None or wanted.reason is None


def test_calls_of_grpc(pair: Pair) -> None:
    """What is denied fails at once, what is not goes on, and the server has seen no more than that."""
    where = f"{pair.server.address}:{REAL}"
    python = [sys.executable, "-W", "ignore"]
    with pair.server.popen(
        [*python, str(DATA / "grpc_server.py"), where], stdout=subprocess.PIPE, text=True
    ) as server:
        try:
            assert server.stdout is not None
            assert server.stdout.readline() == "up\n"
            client = pair.client.exec([*python, str(DATA / "grpc_client.py"), where])
            events = pair.l7.events()
        finally:
            server.terminate()
        seen = Counter(server.stdout.read().split())
    assert json.loads(client.stdout) == {
        "kept": "1",
        "in a row": True,
        "at once": True,
        "large": 3_000_000,
        "with its header": "3",
        "denied": "UNAVAILABLE",
        "afterwards": "5",
        "unharmed": "6",
    }
    assert seen == {"/shop.Cart/Add": 602, "/shop.Cart/Get": 2, "/shop.Cart/Drop": 1}
    denied = [each for each in events if each.verdict == "denied"]
    assert [(each.method, each.path, each.reason) for each in denied] == [
        ("POST", "/shop.Cart/Drop", "NO_RULE")
    ]
    assert denied[0].protocol == "HTTP/2"
