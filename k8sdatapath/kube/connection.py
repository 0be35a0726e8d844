"""Requests to an API server, on the official client: its authentication, TLS, proxies and connections.

What it lacks is here: a request that another thread can end, whatever it waits for.
"""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from io import BufferedReader
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import urllib3
from kubernetes.client.rest import RESTClientObject
from kubernetes.config import ConfigException
from urllib3.exceptions import HTTPError, LocationParseError
from urllib3.util import Url, parse_url

from k8sdatapath.errors import SourceError
from k8sdatapath.kube.chunks import Chunks
from k8sdatapath.kube.patience import Patience
from k8sdatapath.kube.wire import GarbledError, Notice, notice, parse
from k8sdatapath.model.address import shown
from k8sdatapath.resource import Resource

if TYPE_CHECKING:
    from kubernetes.client import ApiClient

__all__ = ["Answer", "ApiServer", "RefusedError", "UnreachableError"]

_KEEPALIVE = (socket.TCP_KEEPIDLE, 20), (socket.TCP_KEEPINTVL, 5), (socket.TCP_KEEPCNT, 4)
_CHUNK = 1 << 16
_BUFFER = 1 << 18
_MAX_LINE = 32 << 20  # etcd takes objects of up to 1.5 MiB


class UnreachableError(Exception):
    """There was no answer, or it was cut off."""


class RefusedError(Exception):
    """The server answered that it will not, or not now."""

    def __init__(self, notice: Notice) -> None:
        super().__init__(notice)
        self.notice = notice

    def __str__(self) -> str:
        told = self.notice
        return " ".join(filter(None, (str(told.code or ""), told.reason, told.message)))


class ApiServer:
    """The server that a client of the official library is configured for; one request at a time.

    It has a pool of connections of its own, so that ending its requests leaves the client's alone.

    :raises SourceError: the client is configured for none.
    """

    def __init__(self, client: ApiClient, patience: Patience) -> None:
        host = str(client.configuration.host)
        try:
            known = parse_url(host)
        except LocationParseError:
            known = Url()
        if known.scheme not in ("http", "https") or not known.host:
            raise SourceError(f"{shown(host)} is not where an API server is: https://HOST:PORT")
        self._client = client
        self._patience = patience
        self._handle = _Handle(patience.answer)
        self._rest = RESTClientObject(client.configuration)
        pool = self._rest.pool_manager
        classes = pool.pool_classes_by_scheme
        pool.pool_classes_by_scheme = {name: _telling(each, self._handle) for name, each in classes.items()}

    def get(self, path: str, query: dict[str, str], silence: float | None = None) -> Answer:
        """Ask.

        :param silence: seconds without a byte, after which the connection counts as dead.
        :raises RefusedError: the answer is that it will not.
        :raises UnreachableError: there is none.
        """
        return self._request("GET", f"{path}?{urlencode(query)}", silence or self._patience.answer)

    def send(self, method: str, path: str, value: dict[str, Any]) -> bytes:
        """Create an object (``POST``), merge into one (``PATCH``), replace (``PUT``) or ``DELETE`` it.

        Returns what the server has made of it.

        :raises RefusedError: the answer is that it will not.
        :raises UnreachableError: there is none.
        """
        kind = "application/merge-patch+json" if method == "PATCH" else "application/json"
        with self._request(method, path, self._patience.answer, json.dumps(value), kind) as answer:
            return answer.body()

    def _request(
        self, method: str, path: str, silence: float, body: str | None = None, kind: str = ""
    ) -> Answer:
        try:
            response = self._rest.pool_manager.request(
                method,
                f"{self._client.configuration.host.rstrip('/')}{path}",
                body=body,
                headers=self._headers() | ({"Content-Type": kind} if kind else {}),
                preload_content=False,
                retries=False,
                timeout=urllib3.Timeout(connect=self._patience.connect, read=silence),
            )
        except (HTTPError, OSError, ConfigException) as error:
            self.clear()
            raise UnreachableError(_sentence(error)) from error
        answer = Answer(response, self.clear)
        if not 200 <= response.status < 300:
            with answer:
                raise RefusedError(_refusal(response))
        return answer

    def close(self) -> None:
        """End the request that is under way, and refuse new ones; from any thread."""
        self._handle.close()

    def clear(self) -> None:
        """Close what connections there are; by the thread that asks."""
        self._handle.release()
        self._rest.pool_manager.clear()

    def _headers(self) -> dict[str, str]:
        found = {**self._client.default_headers, "Accept": "application/json"}
        if self._client.cookie:
            found["Cookie"] = self._client.cookie
        for one in self._client.configuration.auth_settings().values():  # renews a token that is too old
            if one["in"] == "header" and one["value"]:
                found[one["key"]] = one["value"]
        return found


class Answer(Resource):
    """An answer whose body is still coming. Close it, or read it to its end."""

    def __init__(self, response: Any, clear: Callable[[], None]) -> None:
        self._response = response
        self._clear = clear
        self._ended = False

    def body(self) -> bytes:
        """All of it.

        :raises UnreachableError: it was cut off.
        """
        try:
            data: bytes = self._response.read()
        except (HTTPError, OSError) as error:
            raise UnreachableError(_sentence(error)) from error
        self._response.release_conn()  # for the next request
        self._ended = True
        return data

    def lines(self) -> Iterator[list[bytes]]:
        """Its lines, as they come: all that have come since the last time.

        :raises UnreachableError: it was cut off.
        :raises GarbledError: a line without an end.
        """
        rest = b""
        for chunk in self._chunks():
            *lines, rest = (rest + chunk if rest else chunk).split(b"\n")
            if lines:
                yield [line for line in lines if line]
            if len(rest) > _MAX_LINE:
                raise GarbledError(f"a line of more than {_MAX_LINE} bytes")

    def _chunks(self) -> Iterator[bytes]:
        try:
            while chunk := self._response.read1(_BUFFER):
                yield chunk
        except (HTTPError, OSError, ValueError) as error:
            raise UnreachableError(_sentence(error)) from error

    def close(self) -> None:
        """Let go of the rest, and with it of the connection."""
        if not self._ended:
            self._ended = True
            with suppress(HTTPError, OSError):
                self._response.close()
            self._clear()


class _Handle:
    """A second descriptor of the socket that is waited on, to end the wait from another thread.

    Not the socket itself: TLS replaces that while it is still waiting for the server.
    """

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._closed = False

    def take(self, sock: socket.socket) -> None:
        """From now on this one."""
        sock.settimeout(self._timeout)  # until now it was that for connecting; TLS is next
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in _KEEPALIVE:
            sock.setsockopt(socket.IPPROTO_TCP, option, value)
        self.release()
        with self._lock:
            if not self._closed:
                self._socket = sock.dup()
                return
        sock.close()
        raise OSError("closed")

    def release(self) -> None:
        """From now on none."""
        with self._lock:
            sock, self._socket = self._socket, None
        if sock is not None:
            sock.close()

    def close(self) -> None:
        with self._lock:
            self._closed = True
            if self._socket is not None:
                with suppress(OSError):
                    self._socket.shutdown(socket.SHUT_RDWR)


def _telling(pool: type[Any], handle: _Handle) -> type[Any]:
    """A class of pools whose connections hand over their sockets before they wait for anything."""

    class Response(pool.ConnectionCls.response_class):  # type: ignore[misc,name-defined]
        """Takes many events at once: after each read the thread waits for its turn among the others."""

        def __init__(self, sock: socket.socket, *given: Any, **named: Any) -> None:
            super().__init__(sock, *given, **named)
            self.fp.close()  # type: ignore[has-type]
            stream = BufferedReader(sock.makefile("rb", 0), _BUFFER)
            self.fp = stream
            self._chunks = Chunks(partial(stream.read1, _BUFFER))

        def read1(self, n: int = -1) -> bytes:
            if not self.chunked or self.fp is None:
                whole: bytes = super().read1(n)
                return whole
            data = self._chunks.read()
            if self._chunks.ended:
                self.close()
            return data

    class Connection(pool.ConnectionCls):  # type: ignore[misc,name-defined]
        response_class = Response

        def _new_conn(self) -> socket.socket:
            sock: socket.socket = super()._new_conn()
            handle.take(sock)
            return sock

    return type(pool.__name__, (pool,), {"ConnectionCls": Connection})


def _refusal(response: Any) -> Notice:
    """What a refusal says, in its body or, if that is no ``Status``, by its code."""
    try:
        told = parse(response.read(_CHUNK, decode_content=True))
    except (GarbledError, HTTPError, OSError):
        told = {}
    after = response.headers.get("Retry-After", "")
    known = {"code": response.status, "reason": response.reason}
    wait = float(after) if after.isascii() and after.isdigit() and len(after) < 6 else 0.0
    return notice({**known, **told, "code": response.status}, wait)


def _sentence(error: BaseException) -> str:
    """Without the objects that urllib3 puts in front."""
    reason = str(error.args[-1]) if error.args else ""
    return f"{type(error).__name__}: {reason or error}"[:300]
