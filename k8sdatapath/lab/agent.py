"""The process inside a lab host: makes sockets there, and serves.

Run as ``python -I -S agent.py CONTROL CGROUP`` in the network namespace of the host, with the owner's
pidfd as standard input, the descriptor of the control socket, and the directory of the host's cgroup. It
needs the standard library only, and little of that, so that a host is up in some 20 ms.

It enters the cgroup before it does anything else: a socket belongs to the cgroup that its maker was in.
Requests are lines of JSON, each answered by a line, a new socket travelling with it. The process ends with
its control socket or with the owner, whichever ends first.
"""

from __future__ import annotations

import functools
import json
import resource
import selectors
import signal
import socket
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:  # importing these would take longer than the rest together
    from collections.abc import Callable
    from typing import Any

BACKLOG = 4096
ROOM = 65536


class Loop:
    """Calls back what can be read or written."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()

    def on_read(self, what: socket.socket | int, callback: Callable[[], None]) -> None:
        """Call back whenever ``what`` can be read."""
        self._selector.register(what, selectors.EVENT_READ, callback)

    def switch(self, sock: socket.socket, events: int, callback: Callable[[], None]) -> None:
        """Wait for something else on a socket."""
        if self._selector.get_key(sock).events != events:
            self._selector.modify(sock, events, callback)

    def forget(self, sock: socket.socket) -> None:
        """Wait for nothing on it any more."""
        self._selector.unregister(sock)

    def run(self) -> None:
        """Until the process ends."""
        while True:
            for key, _events in self._selector.select():
                key.data()


class HttpConnection:
    """One client of an HTTP server: answers each request with the same text."""

    def __init__(self, loop: Loop, sock: socket.socket, peer: tuple[Any, ...], body: bytes) -> None:
        self._loop, self._sock = loop, sock
        self._input = b""
        self._output = b""
        self._last = False
        head = (
            "HTTP/1.1 200 OK",
            "Content-Type: text/plain; charset=utf-8",
            f"Content-Length: {len(body)}",
            f"X-Peer: {endpoint(peer)}",
        )
        self._answer = "\r\n".join((*head, "", "")).encode() + body
        loop.on_read(sock, self._read)

    def _read(self) -> None:
        try:
            data = self._sock.recv(ROOM)
            self._input += data
            while self._take_request():
                self._output += self._answer
        except (OSError, ValueError):
            data = b""
        if data:
            self._write()
        else:
            self._close()

    def _take_request(self) -> bool:
        """Remove a request from what has arrived, if a whole one has."""
        head, end, rest = self._input.partition(b"\r\n\r\n")
        if not end or self._last:
            return False
        lines = head.lower().split(b"\r\n")
        fields = dict(line.split(b":", 1) for line in lines[1:])
        length = int(fields.get(b"content-length", 0))
        if len(rest) < length:
            return False
        self._input = rest[length:]
        self._last = lines[0].endswith(b"http/1.0") or fields.get(b"connection", b"").strip() == b"close"
        return True

    def _write(self) -> None:
        """Send what there is, and read on once it is sent."""
        try:
            sent = self._sock.send(self._output) if self._output else 0
        except BlockingIOError:
            sent = 0
        except OSError:
            return self._close()
        self._output = self._output[sent:]
        if self._output:
            return self._loop.switch(self._sock, selectors.EVENT_WRITE, self._write)
        if self._last:
            return self._close()
        return self._loop.switch(self._sock, selectors.EVENT_READ, self._read)

    def _close(self) -> None:
        self._loop.forget(self._sock)
        self._sock.close()


class Agent:
    """Answers the owner of the lab."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._lines = control.makefile("rb")
        self.loop = Loop()
        self.loop.on_read(control, self._request)
        self.loop.on_read(0, sys.exit)

    def _request(self) -> None:
        line = self._lines.readline()
        if not line:
            sys.exit()
        made: list[socket.socket] = []
        answer: dict[str, Any] = {}
        try:
            request = json.loads(line)
            made = getattr(self, "do_" + request.pop("do"))(**request)
        except OSError as error:
            answer = {"errno": error.errno}
        except Exception as error:  # whatever was wrong with the request: servers and later requests go on
            answer = {"error": repr(error)[:200]}
        if made:  # and closed before the owner goes on: a socket ends with the last that has it
            socket.send_fds(self._control, [b" "], [sock.fileno() for sock in made])
        for sock in made:
            sock.close()
        self._control.sendall(json.dumps(answer).encode() + b"\n")

    def do_socket(self, family: int, type: int, proto: int) -> list[socket.socket]:
        """A socket for the owner."""
        return [socket.socket(family, type, proto)]

    def do_http(self, port: int, body: str) -> list[socket.socket]:
        """Serve HTTP/1.1, keeping connections alive."""
        answer = body.encode("latin-1")

        def accept(listener: socket.socket) -> None:
            try:
                sock, peer = listener.accept()
            except OSError:  # the client has given up
                return
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            HttpConnection(self.loop, sock, peer, answer)

        self._serve(socket.SOCK_STREAM, port, accept)
        return []

    def do_udp(self, port: int, body: str | None) -> list[socket.socket]:
        """Answer datagrams, with themselves if there is no body."""

        def reply(sock: socket.socket) -> None:
            try:
                data, peer = sock.recvfrom(ROOM)
                sock.sendto(data if body is None else body.encode("latin-1"), peer)
            except OSError:  # an ICMP error for an earlier reply, or no room: the client has to ask again
                return

        self._serve(socket.SOCK_DGRAM, port, reply)
        return []

    def _serve(self, type: int, port: int, callback: Callable[[socket.socket], None]) -> None:
        """Bind both families, each with a socket of its own, so that peers are seen as what they are."""
        bound: list[socket.socket] = []
        try:
            for family, anywhere in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
                sock = socket.socket(family, type | socket.SOCK_NONBLOCK)
                bound.append(sock)
                if type == socket.SOCK_STREAM:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                sock.bind((anywhere, port))
                if type == socket.SOCK_STREAM:
                    sock.listen(BACKLOG)
        except BaseException:
            for sock in bound:
                sock.close()
            raise
        for sock in bound:
            self.loop.on_read(sock, functools.partial(callback, sock))


def endpoint(address: tuple[Any, ...]) -> str:
    """Address and port as people write them."""
    host, port = address[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def main(control: int, cgroup: str) -> None:
    """Serve until the end."""
    with open(f"{cgroup}/cgroup.procs", "w") as procs:
        procs.write("0")
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # meant for the owner, who ends us
        signal.signal(number, signal.SIG_IGN)
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    Agent(socket.socket(fileno=control)).loop.run()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
