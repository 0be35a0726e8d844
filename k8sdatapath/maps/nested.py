"""Maps whose values are maps."""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any, Self, TypeVar

from k8sdatapath.layout import Layout, u32
from k8sdatapath.layout.codecs import Codec
from k8sdatapath.maps.base import Map
from k8sdatapath.maps.binding import bind
from k8sdatapath.maps.table import Table
from k8sdatapath.pybpf.maps import MapInfo, MapType, open_by_id

__all__ = ["ArrayOfMaps", "HashOfMaps"]

K = TypeVar("K")
M = TypeVar("M", bound=Map)


class HashOfMaps(Table[K, M]):
    """``BPF_MAP_TYPE_HASH_OF_MAPS``: a mapping to maps that are all alike (Linux 4.12).

    ::

        with Array[u32].create("inner", 16) as inner:
            outer = HashOfMaps[u32, Array[u32]].create("outer", 64, inner=inner)
            outer[7] = inner

    Putting a map in keeps it alive. A map that is taken out is opened anew, for the caller to close.
    Replacing one waits for the programs that may use it, some 10 ms; in :meth:`update_many` all wait at once.
    """

    TYPE = MapType.HASH_OF_MAPS

    @classmethod
    def create(cls, name: str, max_entries: int, *, flags: int = 0, inner: M | None = None) -> Self:
        """Create a map of maps in the kernel; the caller owns it.

        :param inner: one like those it will hold; needed.
        """
        if inner is None:
            raise TypeError(f"{cls.__name__}.create() needs inner=, a map like those it will hold")
        return cls._create(cls._blank(name, max_entries, flags), inner.fd)

    @classmethod
    def _item_layout(cls, about: MapInfo) -> Layout[M]:
        kind: type[Any] = Map if cls.value_type is bytes else cls.value_type
        return Layout(Codec(kind.__name__, 4, 4, "4s", _number, partial(_open, kind)))

    # Every map that comes out is an open descriptor: one at a time, so that none is opened for nobody.

    def lookup_many(self, keys: Iterable[K]) -> dict[K, M]:
        """The maps of those keys that are there, each for the caller to close."""
        return {key: self[key] for key in keys if key in self}

    def _pairs(self) -> Iterator[tuple[K, M]]:
        for keys, ids, _ in self._store.dump():
            for place, key in enumerate(self._key.unpack_many(keys)):
                yield key, self._value.unpack(ids[4 * place : 4 * place + 4])

    def _rows(self) -> Iterator[tuple[object, object]]:
        for key, inner in self._pairs():
            with inner:
                yield key, repr(inner)

    def _take(self, key: bytes) -> M | None:
        id = self._store.lookup(key)
        if id is None:
            return None
        inner = self._value.unpack(id)  # while it is still held here
        if self._store.delete(key):
            return inner
        inner.close()
        return None

    __eq__ = object.__eq__
    __hash__ = object.__hash__


class ArrayOfMaps(HashOfMaps[int, M]):
    """``BPF_MAP_TYPE_ARRAY_OF_MAPS``: numbered places, empty at first, for maps all alike (Linux 4.12)."""

    TYPE = MapType.ARRAY_OF_MAPS
    PARAMETERS = ("value_type",)
    key_type = u32


def _number(inner: Map) -> bytes:
    """What the kernel is given for a map: a descriptor."""
    return struct.pack("=I", inner.fd.number)


def _open(kind: type[M], id: bytes) -> M:
    """What the kernel gives for a map: its id."""
    return bind(kind, open_by_id(int.from_bytes(id, sys.byteorder)), owned=True)
