"""Arrays."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from typing import Any, SupportsIndex, TypeVar, overload

from k8sdatapath.errors import ContractError
from k8sdatapath.layout import u32
from k8sdatapath.maps.elements import Elements
from k8sdatapath.pybpf.maps import MMAPABLE, MapType

__all__ = ["Array"]

V = TypeVar("V")


class Array(Elements[int, V], Sequence[V]):
    """``BPF_MAP_TYPE_ARRAY``: a sequence of fixed length, zeros at first, of items to set (Linux 3.19).

    With the flag ``MMAPABLE`` (Linux 5.5) its memory can be written directly: see :meth:`view`.
    """

    TYPE = MapType.ARRAY
    PARAMETERS = ("value_type",)
    key_type = u32

    @overload
    def __getitem__(self, index: SupportsIndex) -> V: ...
    @overload
    def __getitem__(self, index: slice) -> list[V]: ...
    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            wanted = range(len(self))[index]
            packed, _ = self._store.lookup_many(self._key.pack_many(wanted), len(wanted))
            return self._value.unpack_many(packed)
        value = self._store.lookup(self._key.pack(self._index(index)))
        if value is None:
            raise self._missing(index)
        return self._value.unpack(value)

    def __setitem__(self, index: SupportsIndex, value: V) -> None:
        self._set(self._index(index), value)

    def __len__(self) -> int:
        return self._capacity()

    def __iter__(self) -> Iterator[V]:
        return (value for _, value in self._pairs())

    def view(self) -> memoryview:
        """The array's own memory: what is stored there, programs see at once, without a system call.

        Values stand in rows of a multiple of 8 bytes. :meth:`close` gives the memory back when no view of it
        is left.

        :raises ContractError: the map was made without ``MMAPABLE``.
        """
        if not self.info.flags & MMAPABLE:
            raise ContractError(f"map {self.name!r} was made without MMAPABLE, its memory cannot be seen")
        return self._store.memory()

    def _index(self, index: SupportsIndex) -> int:
        place = operator.index(index)
        if not -len(self) <= place < len(self):
            raise IndexError(f"index {place} is outside map {self.name!r} of {len(self)} entries")
        return place % len(self)

    def _summary(self) -> str:
        return f"{self._value.name}[{len(self)}]"
