"""Longest-prefix matching."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import TypeVar

from k8sdatapath.errors import KeyExistsError
from k8sdatapath.maps.table import Table
from k8sdatapath.pybpf.maps import NO_PREALLOC, MapType

__all__ = ["LPMTrie"]

K = TypeVar("K")
V = TypeVar("V")


class LPMTrie(Table[K, V]):
    """``BPF_MAP_TYPE_LPM_TRIE``: a mapping of prefixes that finds the longest for a key (Linux 4.11).

    ::

        with LPMTrie[network, u32].create("zones", 1024) as zones:
            zones[ip_network("10.0.0.0/8")] = 1
            zones.match(ip_address("10.1.2.3"))  # 1

    As a mapping it is exact: ``trie[network]`` is the value of this very prefix. Keys are ``network``, or a
    struct whose first member is the length of the prefix in bits: ``u32``.
    """

    TYPE = MapType.LPM_TRIE
    FLAGS = NO_PREALLOC

    def match(self, key: IPv4Address | IPv6Address | K) -> V | None:
        """The value of the longest prefix that ``key`` begins with; None where none does.

        :param key: an address, or a key whose own prefix length says how much of it counts.
        """
        if isinstance(key, IPv4Address | IPv6Address):
            key = (IPv4Network if key.version == 4 else IPv6Network)(key)  # type: ignore[assignment]
        value = self._store.lookup(self._key.pack(key))  # type: ignore[arg-type]
        return None if value is None else self._value.unpack(value)

    def __getitem__(self, key: K) -> V:
        packed = self._key.pack(key)
        value = self._store.lookup(packed) if self._has(packed) else None
        if value is None:
            raise self._missing(key)
        return self._value.unpack(value)

    def __contains__(self, key: object) -> bool:
        return self._has(self._key.pack(key))  # type: ignore[arg-type]

    def insert(self, key: K, value: V) -> None:
        """Add a prefix that is not there yet."""
        if key in self:  # before Linux 6.13 the kernel ignores the flag that forbids overwriting
            raise KeyExistsError(key, self.name)
        super().insert(key, value)

    def replace(self, key: K, value: V) -> None:
        """Change the value of a prefix that is there."""
        if key not in self:
            raise self._missing(key)
        super().replace(key, value)

    def lookup_many(self, keys: Iterable[K]) -> dict[K, V]:
        """The values of those prefixes that are there."""
        return super().lookup_many([key for key in keys if key in self])

    def _has(self, key: bytes) -> bool:
        """Whether this very prefix is there: a lookup would also find shorter ones.

        The walk goes on from a key that is there, and starts over for one that is not.
        """
        following = self._store.next_key(key)
        first = self._store.next_key(None)
        return first is not None and following != first
