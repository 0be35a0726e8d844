"""Answers load balancers that ask whether this node has endpoints of a Service (``healthCheckNodePort``)."""

from __future__ import annotations

import errno
import json
import os
import re
import selectors
import socket
import threading
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import TypeAlias

from attrs import define, field, frozen

from k8sdatapath.component import Report
from k8sdatapath.errors import ClosedError
from k8sdatapath.kube.translate import HealthCheck
from k8sdatapath.model import IPAddress
from k8sdatapath.resource import Resource

__all__ = ["HealthPlan", "HealthServer"]

_PATIENCE = 5.0
"""Seconds that a client has to ask."""
_AT_ONCE = 256
"""Clients in conversation; more are hung up on, so that they cannot use up the descriptors of the process."""
_LONGEST = 16 << 10
"""Bytes of a request."""

_REQUEST = re.compile(rb"([A-Z]{1,20}) \S+ HTTP/1\.[01]\r\n")

_Place: TypeAlias = tuple[IPAddress, int]


@define(eq=False)
class _Talk:
    """A client that has not asked to the end."""

    place: _Place
    socket: socket.socket
    deadline: float
    request: bytearray = field(factory=bytearray)


class HealthServer(Resource):
    """HTTP at the health check port of each Service, on the addresses of a node.

    200 while the node has ready endpoints of the Service and its datapath works, else 503, in either case
    with the numbers as JSON: what kube-proxy answers. Endpoints that terminate do not count, even while they
    are still given flows, so that load balancers turn elsewhere in time::

        with HealthServer(view.node_port_addresses) as health:
            for services in source.watch():
                table.plan(services).apply()
                health.update(source.health_checks)

    One thread serves all. Sockets are made by the caller of :meth:`update`, in its network namespace.

    :param addresses: where to listen. A Service is asked about at those of its families.
    :param healthy: whether the datapath works; if not, 503 is all that is answered. It is called for every
        question, in the server's thread.
    """

    def __init__(self, addresses: Iterable[IPAddress], *, healthy: Callable[[], bool] = lambda: True) -> None:
        self.addresses = tuple(addresses)
        self.failed: dict[_Place, OSError] = {}
        """Where the last update could not listen, and why; most often somebody else does."""
        self._healthy = healthy
        self._checks: dict[_Place, HealthCheck] = {}
        self._listeners: dict[_Place, socket.socket] = {}
        self._talks: set[_Talk] = set()
        self._closed = False
        self._lock = threading.Lock()  # held for all but the wait for clients
        self._wake = os.eventfd(0)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._wake, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._serve, name="health checks", daemon=True)
        self._thread.start()

    def plan(self, wanted: Iterable[HealthCheck]) -> HealthPlan:
        """What to do so that exactly ``wanted`` is answered: for those who keep several components alike."""
        return HealthPlan(self, self._checks, self._places(wanted))

    def update(self, checks: Iterable[HealthCheck]) -> None:
        """Answer by these from now on. The ports of others are closed, those of the same stay open.

        Where nobody can listen, the rest is served: see :attr:`failed`. The next update tries again.

        :raises ClosedError: the server is closed.
        """
        self._answer_by(self._places(checks))

    def retry(self) -> dict[_Place, OSError]:
        """Try again where nobody could listen; returns where that is so still.

        A closed server tries nothing.
        """
        with self._lock:
            if not self._closed:
                self._open(tuple(self.failed))
            return dict(self.failed)

    def _places(self, checks: Iterable[HealthCheck]) -> dict[_Place, HealthCheck]:
        return {
            (address, check.port): check
            for check in checks
            for address in self.addresses
            if (check.ipv4 if address.version == 4 else check.ipv6) is not None
        }

    def _answer_by(self, wanted: dict[_Place, HealthCheck]) -> None:
        with self._lock:
            if self._closed:
                raise ClosedError("the health server is closed")
            self._checks = wanted
            for place in self._listeners.keys() - wanted.keys():
                self._forget(self._listeners.pop(place))
            self._open(wanted.keys() - self._listeners.keys())

    def _open(self, places: Iterable[_Place]) -> None:
        self.failed = {}
        for place in places:
            try:
                self._listeners[place] = listener = _listen(*place)
            except OSError as error:
                self.failed[place] = error
            else:
                self._selector.register(listener, selectors.EVENT_READ, partial(self._accept, place))

    def close(self) -> None:
        """Hang up, and close all ports. A second time it does nothing."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        os.eventfd_write(self._wake, 1)
        self._thread.join()
        for open_ in (*self._listeners.values(), *(talk.socket for talk in self._talks)):
            self._forget(open_)
        self._listeners.clear()
        self._talks.clear()
        self._selector.close()
        os.close(self._wake)

    def __repr__(self) -> str:
        return f"<HealthServer {len(self._listeners)} ports, {len(self.failed)} failed>"

    def _forget(self, open_: socket.socket) -> None:
        self._selector.unregister(open_)
        open_.close()

    # -- in the thread of its own --

    def _serve(self) -> None:
        while True:
            ready = self._selector.select(1.0 if self._talks else None)
            with self._lock:
                if self._closed:
                    return
                for key, _ in ready:
                    if self._selector.get_map().get(key.fd) is key:  # else it was closed while we waited
                        key.data()
                now = time.monotonic()
                for talk in [talk for talk in self._talks if talk.deadline < now]:
                    self._hang_up(talk)

    def _accept(self, place: _Place) -> None:
        try:
            client, _ = self._listeners[place].accept()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                time.sleep(0.1)  # the client is still there: without a pause we would be asked again at once
            return
        if len(self._talks) >= _AT_ONCE:
            client.close()
            return
        client.setblocking(False)
        talk = _Talk(place, client, time.monotonic() + _PATIENCE)
        self._talks.add(talk)
        self._selector.register(client, selectors.EVENT_READ, partial(self._read, talk))

    def _read(self, talk: _Talk) -> None:
        try:
            heard = talk.socket.recv(_LONGEST)
            talk.request += heard
            if b"\r\n\r\n" in talk.request:
                talk.socket.send(self._answer(talk.place, bytes(talk.request)))  # fits into any new socket
            elif heard and len(talk.request) < _LONGEST:
                return
        except BlockingIOError:
            return
        except OSError:
            pass  # the client has gone
        self._hang_up(talk)

    def _hang_up(self, talk: _Talk) -> None:
        self._talks.discard(talk)
        self._forget(talk.socket)

    def _answer(self, place: _Place, request: bytes) -> bytes:
        asked, check = _REQUEST.match(request), self._checks.get(place)
        if asked is None or check is None:  # the latter: its port was closed meanwhile
            return _response("400 Bad Request" if asked is None else "404 Not Found")
        count = (check.ipv4 if place[0].version == 4 else check.ipv6) or 0
        healthy = self._is_healthy()
        told = {
            "service": {"namespace": check.namespace, "name": check.name},
            "localEndpoints": count,
            "serviceProxyHealthy": healthy,
        }
        return _response(
            "200 OK" if count and healthy else "503 Service Unavailable",
            json.dumps(told, indent="\t").encode(),
            f"X-Load-Balancing-Endpoint-Weight: {count}",
            head_only=asked[1] == b"HEAD",
        )

    def _is_healthy(self) -> bool:
        try:
            return self._healthy()
        except Exception:  # who cannot tell is not well, and the others are answered still
            return False


@frozen
class HealthPlan:
    """The difference between what is answered where and what is to be. ``str()`` shows it."""

    _server: HealthServer
    _before: dict[_Place, HealthCheck]
    _after: dict[_Place, HealthCheck]

    @property
    def empty(self) -> bool:
        """Whether everything is answered as wanted already."""
        return self._before == self._after and not self._server.failed

    def apply(self) -> Report:
        """Answer as wanted; see :meth:`HealthServer.update`."""
        started = time.perf_counter()
        self._server._answer_by(self._after)
        added, kept, removed = self._changes
        changed = sum(self._before[place] != self._after[place] for place in kept)
        return Report(len(added), changed, len(removed), time.perf_counter() - started)

    @property
    def _changes(self) -> tuple[set[_Place], set[_Place], set[_Place]]:
        before, after = self._before.keys(), self._after.keys()
        return after - before, after & before, before - after

    def __str__(self) -> str:
        added, _, removed = self._changes
        return f"{len(added)} health check ports to open, {len(removed)} to close"


def _response(status: str, body: bytes = b"", *headers: str, head_only: bool = False) -> bytes:
    lines = (
        f"HTTP/1.1 {status}",
        "Content-Type: application/json",
        "X-Content-Type-Options: nosniff",
        *headers,
        f"Content-Length: {len(body)}",
        "Connection: close",
    )
    head = "".join(f"{line}\r\n" for line in lines) + "\r\n"
    return head.encode() + (b"" if head_only else body)


def _listen(address: IPAddress, port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET if address.version == 4 else socket.AF_INET6)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if address.version == 6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind((str(address), port))
        listener.listen()
        listener.setblocking(False)
    except BaseException:
        listener.close()
        raise
    return listener
