"""What an API server sends, as bytes, into objects: pages of lists, and lines of watches.

Most objects are ordinary. With msgspec (of the extra ``fast``) those are read by ``kube.fast``, which knows
only what is ordinary and gives up on all else. What it gives up on, and everything without it, is read here
as manifests are, so that both ways come to the same results and errors.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any, Protocol

from attrs import frozen

from k8sdatapath.errors import ManifestError
from k8sdatapath.kube.decode import decode
from k8sdatapath.kube.objects import KubeObject, KubeRaw
from k8sdatapath.kube.resources import Resource

__all__ = ["GarbledError", "Item", "Notice", "Page", "PlainReader", "Reader", "reader"]


class GarbledError(ValueError):
    """Bytes that are no answer of an API server."""


@frozen
class Item:
    """One object, whatever could be read of it.

    :ivar version: its ``resourceVersion``.
    :ivar object: None: there is nothing in it for a datapath, or it has an ``error``.
    """

    namespace: str
    name: str
    uid: str
    version: str
    object: KubeObject | None
    error: ManifestError | None = None


@frozen
class Notice:
    """What an API server says of itself: a bookmark's version, or why it refuses."""

    version: str = ""
    code: int = 0
    reason: str = ""
    message: str = ""
    retry_after: float = 0.0

    @property
    def expired(self) -> bool:
        """Whether the version that was asked for is not, or not yet, in the server's history."""
        return self.code == 410 or self.reason in ("Expired", "Gone") or "resource version" in self.message


@frozen
class Page:
    """A part of a list, the whole if ``following`` is empty.

    :ivar garbled: how many of its items have not even a name.
    """

    items: list[Item]
    version: str
    following: str
    garbled: int


class Reader(Protocol):
    """Reads what an API server sends of one resource."""

    def page(self, body: bytes) -> Page:
        """One answer to a list request.

        :raises GarbledError: it is not a list.
        """
        ...

    def event(self, line: bytes) -> tuple[str, Item | Notice]:
        """One line of a watch: ADDED, MODIFIED or DELETED and the object, BOOKMARK or ERROR and a notice.

        :raises GarbledError: it is none of these.
        """
        ...


def reader(resource: Resource, where: str) -> Reader:
    """The quickest there is.

    :param where: the server, for errors in objects.
    """
    plain = PlainReader(resource, where)
    try:
        from k8sdatapath.kube.fast import FastReader
    except ImportError:
        return plain
    return FastReader.of(plain) or plain


class PlainReader:
    """Reads by the means of the standard library."""

    def __init__(self, resource: Resource, where: str) -> None:
        self.resource = resource
        self.where = where

    def page(self, body: bytes) -> Page:
        """One answer to a list request."""
        document = parse(body)
        metadata, values = _mapping(document, "metadata"), document.get("items")
        if not isinstance(values, list | None):
            raise GarbledError("a list whose items are no list")
        items = list(self.items(values or ()))
        version, following = _text(metadata, "resourceVersion"), _text(metadata, "continue")
        return Page(items, version, following, len(values or ()) - len(items))

    def items(self, values: Any) -> Iterator[Item]:
        """The items that can be told from others."""
        for value in values:
            try:
                yield self.item(value)
            except GarbledError:
                continue

    def event(self, line: bytes) -> tuple[str, Item | Notice]:
        """One line of a watch."""
        document = parse(line)
        kind, value = document.get("type"), _mapping(document, "object")
        match kind:
            case "ADDED" | "MODIFIED" | "DELETED":
                return kind, self.item(value)
            case "BOOKMARK":
                return kind, Notice(_text(_mapping(value, "metadata"), "resourceVersion"))
            case "ERROR":
                return kind, notice(value)
        raise GarbledError("an event of no known type")

    def item(self, value: Any) -> Item:
        """An object as it comes out of JSON.

        :raises GarbledError: it has no name.
        """
        resource, metadata = self.resource, _mapping(value, "metadata")
        name, namespace = _text(metadata, "name"), _text(metadata, "namespace")
        uid, version = _text(metadata, "uid"), _text(metadata, "resourceVersion")
        if not name:
            raise GarbledError("an object without a name")
        if resource.raw:
            raw = KubeRaw(resource.kind, namespace, name, value, self.where)
            return Item(namespace, name, uid, version, raw)
        whole = dict(value)
        for key, known in ("apiVersion", resource.api), ("kind", resource.kind):
            if whole.get(key) is None:  # items of a list leave it out
                whole[key] = known
        try:
            found = next(decode(whole, self.where, Counter()), None)
        except ManifestError as error:
            return Item(namespace, name, uid, version, None, error)
        return Item(namespace, name, uid, version, found)


def parse(data: bytes) -> dict[str, Any]:
    """A JSON mapping.

    :raises GarbledError: it is not.
    """
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise GarbledError(f"not JSON: {error}") from None
    if type(document) is not dict:
        raise GarbledError("JSON, but not a mapping")
    return document


def notice(status: dict[str, Any], retry_after: float = 0.0) -> Notice:
    """What a ``Status`` says; nothing of it can be wrong enough to matter."""
    code, reason, message = status.get("code"), status.get("reason"), status.get("message")
    return Notice(
        code=code if type(code) is int else 0,
        reason=reason if type(reason) is str else "",
        message=message[:500] if type(message) is str else "",
        retry_after=retry_after,
    )


def _mapping(value: Any, key: str) -> dict[str, Any]:
    found = value.get(key) if type(value) is dict else None
    if type(found) is not dict:
        raise GarbledError(f"no {key}")
    return found


def _text(metadata: dict[str, Any], key: str) -> str:
    found = metadata.get(key)
    if not isinstance(found, str | None):
        raise GarbledError(f"metadata.{key} is not text")
    return found or ""
