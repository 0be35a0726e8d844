"""Maps in memory: the same classes without a kernel, for tests and for dry runs.

They pass the tests that the kernel's maps pass. What they leave out is the kernel's own freedom: an LRU
drops the element longest unused, where the kernel picks one of the long unused.
"""

from __future__ import annotations

import errno
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, TypeVar

from k8sdatapath.errors import ClosedError, NotSupportedError
from k8sdatapath.pybpf.calls import kernel_error
from k8sdatapath.pybpf.maps import ANY, EXIST, NOEXIST, MapInfo, MapType, padded

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from k8sdatapath.maps.base import Map

__all__ = ["MemoryMap", "in_memory"]

M = TypeVar("M", bound="Map")


def in_memory(kind: type[M], name: str, max_entries: int, *, flags: int = 0) -> M:
    """A map that behaves as ``kind.create(name, max_entries)`` does, kept in this process.

    :raises NotSupportedError: ``kind`` means nothing without a kernel: sockets, programs, ring buffers.
    """
    about = kind._blank(name, max_entries, flags)
    store = _STORES.get(about.type)
    if store is None:
        raise NotSupportedError(f"a {kind.__name__} in memory", op="create map in memory", subject=name)
    return kind(store(about))


class MemoryMap:
    """The elements of a hash table as bytes; answers as :class:`~k8sdatapath.pybpf.maps.KernelMap` does."""

    def __init__(self, about: MapInfo) -> None:
        self.info = about
        self.closed = False
        self._elements: dict[bytes, bytes] = {}

    def lookup(self, key: bytes) -> bytes | None:
        """The value of a key."""
        return self._open().get(key)

    def take(self, key: bytes) -> bytes | None:
        """Remove a key and return its value."""
        value = self.lookup(key)
        return value if value is not None and self.delete(key) else None

    def update(self, key: bytes, value: bytes, flags: int = ANY) -> int:
        """Write an element; 0 or a negative errno."""
        elements = self._open()
        if key in elements:
            if flags == NOEXIST:
                return -errno.EEXIST
        elif flags == EXIST:
            return -errno.ENOENT
        elif len(elements) >= self.info.max_entries and not self._make_room():
            return -errno.E2BIG
        elements[key] = value
        return 0

    def delete(self, key: bytes) -> bool:
        """Remove a key; whether it was there."""
        return self._open().pop(key, None) is not None

    def next_key(self, key: bytes | None) -> bytes | None:
        """The key after ``key``, or the first."""
        keys = [each for each, _ in self._pairs()]
        at = keys.index(key) + 1 if key in keys else 0
        return keys[at] if at < len(keys) else None

    def update_many(self, keys: Buffer, values: Buffer, count: int, flags: int = ANY) -> tuple[int, int]:
        """Write elements; 0 or a negative errno, and how many were written."""
        rows = self._split(values, self.info.stride, count)
        for done, key in enumerate(self._split(keys, self.info.key_size, count)):
            if error := self.update(key, rows[done], flags):
                return error, done
        return 0, count

    def delete_many(self, keys: Buffer, count: int) -> int:
        """Remove keys; how many of them were there."""
        return sum(self.delete(key) for key in self._split(keys, self.info.key_size, count))

    def lookup_many(self, keys: Buffer, count: int) -> tuple[bytearray, bytearray]:
        """The values of keys, and for each whether it was there."""
        values, found = bytearray(), bytearray()
        for key in self._split(keys, self.info.key_size, count):
            value = self.lookup(key)
            values += bytes(self.info.stride) if value is None else value
            found.append(value is not None)
        return values, found

    def dump(self, *, values: bool = True) -> Iterator[tuple[memoryview, memoryview, int]]:
        """All elements as ``(keys, values, count)``, in one chunk."""
        pairs = list(self._pairs())
        if pairs:
            keys = b"".join(key for key, _ in pairs)
            yield memoryview(keys), memoryview(b"".join(value for _, value in pairs if values)), len(pairs)

    def memory(self) -> memoryview:
        """The values of an array, writable; a hash has none."""
        raise kernel_error(errno.EINVAL, "map into memory", self.info.name)

    def close(self) -> None:
        """Forget everything; what is used afterwards raises."""
        self.closed = True

    def _make_room(self) -> bool:
        return False

    def _pairs(self) -> Iterator[tuple[bytes, bytes]]:
        return iter(self._open().items())

    def _open(self) -> dict[bytes, bytes]:
        if self.closed:
            raise ClosedError(f"map {self.info.name} is closed")
        return self._elements

    @staticmethod
    def _split(data: Buffer, size: int, count: int) -> list[bytes]:
        raw = bytes(data)
        return [raw[at : at + size] for at in range(0, size * count, size)]


class _LRU(MemoryMap):
    """A hash table that is never full."""

    def lookup(self, key: bytes) -> bytes | None:
        """The value of a key, which is used thereby."""
        elements = self._open()
        if key in elements:
            elements[key] = elements.pop(key)
        return elements.get(key)

    def _make_room(self) -> bool:
        del self._elements[next(iter(self._elements))]
        return True


class _Array(MemoryMap):
    """All indices are there, always."""

    def __init__(self, about: MapInfo) -> None:
        super().__init__(about)
        self._stride = padded(about.value_size) if about.stride == about.value_size else about.stride
        self._values = bytearray(self._stride * about.max_entries)

    def lookup(self, key: bytes) -> bytes | None:
        """The value at an index."""
        self._open()
        at = int.from_bytes(key, sys.byteorder) * self._stride
        return bytes(self._values[at : at + self.info.stride]) or None

    def update(self, key: bytes, value: bytes, flags: int = ANY) -> int:
        """Set the value at an index; 0 or a negative errno."""
        self._open()
        index = int.from_bytes(key, sys.byteorder)
        if index >= self.info.max_entries:
            return -errno.E2BIG
        if flags == NOEXIST:
            return -errno.EEXIST
        self._values[index * self._stride : index * self._stride + len(value)] = value
        return 0

    def delete(self, key: bytes) -> bool:
        """Not for arrays."""
        raise kernel_error(errno.EINVAL, "delete from map", self.info.name)

    def memory(self) -> memoryview:
        """The values, writable."""
        self._open()
        return memoryview(self._values)

    def _pairs(self) -> Iterator[tuple[bytes, bytes]]:
        self._open()
        for index in range(self.info.max_entries):
            at = index * self._stride
            yield index.to_bytes(4, sys.byteorder), bytes(self._values[at : at + self.info.stride])


class _Trie(MemoryMap):
    """Prefixes; the host part of a key does not count."""

    def lookup(self, key: bytes) -> bytes | None:
        """The value of the longest prefix that ``key`` begins with."""
        elements = self._open()
        length = int.from_bytes(key[:4], sys.byteorder)
        for shorter in range(length, -1, -1):
            value = elements.get(_masked(shorter, key))
            if value is not None:
                return value
        return None

    def update(self, key: bytes, value: bytes, flags: int = ANY) -> int:
        """Write a prefix; 0 or a negative errno."""
        length = int.from_bytes(key[:4], sys.byteorder)
        if length > 8 * (self.info.key_size - 4):
            return -errno.EINVAL
        error = super().update(_masked(length, key), value, flags)
        return -errno.ENOSPC if error == -errno.E2BIG else error

    def delete(self, key: bytes) -> bool:
        """Remove this very prefix; whether it was there."""
        return super().delete(_masked(int.from_bytes(key[:4], sys.byteorder), key))


def _masked(length: int, key: bytes) -> bytes:
    """The first ``length`` bits of a trie's key, as a key."""
    bits = 8 * (len(key) - 4)
    data = int.from_bytes(key[4:], "big") >> (bits - length) << (bits - length) if length <= bits else 0
    return length.to_bytes(4, sys.byteorder) + data.to_bytes(len(key) - 4, "big")


_STORES: dict[int, type[MemoryMap]] = {
    MapType.HASH: MemoryMap,
    MapType.PERCPU_HASH: MemoryMap,
    MapType.LRU_HASH: _LRU,
    MapType.ARRAY: _Array,
    MapType.PERCPU_ARRAY: _Array,
    MapType.LPM_TRIE: _Trie,
}
