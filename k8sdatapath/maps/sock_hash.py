"""Maps of sockets, for sk_msg, sk_skb and sk_lookup programs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, TypeVar

from k8sdatapath.errors import NotSupportedError
from k8sdatapath.layout import Layout, u32
from k8sdatapath.maps.base import HasFileno, handle
from k8sdatapath.maps.elements import Elements
from k8sdatapath.pybpf.maps import MapInfo, MapType

__all__ = ["SockHash", "SockMap"]

K = TypeVar("K")


class SockHash(Elements[K, Any]):
    """``BPF_MAP_TYPE_SOCKHASH``: connections by a key of one's own (Linux 4.18).

    What goes in is a socket, ``m[key] = sock``; what can be told from outside is its :meth:`cookie`. A
    socket leaves the map by itself when it closes.
    """

    TYPE = MapType.SOCKHASH
    PARAMETERS: ClassVar[tuple[str, ...]] = ("key_type",)

    @classmethod
    def _item_layout(cls, about: MapInfo) -> Layout[Any]:
        return handle("socket", about.value_size or 8)

    def __setitem__(self, key: K, sock: HasFileno) -> None:
        self._set(key, sock)

    def __delitem__(self, key: K) -> None:
        if not self._store.delete(self._key.pack(key)):
            raise self._missing(key)

    def __iter__(self) -> Iterator[K]:
        for keys, _, _ in self._store.dump(values=False):
            yield from self._key.unpack_many(keys)

    def __contains__(self, key: object) -> bool:
        return any(each == key for each in self)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def cookie(self, key: K) -> int:
        """The cookie of a socket (``SO_COOKIE``).

        :raises NotSupportedError: the map was declared with values of 4 bytes, which cannot hold one.
        """
        if self.info.value_size != 8:
            raise NotSupportedError("reading cookies from values of 4 bytes", subject=self.name)
        value = self._store.lookup(self._key.pack(key))
        if value is None:
            raise self._missing(key)
        return int(self._value.unpack(value))

    def _summary(self) -> str:
        return f"{self._key.name}->socket {len(self)}/{self.info.max_entries}"


class SockMap(SockHash[int]):
    """``BPF_MAP_TYPE_SOCKMAP``: connections by number (Linux 4.14)."""

    TYPE = MapType.SOCKMAP
    PARAMETERS = ()
    key_type = u32
