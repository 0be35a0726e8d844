"""Maps that are mappings."""

from __future__ import annotations

from collections.abc import ItemsView, Iterable, Iterator, MutableMapping, ValuesView
from typing import TYPE_CHECKING, Any, TypeVar, overload

from k8sdatapath.maps.elements import Elements
from k8sdatapath.pybpf.maps import EXIST, NOEXIST

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["Table"]

K = TypeVar("K")
V = TypeVar("V")
D = TypeVar("D")

_NONE: Any = object()


class Table(Elements[K, V], MutableMapping[K, V]):
    """A map with keys of one's own choosing, as a :class:`~collections.abc.MutableMapping`.

    Iteration reads in large batches. What others add and remove meanwhile may be met or missed.
    """

    def __getitem__(self, key: K) -> V:
        value = self._store.lookup(self._key.pack(key))
        if value is None:
            raise self._missing(key)
        return self._value.unpack(value)

    def __setitem__(self, key: K, value: V) -> None:
        error = self._store.update(self._key.pack(key), self._value.pack(value))
        if error:
            self._refuse(error, key)

    def __delitem__(self, key: K) -> None:
        if not self._store.delete(self._key.pack(key)):
            raise self._missing(key)

    def __contains__(self, key: object) -> bool:
        return self._store.lookup(self._key.pack(key)) is not None  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[K]:
        for keys, _, _ in self._store.dump():
            yield from self._key.unpack_many(keys)

    def __len__(self) -> int:
        return sum(count for _, _, count in self._store.dump())

    def insert(self, key: K, value: V) -> None:
        """Add a key that is not there yet.

        :raises KeyExistsError: it is; its value stays.
        :raises MapFullError: there is no room.
        """
        self._set(key, value, NOEXIST)

    def replace(self, key: K, value: V) -> None:
        """Change the value of a key that is there.

        :raises KeyNotFoundError: it is not.
        """
        self._set(key, value, EXIST)

    @overload
    def pop(self, key: K, /) -> V: ...
    @overload
    def pop(self, key: K, /, default: V) -> V: ...
    @overload
    def pop(self, key: K, /, default: D) -> V | D: ...
    def pop(self, key: K, /, default: Any = _NONE) -> Any:
        """Remove a key and return its value, in one step where the kernel can.

        :raises KeyNotFoundError: it is not there, and no default is given.
        """
        value = self._take(self._key.pack(key))
        if value is not None:
            return value
        if default is _NONE:
            raise self._missing(key)
        return default

    def delete_many(self, keys: Iterable[K]) -> int:
        """Remove many keys at once; returns how many were there."""
        unwanted = list(keys)
        return self._store.delete_many(self._key.pack_many(unwanted), len(unwanted))

    def delete_packed(self, keys: Buffer) -> int:
        """Remove packed keys at once; returns how many were there.

        :raises LayoutError: these are not whole keys.
        """
        return self._store.delete_many(keys, self._count(keys))

    def clear(self) -> None:
        """Remove all elements that are there now."""
        keys, _, count = self.items_packed()
        self._store.delete_many(keys, count)

    def items(self) -> ItemsView[K, V]:
        """Keys and values, read in large batches."""
        return _Items(self)

    def values(self) -> ValuesView[V]:
        """Values, read in large batches."""
        return _Values(self)

    def _take(self, key: bytes) -> V | None:
        value = self._store.take(key)
        return None if value is None else self._value.unpack(value)

    def _summary(self) -> str:
        return f"{self._key.name}->{self._value.name} {len(self)}/{self.info.max_entries}"


class _Items(ItemsView[K, V]):
    _mapping: Table[K, V]

    def __iter__(self) -> Iterator[tuple[K, V]]:
        return self._mapping._pairs()


class _Values(ValuesView[V]):
    _mapping: Table[Any, V]

    def __iter__(self) -> Iterator[V]:
        return (value for _, value in self._mapping._pairs())

    def __contains__(self, value: object) -> bool:
        return any(each == value for each in self)
