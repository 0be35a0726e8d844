"""An etcd (3.4 or later) as a store, through its HTTP/JSON gateway, by the standard library alone."""

from __future__ import annotations

import base64
import http.client
import json
import ssl
import threading
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any
from urllib.parse import SplitResult, urlsplit

from k8sdatapath.component import Record
from k8sdatapath.errors import StoreConflictError, StoreError
from k8sdatapath.resource import Resource

__all__ = ["EtcdStore"]


class EtcdStore(Resource):
    """Records as keys, ``PREFIX/KIND/NAME``, each changed by a transaction that compares its revision.

    :param endpoints: URLs of its members; while one does not answer, the next is asked.
    :param prefix: of all keys.
    :param tls: for ``https``: whom to trust, and the certificate to show.
    :param user: with its ``password``, if the etcd asks for it.
    :param timeout: seconds to wait for an answer.
    :raises StoreError: an endpoint is no URL of http or https.
    """

    def __init__(
        self,
        endpoints: Iterable[str],
        *,
        prefix: str = "/k8sdatapath",
        tls: ssl.SSLContext | None = None,
        user: str = "",
        password: str = "",
        timeout: float = 5.0,
    ) -> None:
        self._endpoints = [urlsplit(each) for each in endpoints]
        for each in self._endpoints:
            if each.scheme not in ("http", "https") or not each.hostname:
                raise StoreError(f"{each.geturl()!r} is not a URL of an etcd")
        if not self._endpoints:
            raise StoreError("an etcd needs an endpoint")
        self._prefix, self._tls, self._timeout = prefix.rstrip("/"), tls, timeout
        self._user, self._password, self._token = user, password, ""
        self._lock = threading.Lock()
        self._connection: http.client.HTTPConnection | None = None

    def __repr__(self) -> str:
        return f"<EtcdStore {self._endpoints[0].geturl()} {self._prefix}>"

    def get(self, kind: str, name: str) -> Record | None:
        """What is there now."""
        found = self._ask("kv/range", {"key": _coded(self._key(kind, name))})
        return next(iter(self._records(kind, found)), None)

    def list(self, kind: str) -> tuple[Record, ...]:
        """All of a kind, as they were at one moment."""
        first = self._key(kind, "")
        last = first[:-1] + chr(ord(first[-1]) + 1)
        return self._records(kind, self._ask("kv/range", {"key": _coded(first), "range_end": _coded(last)}))

    def create(self, kind: str, name: str, value: Mapping[str, Any]) -> Record:
        """Make one."""
        return self._put(Record(kind, name, value, "0"))

    def update(self, record: Record, value: Mapping[str, Any]) -> Record:
        """Give a record another value."""
        return self._put(Record(record.kind, record.name, value, record.version))

    def delete(self, record: Record) -> None:
        """Remove a record."""
        key = _coded(self._key(record.kind, record.name))
        self._change(record, {"request_delete_range": {"key": key}})

    def close(self) -> None:
        """End the connection; the next request makes another."""
        with self._lock:
            self._hang_up()

    def _key(self, kind: str, name: str) -> str:
        return f"{self._prefix}/{kind}/{name}"

    def _records(self, kind: str, answer: dict[str, Any]) -> tuple[Record, ...]:
        start = len(self._key(kind, ""))
        try:
            return tuple(
                Record(
                    kind,
                    base64.b64decode(each["key"]).decode()[start:],
                    dict(json.loads(base64.b64decode(each["value"]))),
                    each["mod_revision"],
                )
                for each in answer.get("kvs", ())
            )
        except (ValueError, TypeError, KeyError) as error:
            raise StoreError(f"{self!r}: a key of {kind} that nobody of us has written: {error}") from error

    def _put(self, record: Record) -> Record:
        key = _coded(self._key(record.kind, record.name))
        put = {"key": key, "value": _coded(json.dumps(dict(record.value), sort_keys=True))}
        revision = self._change(record, {"request_put": put})
        return Record(record.kind, record.name, record.value, revision)

    def _change(self, record: Record, change: dict[str, Any]) -> str:
        """Do so if the key still has the version of the record, 0 for none; its new one."""
        key = _coded(self._key(record.kind, record.name))
        same = {"key": key, "target": "MOD", "result": "EQUAL", "mod_revision": record.version}
        answer = self._ask("kv/txn", {"compare": [same], "success": [change]})
        if not answer.get("succeeded"):
            raise StoreConflictError(f"{record.kind} {record.name}")
        return str(answer["header"]["revision"])

    def _ask(self, what: str, body: dict[str, Any]) -> dict[str, Any]:
        with self._lock:
            if self._user and not self._token:
                who = {"name": self._user, "password": self._password}
                self._token = str(self._post("auth/authenticate", who)["token"])
            return self._post(what, body)

    def _post(self, what: str, body: dict[str, Any]) -> dict[str, Any]:
        headers = {"Content-Type": "application/json"} | (
            {"Authorization": self._token} if self._token else {}
        )
        try:
            connection = self._connection = self._connection or self._connect()
            connection.request("POST", f"/v3/{what}", json.dumps(body), headers)
            response = connection.getresponse()
            answer = json.loads(response.read())
        except (OSError, http.client.HTTPException, ValueError) as error:
            self._endpoints.append(self._endpoints.pop(0))  # the next one may
            self._hang_up()
            raise StoreError(f"{self!r}: {type(error).__name__}: {error}") from error
        if response.status != 200 or type(answer) is not dict:
            self._token = ""  # if it is too old, the next request gets another
            raise StoreError(f"{self!r}: {response.status} {str(answer)[:300]}")
        return answer

    def _connect(self) -> http.client.HTTPConnection:
        url: SplitResult = self._endpoints[0]
        assert url.hostname
        if url.scheme == "https":
            return http.client.HTTPSConnection(
                url.hostname, url.port or 2379, timeout=self._timeout, context=self._tls
            )
        return http.client.HTTPConnection(url.hostname, url.port or 2379, timeout=self._timeout)

    def _hang_up(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(OSError):
                connection.close()


def _coded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()
