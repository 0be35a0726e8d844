"""As much of a Kubernetes API server as watching needs, over real HTTP, and all that can go wrong with one.

Objects are put and deleted from Python. Lists have pages, watches have bookmarks and resume, history can be
compacted or begin anew; connections can be refused, cut, stalled, and what goes over them be spoiled.
"""

from __future__ import annotations

import itertools
import json
import socket
import ssl
import threading
import time
import uuid
from collections.abc import Callable, Iterable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingTCPServer
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

from attrs import frozen

from tests.support.api_requests import Object, Query, Refusal, expired
from tests.support.ports import ReservedPort

Key = tuple[str, str]

PLURALS = {
    ("v1", "services"): "Service",
    ("v1", "nodes"): "Node",
    ("v1", "pods"): "Pod",
    ("v1", "namespaces"): "Namespace",
    ("discovery.k8s.io/v1", "endpointslices"): "EndpointSlice",
    ("networking.k8s.io/v1", "networkpolicies"): "NetworkPolicy",
    ("example.com/v1", "things"): "Thing",
    ("k8sdatapath.io/v1alpha1", "identities"): "Identity",
    ("k8sdatapath.io/v1alpha1", "identitynumbers"): "IdentityNumber",
    ("k8sdatapath.io/v1alpha1", "identityuses"): "IdentityUse",
}


@frozen
class Change:
    """An entry of the server's history."""

    version: int
    plural: str
    before: Object | None
    after: Object | None
    """None: it was deleted; ``before`` then has the version of that."""


class ApiDouble:
    """The server. It listens from the start, on a port of its own.

    :ivar spoil: may change what a watch sends: a line into any number of lines.
    :ivar refuse: may raise :class:`Refusal` for a request, or anything else to drop its connection.
    :ivar gone_as_event: an expired watch is told so by an ERROR event rather than by HTTP.
    :ivar kinds: of objects that it has, by their API and plural.
    :ivar requests: all there have been, to read.
    :ivar written: method, path and body of all that were to write; they change nothing. ``refuse_write`` may
        raise :class:`Refusal` for one.
    """

    def __init__(
        self,
        *,
        tls: Path | None = None,
        token: str = "",
        bookmarks: float = 0.05,
        address: str = "127.0.0.1",
    ) -> None:
        self.address = address
        self.tls, self.token, self.bookmarks = tls, token, bookmarks
        self.spoil: Callable[[bytes], Iterable[bytes]] = lambda line: [line]
        self.refuse: Callable[[Query], None] = lambda query: None
        self.gone_as_event = True
        self.requests: list[Query] = []
        self.written: list[tuple[str, str, Object]] = []
        self.refuse_write: Callable[[str, str], None] = lambda method, path: None
        self.stalled = False
        self.kinds = dict(PLURALS)
        self._objects: dict[str, dict[Key, Object]] = {}
        self._history: list[Change] = []
        self._changed = threading.Condition(threading.RLock())
        self._version = 100
        self._oldest = 100
        self._snapshots: dict[str, list[Object]] = {}
        self._numbers = itertools.count()
        self._connections: set[socket.socket] = set()
        self._server: _Server | None = None
        self._reserved = ReservedPort()
        self.port = self._reserved.number
        self.up()

    @property
    def url(self) -> str:
        return f"{'https' if self.tls else 'http'}://{self.address}:{self.port}"

    # what is in it

    def put(self, plural: str, value: Object, *, recreate: bool = False) -> Object:
        """Create or change; ``recreate``: another object of the same name."""
        with self._changed:
            self._version += 1
            metadata = value["metadata"]
            kept = self._objects.setdefault(plural, {})
            key = metadata.get("namespace", ""), metadata["name"]
            before = kept.get(key)
            if before and recreate:
                self.delete(plural, *key)
                self._version += 1
                before = None
            uid = before["metadata"]["uid"] if before else str(uuid.uuid4())
            after = {**value, "metadata": {**metadata, "uid": uid, "resourceVersion": str(self._version)}}
            kept[key] = after
            self._record(Change(self._version, plural, before, after))
            return after

    def delete(self, plural: str, namespace: str, name: str) -> None:
        with self._changed:
            before = self._objects[plural].pop((namespace, name))
            self._version += 1
            last = {**before, "metadata": {**before["metadata"], "resourceVersion": str(self._version)}}
            self._record(Change(self._version, plural, last, None))

    def kinds_of(self, api: str) -> Object | None:
        """What a group of kinds has, as ``kubectl api-resources`` asks; None: there is no such group."""
        found = [{"name": plural, "kind": kind} for (each, plural), kind in self.kinds.items() if each == api]
        return {"kind": "APIResourceList", "groupVersion": api, "resources": found} if found else None

    def answer_one(self, plural: str, name: str) -> Object:
        with self._changed:
            found = self._objects.get(plural, {}).get(("", name))
            if found is None:
                raise Refusal(404, "NotFound", f"{plural} {name!r} not found")
            return found

    def answer_change(self, method: str, plural: str, name: str, value: Object) -> Object:
        """Create, replace or delete an object that is of no namespace, as a real server would."""
        with self._changed:
            if method == "POST":
                name = value["metadata"]["name"]
                if ("", name) in self._objects.get(plural, {}):
                    raise Refusal(409, "AlreadyExists", f"{plural} {name!r} already exists")
                return self.put(plural, value)
            known = self.answer_one(plural, name)["metadata"]
            wanted = value.get("preconditions" if method == "DELETE" else "metadata", {})
            for each in "uid", "resourceVersion":
                if wanted.get(each, known[each]) != known[each]:
                    raise Refusal(409, "Conflict", f"{plural} {name!r}: {each} is {known[each]}")
            if method == "PUT":
                return self.put(plural, value)
            self.delete(plural, "", name)
            return {"kind": "Status", "apiVersion": "v1", "status": "Success"}

    def objects(self, plural: str) -> dict[Key, Object]:
        with self._changed:
            return dict(self._objects.get(plural, {}))

    def _record(self, change: Change) -> None:
        self._history.append(change)
        self._changed.notify_all()

    # what goes wrong

    def compact(self) -> None:
        """Forget the history: whoever wants to resume must list, whoever turns pages must start again."""
        with self._changed:
            self._history.clear()
            self._snapshots.clear()
            self._oldest = self._version

    def restore(self, version: int = 1) -> None:
        """As after a restored backup: versions begin anew, though the objects are those of before."""
        with self._changed:
            self._version = self._oldest = version
            self._history.clear()
            self._snapshots.clear()
            for kept in self._objects.values():
                for key, value in kept.items():
                    self._version += 1
                    kept[key] = {
                        **value,
                        "metadata": {**value["metadata"], "resourceVersion": str(self._version)},
                    }
            self._oldest = self._version
        self.cut()

    def cut(self) -> int:
        """Reset all connections; how many."""
        with self._changed:
            connections = list(self._connections)
        for each in connections:
            with suppress(OSError):
                each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                each.shutdown(socket.SHUT_RDWR)
        return len(connections)

    def down(self) -> None:
        """Nobody listens any more."""
        server = self._server
        with self._changed:
            self._server = None
            self._changed.notify_all()
        if server is not None:
            server.shutdown()
            self.cut()
            server.server_close()  # waits for the threads
            self._thread.join()

    def up(self) -> None:
        """Listen, on the same port as before."""
        self._server = _Server(self)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    def stall(self, stalled: bool = True) -> None:
        """Connections stay, and nothing more comes over them; new ones are accepted and not answered."""
        with self._changed:
            self.stalled = stalled
            self._changed.notify_all()

    # lists and watches

    def answer_list(self, query: Query) -> Object:
        with self._changed:
            limit, token = int(query.options.get("limit", "0")), query.options.get("continue", "")
            if token:
                name, _, start = token.partition("-")
                if name not in self._snapshots:
                    raise Refusal(410, "Expired", "The provided continue parameter is too old")
                version, items, first = name.partition(".")[0], self._snapshots[name], int(start)
            else:
                kept = self._objects.get(query.plural, {})
                items = [each for _, each in sorted(kept.items()) if query.selects(each)]
                version, first = str(self._version), 0
                name = f"{version}.{next(self._numbers)}"
            metadata = {"resourceVersion": version}
            if limit and first + limit < len(items):
                self._snapshots[name] = items
                metadata["continue"] = f"{name}-{first + limit}"
                items = items[first : first + limit]
            else:
                items = items[first:]
            kind = self.kinds[query.api, query.plural]
            return {"kind": f"{kind}List", "apiVersion": query.api, "metadata": metadata, "items": items}

    def answer_watch(self, query: Query, send: Callable[[bytes], None], stopped: Callable[[], bool]) -> None:
        """Until the time is over or the server goes down; one call of ``send`` an event."""
        version = int(query.options.get("resourceVersion") or 0)
        with self._changed:
            if version > self._version:
                message = f"Too large resource version: {version}, current: {self._version}"
                raise Refusal(504, "Timeout", message, 1)
            oldest = self._oldest
        if version < oldest:
            gone = expired(version, oldest)
            if not self.gone_as_event:
                raise gone
            self._send(send, "ERROR", gone.status)
            return
        send(b"")
        until = query.started + float(query.options.get("timeoutSeconds", "60"))
        bookmarked = time.monotonic()
        while (now := time.monotonic()) < until:
            changes, latest, oldest = self._wait(version, stopped)
            if stopped() or (changes and changes[0].version <= version):  # or history has begun anew
                return
            if version < oldest:  # what was to be told next is forgotten
                self._send(send, "ERROR", expired(version, oldest).status)
                return
            for change in changes:
                if change.plural == query.plural:
                    self._send_change(query, change, send)
                version = change.version
            if now - bookmarked > self.bookmarks and "allowWatchBookmarks" in query.options:
                bookmarked, version = now, max(version, latest)
                metadata = {"resourceVersion": str(version)}
                self._send(
                    send, "BOOKMARK", {"kind": self.kinds[query.api, query.plural], "metadata": metadata}
                )

    def _wait(self, version: int, stopped: Callable[[], bool]) -> tuple[list[Change], int, int]:
        """What has come after a version, in a moment; the latest there is, and the oldest remembered."""
        with self._changed:
            self._changed.wait_for(lambda: stopped() or self.stalled or self._after(version), 0.05)
            self._changed.wait_for(lambda: stopped() or not self.stalled)
            return self._after(version), self._version, self._oldest

    def _after(self, version: int) -> list[Change]:
        """Backwards, since nearly always there are few."""
        found = list(itertools.takewhile(lambda each: each.version > version, reversed(self._history)))
        return found[::-1]

    def _send_change(self, query: Query, change: Change, send: Callable[[bytes], None]) -> None:
        """What leaves the selection is deleted for who watches it."""
        before, after = query.selects(change.before), query.selects(change.after)
        if after:
            self._send(send, "MODIFIED" if before else "ADDED", change.after, query)
        elif before:
            last = change.after or change.before
            self._send(send, "DELETED", last, query)

    def _send(self, send: Callable[[bytes], None], kind: str, value: Any, query: Query | None = None) -> None:
        if query is not None:
            value = {"kind": self.kinds[query.api, query.plural], "apiVersion": query.api, **value}
        line = json.dumps({"type": kind, "object": value}).encode() + b"\n"
        for each in self.spoil(line):
            send(each)

    def close(self) -> None:
        self.down()
        self._reserved.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()


class _Server(ThreadingTCPServer):
    allow_reuse_address = True
    request_queue_size = 64

    def __init__(self, double: ApiDouble) -> None:
        self.double = double
        super().__init__((double.address, double.port), _Handler)

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, peer = super().get_request()
        with self.double._changed:
            self.double._connections.add(connection)
        return connection, peer

    def shutdown_request(self, request: Any) -> None:
        with self.double._changed:
            self.double._connections.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Connections that end early are what this is for."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def setup(self) -> None:
        self._raw = self.request
        if self.server.double.tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(self.server.double.tls)
            self.request = context.wrap_socket(self.request.dup(), server_side=True)
        super().setup()

    def finish(self) -> None:
        with suppress(OSError):
            super().finish()
        if self.request is not self._raw:
            self.request.close()

    def log_message(self, *_: object) -> None:
        """It is asked often."""

    def do_GET(self) -> None:
        double = self.server.double
        url = urlsplit(self.path)
        *way, plural = url.path.strip("/").split("/")
        query = Query(
            plural, "/".join(way[1:]), {name: last for name, [*_, last] in parse_qs(url.query).items()}
        )
        with double._changed:
            double.requests.append(query)
            double._changed.wait_for(lambda: not double.stalled or self._stopped())
        self._begun = False
        try:
            if double.token and self.headers.get("Authorization") not in (
                f"Bearer {double.token}",
                f"bearer {double.token}",
            ):
                raise Refusal(401, "Unauthorized")
            if ("/".join(way[1:-1]), way[-1]) in double.kinds:
                self._answer(200, double.answer_one(way[-1], plural))
                return
            if listed := double.kinds_of(f"{query.api}/{plural}"):
                self._answer(200, listed)
                return
            if (query.api, plural) not in double.kinds:
                raise Refusal(404, "NotFound", "the server could not find the requested resource")
            double.refuse(query)
            if query.watch:
                double.answer_watch(query, self._chunk, self._stopped)
                self._chunk(b"")
                self.wfile.write(b"0\r\n\r\n")
            else:
                self._answer(200, double.answer_list(query))
        except Refusal as refusal:
            more = {} if refusal.retry_after is None else {"Retry-After": str(refusal.retry_after)}
            self._answer(refusal.code, refusal.status, more)
        except (ConnectionError, ssl.SSLError):
            self.close_connection = True

    def do_POST(self) -> None:
        double = self.server.double
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        _, group, _, *way = self.path.strip("/").split("/")
        try:
            double.refuse_write(self.command, self.path)
            if group == "k8sdatapath.io":
                plural, name = (*way, "")[:2]
                self._answer(200, double.answer_change(self.command, plural, name, body))
                return
        except Refusal as refusal:
            self._answer(refusal.code, refusal.status)
        else:
            with double._changed:
                double.written.append((self.command, self.path, body))
            self._answer(200, body)

    do_PATCH = do_PUT = do_DELETE = do_POST

    def _stopped(self) -> bool:
        return self.server.double._server is not self.server

    def _answer(self, code: int, value: Object, headers: dict[str, str] | None = None) -> None:
        body = json.dumps(value).encode()
        self.send_response(code)
        for name, text in {**(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(name, text)
        self.end_headers()
        self.wfile.write(body)

    def _chunk(self, data: bytes) -> None:
        if not self._begun:
            self._begun = True
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
        if data:
            self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))
