"""Tells a cluster what is wrong with its objects, in Events."""

from __future__ import annotations

import logging
import threading
import time
import uuid
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Protocol

from attrs import define

from k8sdatapath.component import ObjectKey
from k8sdatapath.errors import ClosedError
from k8sdatapath.kube.patience import Patience
from k8sdatapath.resource import Resource

if TYPE_CHECKING:
    from kubernetes.client import ApiClient

__all__ = ["EventWriter"]

_COMPONENT = "k8sdatapath"
_VERSIONS = {
    "EndpointSlice": "discovery.k8s.io/v1",
    "NetworkPolicy": "networking.k8s.io/v1",
    "CiliumNetworkPolicy": "cilium.io/v2",
    "CiliumClusterwideNetworkPolicy": "cilium.io/v2",
    "CiliumCIDRGroup": "cilium.io/v2",
    "ClusterNetworkPolicy": "policy.networking.k8s.io/v1alpha2",
}
_REMEMBERED = 4096
"""Events that are counted on rather than written anew."""

_log = logging.getLogger("k8sdatapath.kube.events")


class _Status(Protocol):
    @property
    def state(self) -> str: ...

    @property
    def reason(self) -> str: ...


@define
class _Written:
    """An Event in the cluster."""

    path: str
    count: int


class EventWriter(Resource):
    """Writes an Event when an object has an error, and when it has it no more::

        with EventWriter(client, node="n1") as events:
            Reconciler(source, node.services, on_status=events.tell).run()

    Writing is left to a thread: who tells does not wait, whatever the API server does. Of an object only the
    latest is written, what was written before is counted up, and no more than some a second are written at
    all. What the server refuses is logged and forgotten.

    The role needs ``create`` and ``patch`` of ``events``. ``kubectl get events`` shows them.

    :param client: of the official library.
    :param node: where it happens.
    :param per_second: how many are written in the long run; ``burst`` at once.
    """

    def __init__(self, client: ApiClient, node: str, *, per_second: float = 1.0, burst: int = 10) -> None:
        from k8sdatapath.kube.connection import ApiServer

        self.node = node
        self.written = 0
        """Events that the server has taken; likewise ``failed``."""
        self.failed = 0
        self._api = ApiServer(client, Patience())
        self._per_second, self._burst = per_second, float(burst)
        self._known: dict[tuple[ObjectKey, str], _Written] = {}
        self._pending: dict[ObjectKey, tuple[str, str]] = {}
        self._news = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="events", daemon=True)
        self._thread.start()

    def tell(self, key: ObjectKey, status: _Status) -> None:
        """Have an Event written.

        :raises ClosedError: the writer is closed.
        """
        with self._news:
            if self._closed:
                raise ClosedError("the writer of events is closed")
            self._pending.pop(key, None)  # it goes to the end of the row
            self._pending[key] = str(status.state), status.reason
            self._news.notify_all()

    def close(self) -> None:
        """Stop, without what is not written yet."""
        with self._news:
            self._closed = True
            self._news.notify_all()
        self._api.close()
        self._thread.join()

    # -- in the thread of its own --

    def _run(self) -> None:
        room, looked = self._burst, time.monotonic()
        while True:
            with self._news:
                self._news.wait_for(lambda: self._closed or self._pending)
                if room < 1:
                    self._news.wait_for(lambda: self._closed, (1 - room) / self._per_second)
                if self._closed:
                    self._api.clear()
                    return
                key = next(iter(self._pending))
                state, reason = self._pending.pop(key)
            now = time.monotonic()
            room = min(self._burst, room + (now - looked) * self._per_second) - 1
            looked = now
            try:
                self._write(key, state, reason)
            except Exception as error:  # of HTTP, of TLS, of the library: an Event is worth no more trouble
                self._api.clear()
                self.failed += 1
                _log.warning("an event about %s was not written: %s", "/".join(key), error)
            else:
                self.written += 1

    def _write(self, key: ObjectKey, state: str, reason: str) -> None:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        message = reason or "the kernel does what it says"
        known = self._known.get((key, message))
        if known is not None and self._count_up(known, now):
            return
        body = self._event(key, "Warning" if reason else "Normal", state.title(), message, now)
        place = f"/api/v1/namespaces/{body['metadata']['namespace']}/events"
        self._api.send("POST", place, body)
        while len(self._known) >= _REMEMBERED:
            del self._known[next(iter(self._known))]
        self._known[key, message] = _Written(f"{place}/{body['metadata']['name']}", 1)

    def _count_up(self, known: _Written, now: str) -> bool:
        """Say that it has happened again; False if it is forgotten there, as Events are after an hour."""
        from k8sdatapath.kube.connection import RefusedError

        try:
            self._api.send("PATCH", known.path, {"count": known.count + 1, "lastTimestamp": now})
        except RefusedError as error:
            if error.notice.code != 404:
                raise
            return False
        known.count += 1
        return True

    def _event(self, key: ObjectKey, type: str, reason: str, message: str, now: str) -> dict[str, Any]:
        kind, namespace, name = key
        about = {"kind": kind, "name": name, "apiVersion": _VERSIONS.get(kind, "v1")}
        if namespace:
            about["namespace"] = namespace
        return {
            "metadata": {"name": f"{name}.{uuid.uuid4().hex[:16]}", "namespace": namespace or "default"},
            "involvedObject": about,
            "type": type,
            "reason": reason,
            "message": f"on node {self.node}: {message}"[:1024],
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
            "source": {"component": _COMPONENT, "host": self.node},
            "reportingComponent": _COMPONENT,
            "reportingInstance": self.node,
        }
