"""A Kubernetes API server as a store: records are objects of the CRDs in ``deploy/identity``."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from k8sdatapath.component import Record
from k8sdatapath.errors import StoreConflictError, StoreError
from k8sdatapath.kube.patience import Patience
from k8sdatapath.kube.wire import GarbledError, parse
from k8sdatapath.resource import Resource

if TYPE_CHECKING:
    from kubernetes.client import ApiClient

__all__ = ["KubeStore"]

GROUP = "k8sdatapath.io/v1alpha1"
KINDS = {
    "identities": ("identities", "Identity"),
    "numbers": ("identitynumbers", "IdentityNumber"),
    "uses": ("identityuses", "IdentityUse"),
}
"""Kind of records -> plural and kind of objects. All are of the cluster, in no namespace."""


class KubeStore(Resource):
    """Records as objects of the cluster: ``metadata.name`` is the name, ``spec`` the value.

    What makes changes atomic is what every API server does: there is one object of a name, and an update or
    deletion that says another ``uid`` or ``resourceVersion`` than the object has is refused.

    :param client: of the official library, configured for the server. It may ``get``, ``list``, ``create``,
        ``update`` and ``delete`` these kinds.
    :param patience: how long is waited for connections and answers.
    """

    def __init__(self, client: ApiClient, *, patience: Patience | None = None) -> None:
        from k8sdatapath.kube.connection import ApiServer

        self._where = str(client.configuration.host)
        self._server = ApiServer(client, patience or Patience(answer=10.0))
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"<KubeStore {self._where}>"

    def get(self, kind: str, name: str) -> Record | None:
        """What is there now."""
        try:
            return self._record(kind, self._ask("GET", kind, name))
        except StoreConflictError:  # not found
            return None

    def list(self, kind: str) -> tuple[Record, ...]:
        """All of a kind, as they were at one moment."""
        items = self._ask("GET", kind).get("items") or ()
        return tuple(self._record(kind, each) for each in items)

    def create(self, kind: str, name: str, value: Mapping[str, Any]) -> Record:
        """Make one."""
        return self._record(kind, self._ask("POST", kind, name, self._object(kind, {"name": name}, value)))

    def update(self, record: Record, value: Mapping[str, Any]) -> Record:
        """Give a record another value."""
        uid, _, version = record.version.partition("/")
        metadata = {"name": record.name, "uid": uid, "resourceVersion": version}
        found = self._ask("PUT", record.kind, record.name, self._object(record.kind, metadata, value))
        return self._record(record.kind, found)

    def delete(self, record: Record) -> None:
        """Remove a record."""
        uid, _, version = record.version.partition("/")
        options = {"preconditions": {"uid": uid, "resourceVersion": version}}
        self._ask(
            "DELETE", record.kind, record.name, {"kind": "DeleteOptions", "apiVersion": "v1", **options}
        )

    def close(self) -> None:
        """End what is under way, and refuse new requests."""
        self._server.close()
        with self._lock:
            self._server.clear()

    def _object(self, kind: str, metadata: dict[str, str], value: Mapping[str, Any]) -> dict[str, Any]:
        return {"apiVersion": GROUP, "kind": KINDS[kind][1], "metadata": metadata, "spec": dict(value)}

    def _record(self, kind: str, value: dict[str, Any]) -> Record:
        try:
            metadata = value["metadata"]
            version = f"{metadata['uid']}/{metadata['resourceVersion']}"
            return Record(kind, metadata["name"], dict(value["spec"]), version)
        except (KeyError, TypeError, ValueError) as error:
            raise StoreError(f"{self!r}: an object of {kind} that none of us has made: {error}") from error

    def _ask(
        self, method: str, kind: str, name: str = "", value: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        from k8sdatapath.kube.connection import RefusedError, UnreachableError

        one = name if method != "POST" else ""
        path = f"/apis/{GROUP}/{KINDS[kind][0]}" + (f"/{one}" if one else "")
        try:
            with self._lock:
                if value is None:
                    with self._server.get(path, {}) as answer:
                        return parse(answer.body())
                return parse(self._server.send(method, path, value))
        except RefusedError as error:
            if error.notice.code == 409 or (error.notice.code == 404 and one):
                raise StoreConflictError(f"{kind} {name}") from error
            raise StoreError(f"{self!r}: {error}") from error
        except (UnreachableError, GarbledError) as error:
            raise StoreError(f"{self!r}: {error}") from error
