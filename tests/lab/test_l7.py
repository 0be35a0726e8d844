"""HTTP policy at the sockets of servers: what passes, byte by byte, and what clients are told."""

from __future__ import annotations

import socket
import struct
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress

import pytest
from attrs import define

from k8sdatapath import Lab
from k8sdatapath.datapath.http_event import HTTPEvent
from k8sdatapath.datapath.l7_policy import L7Policy, L7Port
from k8sdatapath.lab.lab import Pod
from k8sdatapath.model.http import HTTPReason, judge
from k8sdatapath.model.http_rules import HTTPRule
from tests.support.http_exchanges import EXCHANGES, RULES, Exchange

pytestmark = pytest.mark.lab

PORT = 8080
FORBIDDEN = b"HTTP/1.1 403 Forbidden\r\n"


@define(eq=False)
class Pair:
    """A client, and a server that listens on a port with rules."""

    client: Pod
    server: Pod
    l7: L7Policy
    listening: dict[int, socket.socket]

    def connect(self, family: int = 4) -> tuple[socket.socket, socket.socket]:
        """Both ends of a new connection."""
        self.l7.events()
        one = self.client.tcp(self.server.address if family == 4 else self.server.address6, PORT, timeout=10)
        one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        other, _ = self.listening[family].accept()
        other.settimeout(10)
        return one, other

    def exchange(self, exchange: Exchange, family: int = 4) -> tuple[bytes, bytes, list[HTTPEvent]]:
        """What the server has received, the client was told, and the programs tell."""
        one, other = self.connect(family)
        with one, other:
            for piece in exchange.pieces:
                try:
                    one.sendall(piece)
                except OSError:  # it was denied by now
                    break
            told, events = b"", list[HTTPEvent]()
            if exchange.reason is None:
                one.shutdown(socket.SHUT_WR)
            elif exchange.allowed:  # the server does not answer what is, so nothing more is to come
                deadline = time.monotonic() + 10
                while all(each.verdict != "denied" for each in events) and time.monotonic() < deadline:
                    events += self.l7.events()
                one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                one.close()
            else:
                told = read(one)
            received = read(other)
            return received, told, [*events, *self.l7.events()]


def read(sock: socket.socket) -> bytes:
    """Everything until the end, whichever it is."""
    found = b""
    with suppress(ConnectionResetError):
        while data := sock.recv(65536):
            found += data
    return found


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    with Lab.start() as lab, L7Policy.load() as l7, ExitStack() as own:
        client, server = lab.pod("client"), lab.pod("server")
        l7.attach(lab.node.cgroup.path)
        l7.attach_pod(server.netns)
        l7.upsert(*(L7Port(each, PORT, RULES, observe=True) for each in server.addresses))
        listening = {}
        for family, kind, address in (
            (4, socket.AF_INET, server.address),
            (6, socket.AF_INET6, server.address6),
        ):
            listening[family] = own.enter_context(server.socket(kind))
            listening[family].bind((str(address), PORT))
            listening[family].listen()
        yield Pair(client, server, l7, listening)


@pytest.mark.parametrize("family", [4, 6])
def test_the_kernel_decides_what_the_oracle_does(pair: Pair, family: int) -> None:
    """Whole, behind other requests, and in pieces."""
    wrong = []
    for exchange in EXCHANGES if family == 4 else EXCHANGES[::7]:
        received, told, events = pair.exchange(exchange, family)
        verdict = judge(exchange.data, RULES)
        allowed = [each for each in events if each.verdict == "allowed"]
        denied = [each.reason for each in events if each.verdict == "denied"]
        reason = HTTPReason[denied[0]] if denied else None
        if len(allowed) != exchange.allowed or reason != exchange.reason:
            wrong.append(f"{exchange}: {len(allowed)} are allowed, the next is {reason!r}")
        if reason is None:
            if received != exchange.data:
                wrong.append(f"{exchange}: {received!r} came of {exchange.data!r}")
            continue
        received = received.rstrip(b"X")  # is written over what is denied
        if len(received) >= verdict.by or not exchange.data.startswith(received):
            wrong.append(f"{exchange}: {received!r} came, and {verdict.by} bytes are denied")
        if not exchange.allowed and not told.startswith(FORBIDDEN):
            wrong.append(f"{exchange}: the client was told {told!r}")
    assert not wrong, "\n".join(wrong[:20])


def test_every_denial_is_told_even_by_a_server_that_hangs_up(pair: Pair) -> None:
    """A server that waits for its client is woken without anything to read, and many close then."""
    pair.server.serve_http(PORT + 1, "hello")
    end = pair.server.address, PORT + 1
    pair.l7.upsert(L7Port(*end, [HTTPRule(path="/open")]))
    url = f"http://{end[0]}:{end[1]}"
    before = pair.l7.stats()["REFUSED"]
    assert {pair.client.get(f"{url}/shut").status for _ in range(100)} == {403}
    assert pair.client.get(f"{url}/open").text == "hello"
    assert pair.l7.stats()["REFUSED"] == before + 100
    with pair.client.tcp(*end) as kept:
        kept.sendall(b"GET /open HTTP/1.1\r\nHost: a\r\n\r\nGET /shut HTTP/1.1\r\nHost: a\r\n\r\n")
        answers = read(kept)
    assert answers.startswith(b"HTTP/1.1 200 ")
    assert answers.endswith(b"hello")
    pair.l7.remove(end)
    assert pair.client.get(f"{url}/shut").text == "hello"


def test_a_request_is_held_to_the_rules_it_began_by(pair: Pair) -> None:
    """Whatever they are by then; the next one is not."""
    pair.server.serve_http(PORT + 2, "hello")
    end = pair.server.address, PORT + 2
    pair.l7.upsert(L7Port(*end, [HTTPRule(path="/old")]))
    with pair.client.tcp(*end) as kept:
        kept.sendall(b"GET /old HTTP/1.1\r\nHo")
        pair.l7.upsert(L7Port(*end, [HTTPRule(path="/new", headers=["X-New"])]))
        kept.sendall(b"st: a\r\n\r\n")
        assert kept.recv(4096).startswith(b"HTTP/1.1 200 ")
        kept.sendall(b"GET /new HTTP/1.1\r\nHost: a\r\nX-NEW: 1\r\n\r\n")
        assert kept.recv(4096).startswith(b"HTTP/1.1 200 ")
        kept.sendall(b"GET /old HTTP/1.1\r\nHost: a\r\n\r\n")
        assert read(kept).startswith(FORBIDDEN)
    pair.l7.remove(end)


def test_requests_and_responses_are_seen_without_rules(pair: Pair) -> None:
    """And what is no HTTP passes, as nothing is asked."""
    pair.server.serve_http(PORT + 3, "hello")
    end = pair.server.address6, PORT + 3
    pair.l7.upsert(L7Port(*end, observe=True))
    pair.l7.events()
    assert pair.client.get(f"http://[{end[0]}]:{end[1]}/seen?by=all").status == 200
    request, response = pair.l7.events()
    assert (request.method, request.path, request.verdict) == ("GET", "/seen?by=all", "allowed")
    assert request.host == f"[{end[0]}]:{end[1]}"
    assert (response.verdict, response.status, response.path) == ("response", 200, "/seen?by=all")
    assert response.latency is not None
    assert 0 < response.latency < 10
    with pair.client.tcp(*end) as other:
        other.sendall(b"hello\r\n\r\n")
        assert other.recv(4096)
    strange, *_ = pair.l7.events()
    assert (strange.verdict, strange.reason) == ("audited", "METHOD")
    pair.l7.remove(end)


def settle(l7: L7Policy, connections: int) -> None:
    """Wait until so many connections are left."""
    deadline = time.monotonic() + 10
    while (left := l7.connections) != connections:
        assert time.monotonic() < deadline, f"{left} connections are left"
        time.sleep(0.01)


STORM = """
import socket, sys, threading
host, port, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
told = []
def ask():
    for _ in range(count // 4):
        with socket.create_connection((host, port), 10) as sock:
            sock.sendall(b"GET /shut HTTP/1.1\\r\\nHost: a\\r\\n\\r\\n")
            answer = b""
            while data := sock.recv(4096):
                answer += data
            told.append(answer[:12])
threads = [threading.Thread(target=ask) for _ in range(4)]
for each in threads: each.start()
for each in threads: each.join()
print(len(told), *map(bytes.decode, set(told)), sep="|")
"""


def test_thousands_of_denials_leave_nothing_behind(pair: Pair) -> None:
    """Beside clients that never finish their requests, and one that is served all along."""
    pair.server.serve_http(PORT + 4, "hello")
    end = pair.server.address, PORT + 4
    pair.l7.upsert(L7Port(*end, [HTTPRule(path="/open")]))
    with ExitStack() as own:
        slow = [own.enter_context(pair.client.tcp(*end)) for _ in range(50)]
        for each in slow:
            each.sendall(b"GET /open HTTP/1.1\r\nHost: a\r\nX-Slow: ")
        storm = pair.client.exec([sys.executable, "-c", STORM, str(end[0]), str(end[1]), "2000"])
        assert storm.stdout.strip() == "2000|HTTP/1.1 403", storm.stderr
        assert pair.client.get(f"http://{end[0]}:{end[1]}/open").text == "hello"
        settle(pair.l7, len(slow))
        for each in slow:
            each.sendall(b"yes\r\n\r\n")
            assert each.recv(4096).startswith(b"HTTP/1.1 200 ")
    settle(pair.l7, 0)
    left = pair.server.exec(["ss", "-Htan", f"sport = :{end[1]}"]).stdout.split("\n")
    assert {line.split()[0] for line in left if line} <= {"LISTEN", "TIME-WAIT"}
    pair.l7.remove(end)
