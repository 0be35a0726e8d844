"""HTTP policy at the sockets of servers: what passes, byte by byte, and what clients are told."""

from __future__ import annotations

import errno
import os
import platform
import select
import socket
import struct
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from attrs import define

from k8sdatapath import Lab, maps
from k8sdatapath.datapath.http_event import HTTPEvent
from k8sdatapath.datapath.l7_policy import L7Policy, L7Port
from k8sdatapath.lab.lab import Pod
from k8sdatapath.layout import u64
from k8sdatapath.model import IPAddress
from k8sdatapath.model.http import HTTPReason, judge
from k8sdatapath.model.http_rules import HTTPRule
from k8sdatapath.pybpf.maps import NO_PREALLOC
from k8sdatapath.tables.l7 import ConnRow
from tests.support.filters import crammed, deaf
from tests.support.http_exchanges import EXCHANGES, RULES, Exchange

pytestmark = pytest.mark.lab

PORT = 8080
RECVFROM = 45 if platform.machine() == "x86_64" else 207
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

    def denial(self) -> list[HTTPEvent]:
        """Wait for one; all that is told until then."""
        events, deadline = list[HTTPEvent](), time.monotonic() + 10
        while all(each.verdict != "denied" for each in events) and time.monotonic() < deadline:
            events += self.l7.events()
        return events

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
                events = self.denial()
                one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                one.close()
            else:
                told = read(one)
            received = read(other)
            return received, told, [*events, *self.l7.events()]


def read(sock: socket.socket) -> bytes:
    """Everything until the end, whichever it is."""
    found = b""
    try:
        while data := sock.recv(65536):
            found += data
    except OSError as end:
        if end.errno not in (errno.ECONNRESET, errno.EFAULT):
            raise
    return found


def wait_for_recv(sock: socket.socket) -> None:
    """Until a thread of this process waits in a system call that has to do with a socket."""
    deadline = time.monotonic() + 10
    wanted = f"{RECVFROM} {sock.fileno():#x} "
    while not any(each.read_text().startswith(wanted) for each in Path("/proc/self/task").glob("*/syscall")):
        assert time.monotonic() < deadline
        time.sleep(0.001)


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


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("how", ["end", "reset", "denied"])
def test_half_a_request_is_followed_by_an_error(pair: Pair, how: str, family: int) -> None:
    """Nobody who waits for the rest finds that there is none, or nothing: he might take that for all."""
    one, other = pair.connect(family)
    other.setblocking(True)
    with one, other, ThreadPoolExecutor(1) as beside:
        one.sendall(b"GET /shop HTTP/1.1\r\nHost: ")
        one.send(b"s", socket.MSG_OOB)  # urgent bytes are bytes as all others
        half = b""
        while not half.endswith(b"s"):
            half += other.recv(4096)
        assert half == b"GET /shop HTTP/1.1\r\nHost: s"
        rest = beside.submit(other.recv, 4096)
        wait_for_recv(other)
        if how == "denied":
            one.sendall(b"hip.example\r\n\r\n")
        elif how == "end":
            one.shutdown(socket.SHUT_WR)
        else:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            one.close()
        with pytest.raises(OSError, match="Bad address"):
            rest.result(10)
        with suppress(OSError):  # what follows does not matter, if it is no bytes
            assert not other.recv(4096)
        if how == "denied":
            assert read(one).startswith(FORBIDDEN)


def splice(sock: socket.socket) -> bytes:
    """Read from a socket without receiving."""
    out, into = os.pipe()
    with open(out, "rb", 0) as pipe:
        try:
            os.splice(sock.fileno(), into, 4096)
        finally:
            os.close(into)
        return pipe.read()


@pytest.mark.parametrize("more", [False, True])
def test_what_is_spliced_is_not_answered(pair: Pair, more: bool) -> None:
    """The kernel shows it to no program if it is older than accept(); then nothing else passes either way."""
    pair.l7.events()
    with pair.client.tcp(pair.server.address, PORT, timeout=10) as one:
        one.sendall(b"GET /admin HTTP/1.1\r\nHost: a\r\n\r\n")
        other, _ = pair.listening[4].accept()
        with other:
            assert select.select([other], [], [], 10)[0]
            assert splice(other).startswith(b"GET /admin")
            if more:
                one.sendall(b"GET /public HTTP/1.1\r\nHost: a\r\n\r\n")
            else:
                other.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 60000\r\n\r\n" + 10000 * b"secret")
            answer = read(one)
            assert answer.startswith(FORBIDDEN)
            assert b"secret" not in answer
    assert [(each.verdict, each.reason) for each in pair.l7.events()] == [("denied", "UNREADABLE")]


OK = b"HTTP/1.1 200 OK\r\n"

#: What a server answers, and what it sends of that after a denied request. None: our answer may follow;
#: no bytes: nobody knows whether more would come.
ANSWERS: list[tuple[bytes, bytes | None]] = [
    (
        OK + b"Server: x\r\nContent-Type: text/plain\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello",
        None,
    ),
    (OK + b"content-length:5\r\n\r\nhello", None),
    (OK + b"CONTENT-LENGTH: \t5 \r\nX:\ta\tb\r\n\r\nhello", None),
    (OK + b"Content-Lengthy: 3\r\nContent-Length: 0\r\n\r\n", None),
    (
        OK + b"X: " + 300 * b"x" + b"\r\nContent-Length: 700\r\nY: " + 600 * b"y" + b"\r\n\r\n" + 700 * b"\n",
        None,
    ),
    (OK + b"Content-Length: 40\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n!!", None),
    (b"HTTP/1.1 200\r\nContent-Length: 2\r\n\r\nok", None),
    (b"HTTP/1.0 404 Not Found\r\nContent-Length: 2\r\n\r\nno", None),
    (b"HTTP/1.1 204 No Content\r\n\r\n", None),
    (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 900\r\n\r\n", None),
    (
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
        + OK
        + b"Content-Length: 0\r\n\r\n",
        None,
    ),
    (OK + b"Transfer-Encoding: chunked\r\nX: y\r\n\r\n5\r\n\r\n0\r\n\r\n0\r\n\r\n", None),
    (OK + b"Content-Length: 5\r\n\r\nhe", b"llo"),
    (OK + b"Content-Length: 5\r\n", b"\r\nhello"),
    (OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", b"0\r\n\r\n"),
    (b"HTTP/1.1 100 Continue\r\n\r\n", OK + b"Content-Length: 0\r\n\r\n"),
    (OK + b"X: y\r\n\r\nhello", b""),
    (OK + b"Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello", b""),
    (OK + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\nhello", b""),
    (OK + b"Transfer-Encoding: chunked\r\n\r\n5;a=b\r\nhello\r\n0\r\n\r\n", b""),
    (OK + b"Transfer-Encoding: chunked\r\n\r\n0\r\nX: y\r\n\r\n", b""),
    (OK + b"Content-Length: +5\r\n\r\nhello", b""),
    (OK + b"Content-Length: 1\r\n 0\r\n\r\nhello", b""),
    (OK + b"Content-Length: 5\nX: y\r\n\r\nhello", b""),
    (OK + b"Content-Length: 5\r\nX: \0\r\n\r\nhello", b""),
    (b"HTTP/2 200 OK\r\nContent-Length: 5\r\n\r\nhello", b""),
]


@pytest.mark.parametrize(("said", "more"), ANSWERS)
def test_our_answer_is_never_taken_for_a_part_of_another(pair: Pair, said: bytes, more: bytes | None) -> None:
    """However the server's is cut into packets: it is known when it is whole, or else nothing is said."""
    for cut in {0, *range(1, len(said), 1 + len(said) // 200)}:
        one, other = pair.connect(family=6 if cut % 2 else 4)
        with one, other:
            other.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            one.sendall(b"GET /public HTTP/1.1\r\nHost: a\r\n\r\n")
            assert other.recv(4096)
            for piece in filter(None, (said[:cut], said[cut:])):
                other.sendall(piece)
            assert one.recv(len(said), socket.MSG_WAITALL) == said
            one.sendall(b"GET /admin HTTP/1.1\r\nHost: a\r\n\r\n")
            if more is None:
                assert read(one).startswith(FORBIDDEN), cut
                continue
            assert pair.denial()[-1].verdict == "denied"
            if more:
                other.sendall(more)
            else:
                other.close()
            assert read(one) == more, cut


def test_an_answer_that_was_lost_comes_before_ours(pair: Pair) -> None:
    one, other = pair.connect()
    with one, other:
        one.sendall(b"GET /public HTTP/1.1\r\nHost: a\r\n\r\n")
        assert other.recv(4096)
        with deaf(one):
            other.sendall(OK + b"Content-Length: 5\r\n\r\nhello")
            one.sendall(b"GET /admin HTTP/1.1\r\nHost: a\r\n\r\n")
            assert pair.denial()[-1].verdict == "denied"
        assert read(one).startswith(OK + b"Content-Length: 5\r\n\r\nhello" + FORBIDDEN)


def test_of_more_requests_at_once_than_are_remembered_nothing_is_told(pair: Pair) -> None:
    """A body may look like responses: what is one is known by which requests were HEAD."""
    one, other = pair.connect()
    asked = b"GET /public HTTP/1.1\r\nHost: a\r\n\r\n" + 64 * b"HEAD /public HTTP/1.1\r\nHost: a\r\n\r\n"
    answer = OK + b"Content-Length: 38\r\n\r\n"
    with one, other:
        one.sendall(asked)
        got = 0
        while got < len(asked):
            got += len(other.recv(4096))
        said = answer + (OK + b"Content-Length: 0\r\n\r\n") + 63 * answer
        other.sendall(said)
        assert one.recv(len(said), socket.MSG_WAITALL) == said
        one.sendall(b"GET /admin HTTP/1.1\r\nHost: a\r\n\r\n")
        assert pair.denial()[-1].verdict == "denied"
        other.sendall(answer)
        other.shutdown(socket.SHUT_WR)
        assert read(one) == answer


EARLY = b"GET /admin HTTP/1.1\r\nHost: a\r\n\r\n"


def say_early(client: Pod, to: tuple[IPAddress, int], how: str, protocol: int = 0) -> socket.socket:
    """A client whose first bytes come before the server has a socket for it."""
    one = client.socket(socket.AF_INET, socket.SOCK_STREAM, protocol)
    if how == "with its SYN":
        client.exec(["sysctl", "-qw", "net.ipv4.tcp_fastopen=0x207"])  # without a cookie
        one.sendto(EARLY, socket.MSG_FASTOPEN, (str(to[0]), to[1]))
    else:
        one.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 1)  # it waits with its ACK for them
        one.connect((str(to[0]), to[1]))
        one.sendall(EARLY)
    return one


@pytest.mark.parametrize("how", ["with its SYN", "with its ACK"])
def test_nothing_comes_with_a_handshake_over_mptcp(pair: Pair, how: str) -> None:
    """Its sockets are those of MPTCP, which programs cannot read, and would have it by then."""
    end = pair.client.address, PORT + (2 if how == "with its SYN" else 3)
    pair.l7.upsert(L7Port(*end, RULES))
    pair.client.exec(["sysctl", "-qw", "net.ipv4.tcp_fastopen=0x207"])
    with pair.client.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_MPTCP) as listening:
        listening.bind((str(end[0]), end[1]))
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_FASTOPEN, 5)
        listening.listen()
        listening.settimeout(10)
        before = pair.l7.stats().get("NOT_READ", 0)
        with say_early(pair.server, end, how, socket.IPPROTO_MPTCP), listening.accept()[0] as other:
            other.settimeout(0.2)
            with pytest.raises(TimeoutError):
                other.recv(4096)
        assert pair.l7.stats()["NOT_READ"] > before
    pair.l7.remove(end)


def test_nothing_comes_with_a_handshake_where_there_is_no_room(pair: Pair) -> None:
    """Neither to the first connection that there is none for, nor to later ones."""
    room = maps.Hash[u64, ConnRow].create("kd_l7_conns", 2, flags=NO_PREALLOC)
    with room, L7Policy.load(reuse={"kd_l7_conns": room}) as l7, ExitStack() as own:
        end = pair.client.address, PORT + 4
        listening = own.enter_context(pair.client.socket(socket.AF_INET))
        listening.bind((str(end[0]), end[1]))
        listening.listen()
        listening.settimeout(10)
        l7.attach(pair.client.cgroup.path)
        l7.upsert(L7Port(*end, RULES))
        kept = [own.enter_context(pair.server.tcp(*end)) for _ in range(2)]
        served = [own.enter_context(listening.accept()[0]) for _ in kept]
        first = own.enter_context(say_early(pair.server, end, "with its ACK"))
        refused = own.enter_context(listening.accept()[0])
        refused.settimeout(1)
        with pytest.raises(OSError, match=r"Bad address|timed out"):  # it may have come behind its ACK
            refused.recv(4096)
        shut = l7._loaded.map("kd_l7_shut", maps.Array[u64])
        assert (l7.stats()["NO_ROOM"], shut[0]) == (1, 1)
        with say_early(pair.server, end, "with its ACK"):
            other = own.enter_context(listening.accept()[0])  # once the server has said its part again
            other.settimeout(0.2)
            with pytest.raises(TimeoutError):
                other.recv(4096)
        for each in (*kept, *served, first, refused, other):
            each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            each.close()
        assert (shut[0], l7.stats()["NO_ROOM"]) == (0, 2)
        with say_early(pair.server, end, "with its ACK"), listening.accept()[0] as other:
            other.setblocking(False)
            deadline = time.monotonic() + 10
            while "NO_RULE" not in l7.stats():
                assert time.monotonic() < deadline
                with suppress(BlockingIOError):
                    assert not other.recv(4096)


def test_who_has_no_room_for_a_mark_is_asked_about_and_nobody_else(pair: Pair) -> None:
    """Such as a connection older than its rules where nobody looks for those: it goes on."""
    end = pair.client.address, PORT + 5
    with pair.client.socket(socket.AF_INET) as listening:
        listening.bind((str(end[0]), end[1]))
        listening.listen()
        with pair.server.tcp(*end, timeout=10) as older, listening.accept()[0] as answers:
            pair.l7.upsert(L7Port(*end, []))
            crammed(listening)
            with pair.server.tcp(*end) as one, listening.accept()[0] as other:
                one.sendall(b"GET / HTTP/1.1\r\n")
                other.settimeout(0.2)
                with pytest.raises(TimeoutError):
                    other.recv(4096)
            older.sendall(b"GET / HTTP/1.1\r\n")
            answers.settimeout(10)
            assert answers.recv(4096) == b"GET / HTTP/1.1\r\n"
    pair.l7.remove(end)


def test_every_denial_is_told_even_by_a_server_that_hangs_up(pair: Pair) -> None:
    """A server that waits for its client is woken without anything to read, and many close then."""
    pair.server.serve_http(PORT + 1, "hello")
    end = pair.server.address, PORT + 1
    pair.l7.upsert(L7Port(*end, [HTTPRule(path="/open")]))
    url = f"http://{end[0]}:{end[1]}"
    before = pair.l7.stats().get("REFUSED", 0)
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


def answer(kept: socket.socket) -> bytes:
    """A response that ends with `hello`, or all there is until the end."""
    found = b""
    while not found.endswith(b"hello") and (data := kept.recv(4096)):
        found += data
    return found


def test_a_request_is_held_to_the_rules_it_began_by(pair: Pair) -> None:
    """Whatever they are by then; the next one is not."""
    pair.server.serve_http(PORT + 2, "hello")
    end = pair.server.address, PORT + 2
    pair.l7.upsert(L7Port(*end, [HTTPRule(path="/old")]))
    with pair.client.tcp(*end) as kept:
        kept.sendall(b"GET /old HTTP/1.1\r\nHost: a\r\n\r\n")
        assert answer(kept).startswith(b"HTTP/1.1 200 ")  # accepted: what comes is read as it comes
        kept.sendall(b"GET /old HTTP/1.1\r\nHo")
        pair.l7.upsert(L7Port(*end, [HTTPRule(path="/new", headers=["X-New"])]))
        kept.sendall(b"st: a\r\n\r\n")
        assert answer(kept).startswith(b"HTTP/1.1 200 ")
        kept.sendall(b"GET /new HTTP/1.1\r\nHost: a\r\nX-NEW: 1\r\n\r\n")
        assert answer(kept).startswith(b"HTTP/1.1 200 ")
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
        with socket.socket() as sock:
            sock.connect((host, port))
            sock.send(b"GET /shut HTTP/1.1\\r\\nHost: a\\r\\n\\r\\n")
            answer = b""
            while data := sock.recv(4096):
                answer += data
            told.append(answer[:12])
threads = [threading.Thread(target=ask) for _ in range(4)]
for each in threads: each.start()
for each in threads: each.join()
print(len(told), *map(bytes.decode, set(told)), sep="|")
"""


def test_fifty_thousand_denials_leave_nothing_behind(pair: Pair) -> None:
    """Beside clients that never finish their requests, and one that is served all along."""
    pair.server.serve_http(PORT + 4, "hello")
    end = pair.server.address, PORT + 4
    pair.l7.upsert(L7Port(*end, [HTTPRule(path="/open")]))
    with ExitStack() as own:
        slow = [own.enter_context(pair.client.tcp(*end)) for _ in range(50)]
        for each in slow:
            each.sendall(b"GET /open HTTP/1.1\r\nHost: a\r\nX-Slow: ")
        storm = pair.client.exec([sys.executable, "-c", STORM, str(end[0]), str(end[1]), "50000"])
        assert storm.stdout.strip() == "50000|HTTP/1.1 403", storm.stderr
        assert pair.client.get(f"http://{end[0]}:{end[1]}/open").text == "hello"
        settle(pair.l7, len(slow))
        for each in slow:
            each.sendall(b"yes\r\n\r\n")
            assert each.recv(4096).startswith(b"HTTP/1.1 200 ")
    settle(pair.l7, 0)
    left = pair.server.exec(["ss", "-Htan", f"sport = :{end[1]}"]).stdout.split("\n")
    assert {line.split()[0] for line in left if line} <= {"LISTEN", "TIME-WAIT"}
    pair.l7.remove(end)
