"""Events from programs, in order, over all CPUs."""

from __future__ import annotations

import select
from collections.abc import Iterator
from typing import Generic, TypeVar

from k8sdatapath.errors import LayoutError
from k8sdatapath.layout import Layout
from k8sdatapath.maps.base import Map
from k8sdatapath.pybpf.fd import Fd
from k8sdatapath.pybpf.maps import KernelMap, MapInfo, MapType
from k8sdatapath.pybpf.ring import Queues, Ring

__all__ = ["RingBuffer"]

T = TypeVar("T")


class RingBuffer(Map, Generic[T]):
    """``BPF_MAP_TYPE_RINGBUF``: a queue that programs write to, and that drops when full (Linux 5.8).

    ::

        events = obj.map("events", RingBuffer[Event])
        for event in events.events(timeout=1.0):
            print(event)

    It can be waited for with select and asyncio: :meth:`fileno` is readable when there is something. As the
    descriptor is the map's, a program's records go to the first who takes them: one consumer, please.
    """

    TYPE = MapType.RINGBUF
    PARAMETERS = ("value_type",)
    _value: Layout[T]

    def __init__(self, store: KernelMap, *, owned: Fd | None = None) -> None:
        super().__init__(store, owned=owned)
        self._ring = Ring(store.fd, store.info.max_entries)

    @classmethod
    def _blank(cls, name: str, max_entries: int, flags: int) -> MapInfo:
        return cls._unsized(name, max_entries, flags)

    def drain(self) -> list[T]:
        """All events that are there now.

        :raises LayoutError: a record has another size than the type; those of this call are lost.
        """
        data, sizes = self._ring.drain()
        if self.value_type is bytes:
            return list(_pieces(data, sizes))  # type: ignore[arg-type]
        self._check_sizes(sizes)
        return self._value.unpack_many(data)

    def drain_packed(self) -> bytes:
        """All events that are there now as one piece, ready for ``numpy.frombuffer``."""
        data, sizes = self._ring.drain()
        if self.value_type is not bytes:
            self._check_sizes(sizes)
        return data

    def drain_into(self, room: bytearray, written: int, beside: Queues) -> int:
        """Move all events that are there now into a ring of packed ones, over the oldest.

        :param room: for some number of events. Number n, counted from the first ever, is at n modulo it.
        :param written: how many have been moved there before.
        :param beside: queues of such events, one for each CPU, that are merged with those here by their time.
        :returns: the same afterwards.
        """
        return self._ring.drain_merged(beside, room, written)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until there is something; False if the time, in seconds, passed first."""
        poll = select.poll()
        poll.register(self.fileno(), select.POLLIN)
        return bool(poll.poll(None if timeout is None else max(0.0, timeout) * 1000))

    def events(self, timeout: float | None = None) -> Iterator[T]:
        """Events as they come.

        :param timeout: end when there was none for so many seconds; default never.
        """
        while self.wait(timeout):
            yield from self.drain()

    def __iter__(self) -> Iterator[T]:
        return self.events()

    def close(self) -> None:
        """Give up the memory, and the map if it is one's own."""
        self._ring.close()
        super().close()

    def _check_sizes(self, sizes: list[int]) -> None:
        odd = next((size for size in sizes if size != self._value.size), None)
        if odd is not None:
            raise LayoutError(
                f"map {self.name!r}: a record of {odd} bytes, {self._value.name} has {self._value.size}"
            )

    def _summary(self) -> str:
        return f"{self._value.name} {self.info.max_entries} bytes"


def _pieces(data: bytes, sizes: list[int]) -> Iterator[bytes]:
    at = 0
    for size in sizes:
        yield data[at : at + size]
        at += size
