"""The clients of the demo: they dial frontends, and remember who answered."""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Sequence
from itertools import cycle
from types import TracebackType
from typing import Self

from attrs import frozen

from k8sdatapath.errors import DatapathError, LabError
from k8sdatapath.lab import Host
from k8sdatapath.model import Frontend, Protocol
from k8sdatapath.resource import Resource

__all__ = ["Answer", "KeptConnection", "Traffic"]

_ATTEMPTS = 500


@frozen
class Answer:
    """One request: ``pod`` is who answered, empty if nobody did; then ``error`` says why."""

    frontend: Frontend
    began: float
    pod: str
    error: str = ""


class Traffic:
    """Clients that dial all frontends in turn, with a new socket each time, until the ``with`` is left."""

    def __init__(self, clients: Sequence[Host], frontends: Sequence[Frontend]) -> None:
        self.answers: list[Answer] = []
        self._frontends = frontends
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(client,)) for client in clients]

    def _run(self, client: Host) -> None:
        for frontend in cycle(self._frontends):
            if self._stop.is_set():
                return
            began, pod, error = time.monotonic(), "", ""
            try:
                pod = ask(client, frontend)
            except (OSError, http.client.HTTPException, DatapathError) as failure:
                error = f"{client.name} to {frontend}: {failure!r}"
            self.answers.append(Answer(frontend, began, pod, error))

    @property
    def failures(self) -> list[str]:
        """What went wrong."""
        return [answer.error for answer in self.answers if answer.error]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


def ask(client: Host, frontend: Frontend) -> str:
    """Dial a frontend once, and return the name that the answering pod gives.

    :raises ConnectionError: the answer did not come from whom was dialed.
    """
    if frontend.protocol is Protocol.UDP:
        datagram = client.udp(frontend.address, frontend.port, b"who is there?")
        text, peer = datagram.data.decode(), datagram.source
    else:
        response = client.get(f"http://{str(frontend).partition('/')[0]}")
        text, peer = response.text, response.peer
    if peer != (str(frontend.address), frontend.port):
        raise ConnectionError(f"answered by {peer}")
    return text


class KeptConnection(Resource):
    """A TCP connection through a frontend that asks again and again."""

    def __init__(self, client: Host, frontend: Frontend) -> None:
        self._http = http.client.HTTPConnection(str(frontend.address), frontend.port)
        self._http.sock = client.tcp(frontend.address, frontend.port)

    @classmethod
    def to(cls, pod: str, client: Host, frontend: Frontend) -> Self:
        """Dial until ``pod`` is the one who answers.

        :raises LabError: it never is.
        """
        for _ in range(_ATTEMPTS):
            connection = cls(client, frontend)
            if connection.ask() == pod:
                return connection
            connection.close()
        raise LabError(f"{pod} did not answer any of {_ATTEMPTS} connections to {frontend}")

    def ask(self) -> str:
        """The name of the pod at the other end, empty if the connection is broken."""
        try:
            self._http.request("GET", "/")
            return self._http.getresponse().read().decode()
        except (OSError, http.client.HTTPException):
            return ""

    def close(self) -> None:
        """End it."""
        self._http.close()
