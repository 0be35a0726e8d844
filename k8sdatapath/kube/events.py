"""What a source of Kubernetes objects tells: the contract between watching and translating."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from types import TracebackType
from typing import Protocol, Self

from attrs import frozen

from k8sdatapath.component import ObjectKey
from k8sdatapath.errors import ManifestError
from k8sdatapath.kube.objects import EndpointSlice, KubeNode, KubeObject, KubePod, KubeRaw, KubeService

__all__ = ["Batch", "ObjectEvent", "ObjectSource", "in_asyncio", "key_of"]


@frozen
class ObjectEvent:
    """How an object is now. What it was before does not matter, so that of two events the later is enough.

    :ivar object: None: it has gone, or there is nothing in it for a datapath.
    :ivar received: when its bytes arrived, by ``time.monotonic()``.
    :ivar error: it is there, but says what cannot be; ``object`` is None. What was last known of it holds.
    """

    kind: str
    namespace: str
    name: str
    object: KubeObject | None
    received: float
    error: ManifestError | None = None

    @property
    def key(self) -> ObjectKey:
        """By which events are about one object; the namespace of a Node is empty."""
        return self.kind, self.namespace, self.name


@frozen
class Batch:
    """Events that have come since the last batch, at most one of each object.

    :ivar synced: every kind that was asked for has been listed completely at least once. Until then objects
        that are not told of may exist all the same. It stays True, through disconnections as well.
    """

    events: tuple[ObjectEvent, ...]
    synced: bool


def key_of(object: KubeObject) -> ObjectKey:
    """By which events are about an object."""
    kind = object.kind if isinstance(object, KubeRaw) else _KINDS[type(object)]
    return kind, object.namespace, object.name


_KINDS: dict[type, str] = {
    KubeService: "Service",
    EndpointSlice: "EndpointSlice",
    KubePod: "Pod",
    KubeNode: "Node",
}


class ObjectSource(Protocol):
    """Where Kubernetes objects come from: an API server, a recording, files.

    Sources are resources: ``with`` is normal, :meth:`close` may be called from any thread, more than once,
    and leaves no thread behind.
    """

    def batches(self, timeout: float | None = None) -> Iterator[Batch]:
        """What there is, then what changes, until the source is closed. Waits for events.

        Who takes batches slowly gets larger ones: of an object only the latest event is kept. That an object
        has vanished while nobody was listening is told as if it had just gone, and never before the batch
        that is synced.

        :param timeout: seconds after which an empty batch comes, if nothing has happened.
        :raises SourceError: the source has ended, and will not recover by itself.
        """
        ...

    def close(self) -> None:
        """Let go. The iterator ends."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None: ...


async def in_asyncio(source: ObjectSource) -> AsyncIterator[Batch]:
    """The batches of a source, for ``async for``. Closing the source ends it; ending it does not close.

    It waits in a thread of the loop's executor, which after a cancellation is busy for another moment.
    """
    import asyncio

    batches = source.batches(timeout=_MOMENT)
    synced = False
    while (batch := await asyncio.to_thread(next, batches, None)) is not None:
        if batch.events or batch.synced != synced:
            synced = batch.synced
            yield batch


_MOMENT = 0.5
