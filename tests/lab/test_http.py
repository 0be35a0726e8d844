"""Real servers see the requests that the oracle allows, and no others, however clients write and cut them."""

from __future__ import annotations

import itertools
import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path

import pytest
from attrs import frozen

from k8sdatapath import Lab
from k8sdatapath.lab.lab import Pod
from k8sdatapath.model.http import HTTPReason, judge
from k8sdatapath.model.policy import (
    EVERYBODY,
    Operator,
    Policy,
    PortMatch,
    Requirement,
    Rule,
    Selector,
    Toward,
)
from tests.support.http2_exchanges import PREFACE, frame
from tests.support.http_exchanges import EXCHANGES, RULES, UNFINISHED, Exchange, get
from tests.support.http_servers import PORT, SERVERS, Server, serving

#: What is well-formed, and some servers take for malformed nevertheless.
REFUSED = {"nginx": ("allowed: spaces around the host", "allowed: a length with spaces")}
#: Servers that answer half a head at its end, where no policy keeps them from it.
TAKES_END_FOR_COMPLETE = ("python",)
#: HTTP/2, which these servers do not speak: none goes on behind its preface, which one takes for a request.
HIDDEN = Exchange(
    "requests in frames",
    PREFACE + frame(4, get("/admin")) + frame(0, get("/admin"), stream=1) * 3,
    0,
    HTTPReason.HTTP2,
)
PORTS = itertools.count(10000)  # of clients, each of which is known by its own
pytestmark = [pytest.mark.lab, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def plain() -> Iterator[tuple[Pod, Pod]]:
    with Lab.start(datapath=False) as lab:
        yield lab.pod("client"), lab.pod("server")


@frozen
class Said:
    """What a client said, and the port it came from."""

    exchange: Exchange
    port: int

    @property
    def allowed(self) -> list[tuple[str, str]]:
        """The requests that the oracle allows, as servers note them."""
        found = judge(self.exchange.data, RULES).allowed
        return [(each.method.decode(), each.target.decode()) for each in found]


class Client:
    """Says things to a server, and ends all connections at the end, by a reset."""

    def __init__(self, pod: Pod, server: Server) -> None:
        self._pod = pod
        self._server = server
        self._open = ExitStack()
        self.said: list[Said] = []

    def say(self, exchange: Exchange, *pieces: bytes, answers: int = 0) -> socket.socket:
        """Send pieces one after the other, and wait for some answers. The connection stays open."""
        sock = self._open.enter_context(self._pod.socket())
        sock.settimeout(10)
        sock.bind(("", next(PORTS)))
        sock.connect((str(self._server.pod.address), PORT))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.said.append(Said(exchange, sock.getsockname()[1]))
        got = b""
        with suppress(ConnectionResetError, BrokenPipeError):
            for piece in pieces:
                sock.sendall(piece)
            while got.count(b"HTTP/1.1 200") < answers and (more := sock.recv(65536)):
                got += more
        return sock

    def finish(self, sock: socket.socket) -> None:
        """Say that this was all, and wait until the server has nothing more to say either."""
        with suppress(OSError):  # it may have been reset
            sock.shutdown(socket.SHUT_WR)
        self.drain(sock)

    def drain(self, sock: socket.socket) -> None:
        """Wait until the connection is ended by the other side."""
        with suppress(ConnectionResetError), sock:
            while sock.recv(65536):
                pass

    def close(self) -> None:
        self._open.close()

    def seen(self) -> dict[Said, list[tuple[str, str]]]:
        """Which requests the server has noted of each exchange, once both have ended."""
        seen = self._server.seen()
        return {each: seen[each.port] for each in self.said}


@pytest.fixture(scope="module")
def guarded() -> Iterator[tuple[Pod, Pod]]:
    """A client that may make some requests of a server."""
    with Lab.start(policy=True, l7=True) as lab:
        client, server = (lab.pod(name, labels={"app": name}) for name in ("client", "server"))
        asked = Rule("some", Toward.INGRESS, [EVERYBODY], [PortMatch(6, PORT, PORT)], l7=RULES)
        subject = Selector([Requirement("k8s:app", Operator.IN, ["server"])])
        lab.apply(Policy("requests", subject, [asked], [Toward.INGRESS]))
        yield client, server


@pytest.mark.parametrize("name", SERVERS)
def test_a_server_sees_what_the_oracle_does(name: str, plain: tuple[Pod, Pod], tmp_path: Path) -> None:
    """Without a policy: of what is allowed all, and of the rest what comes before the byte that is denied."""
    pod, behind = plain
    with serving(name, behind, tmp_path) as server, closing(Client(pod, server)) as client:
        for each in EXCHANGES:
            verdict = judge(each.data, RULES)
            if verdict.reason is None:
                client.say(each, *each.pieces, answers=each.allowed).close()
            elif len(each.pieces) == 1:
                sock = client.say(each, each.data[: verdict.by - 1])
                if name not in TAKES_END_FOR_COMPLETE:
                    client.finish(sock)
    seen = client.seen()
    for said, requests in seen.items():
        assert requests == said.allowed[: len(requests)], said.exchange
        if said.exchange.reason is None and not said.exchange.name.startswith(REFUSED.get(name, ("-",))):
            assert requests == said.allowed, said.exchange


@pytest.mark.parametrize("name", SERVERS)
def test_a_server_never_sees_what_is_denied(name: str, guarded: tuple[Pod, Pod], tmp_path: Path) -> None:
    """With a policy: all that is allowed, and nothing of the rest, whatever is said, and however it ends."""
    pod, behind = guarded
    with serving(name, behind, tmp_path) as server, closing(Client(pod, server)) as client:
        unfinished = [client.say(each, *each.pieces) for each in UNFINISHED]
        for sock in unfinished:
            with suppress(OSError):  # it may have been reset
                sock.shutdown(socket.SHUT_WR)
        for each in UNFINISHED:
            client.say(each, *each.pieces, answers=each.allowed).close()  # by a reset
        for each in (*EXCHANGES, HIDDEN):
            in_body = each.name.startswith("chunk:")  # the server waits for the rest, and so for ever
            sock = client.say(each, *each.pieces, answers=each.allowed - in_body)
            if each.reason is None:
                sock.close()
            elif not in_body:
                client.drain(sock)
        for sock in unfinished:
            client.drain(sock)
    seen = client.seen()
    for said, requests in seen.items():
        allowed = [("PRI", "*")] if said.exchange is HIDDEN else said.allowed
        assert requests == allowed[: len(requests)], said.exchange
        if said.exchange.reason is None and not said.exchange.name.startswith(REFUSED.get(name, ("-",))):
            assert len(requests) == said.exchange.allowed, said.exchange
