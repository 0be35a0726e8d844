"""Maps whose elements can be read and written, one by one or in bulk."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import TYPE_CHECKING, Generic, NoReturn, TypeVar

from k8sdatapath.errors import KeyExistsError, KeyNotFoundError, LayoutError, MapFullError
from k8sdatapath.layout import Layout
from k8sdatapath.maps.base import Map
from k8sdatapath.markup import table
from k8sdatapath.pybpf.calls import kernel_error

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["Elements"]

K = TypeVar("K")
V = TypeVar("V")

_SHOWN = 20  # rows in a notebook


class Elements(Map, Generic[K, V]):
    """A map of keys and values. ``..._many`` is one crossing into C, and one system call where it can be."""

    _key: Layout[K]
    _value: Layout[V]

    def update_many(self, elements: Mapping[K, V] | Iterable[tuple[K, V]]) -> None:
        """Write many elements at once, in order; keys that exist get the new value.

        :raises MapFullError: one did not fit. Those before it are in: ``error.written`` of them.
        """
        pairs = list(elements.items() if isinstance(elements, Mapping) else elements)
        keys = self._key.pack_many([key for key, _ in pairs])
        values = self._value.pack_many([value for _, value in pairs])
        self._write(keys, values, len(pairs))

    def update_packed(self, keys: Buffer, values: Buffer, count: int | None = None) -> None:
        """Write elements that are packed already, without copying them: bytes, arrays, numpy arrays.

        :param count: how many; default as many keys as there are.
        :raises LayoutError: the buffers do not hold that many.
        """
        about = self.info
        if count is None:
            count = memoryview(keys).nbytes // about.key_size
        for what, data, size in (("keys", keys, about.key_size), ("values", values, about.stride)):
            view = memoryview(data)
            if not view.c_contiguous or view.nbytes != count * size:
                shape = f"{view.nbytes} bytes" if view.c_contiguous else "pieces"
                raise LayoutError(
                    f"map {self.name!r}: {count} {what} of {size} bytes are {count * size} bytes "
                    f"in one piece, not {shape}"
                )
        self._write(keys, values, count)

    def items_packed(self) -> tuple[bytearray, bytearray, int]:
        """All elements as ``(keys, values, count)``, ready for ``numpy.frombuffer``."""
        keys, values, total = bytearray(), bytearray(), 0
        for some_keys, some_values, count in self._store.dump():
            keys += some_keys
            values += some_values
            total += count
        return keys, values, total

    def lookup_many(self, keys: Iterable[K]) -> dict[K, V]:
        """The values of those keys that are there."""
        wanted = list(keys)
        packed, found = self._store.lookup_many(self._key.pack_many(wanted), len(wanted))
        values = self._value.unpack_many(packed)
        return {key: value for key, value, there in zip(wanted, values, found, strict=True) if there}

    def lookup_packed(self, keys: Buffer) -> tuple[bytearray, bytearray]:
        """The values of packed keys in their order, and for each a byte: whether it was there.

        :raises LayoutError: these are not whole keys.
        """
        return self._store.lookup_many(keys, self._count(keys))

    def _count(self, keys: Buffer) -> int:
        """How many packed keys these are."""
        view, size = memoryview(keys), self.info.key_size
        if not view.c_contiguous or view.nbytes % size:
            shape = f"{view.nbytes} bytes" if view.c_contiguous else "pieces"
            raise LayoutError(f"map {self.name!r}: {shape} are not keys of {size} bytes in a row")
        return view.nbytes // size

    def _write(self, keys: Buffer, values: Buffer, count: int) -> None:
        error, written = self._store.update_many(keys, values, count)
        if error:
            at = written * self._key.size
            key = self._key.unpack(memoryview(keys).tobytes()[at : at + self._key.size])
            self._refuse(error, key, written)

    def _pairs(self) -> Iterator[tuple[K, V]]:
        for keys, values, _ in self._store.dump():
            yield from zip(self._key.unpack_many(keys), self._value.unpack_many(values), strict=True)

    def _set(self, key: K, value: V, flags: int = 0) -> None:
        error = self._store.update(self._key.pack(key), self._value.pack(value), flags)
        if error:
            self._refuse(error, key)

    def _missing(self, key: object) -> KeyNotFoundError:
        return KeyNotFoundError(key, self.name)

    def _refuse(self, error: int, key: object, written: int = 0) -> NoReturn:
        match -error:
            case errno.E2BIG | errno.ENOSPC:
                raise MapFullError("write element", self.name, self.info.max_entries, written)
            case errno.EEXIST:
                raise KeyExistsError(key, self.name)
            case errno.ENOENT:
                raise self._missing(key)
            case number:
                hint = "the map is read-only or frozen" if number == errno.EPERM else ""
                raise kernel_error(number, "write element", f"{self.name}[{key!r}]", hint=hint)

    def _rows(self) -> Iterator[tuple[object, object]]:
        return self._pairs()

    def _repr_html_(self) -> str:
        """A table of the first elements, for notebooks."""
        rows = [] if self.closed else islice(self._rows(), _SHOWN)
        return table(repr(self), (self._key.name, self._value.name), (map(repr, row) for row in rows))
