"""Hash tables."""

from __future__ import annotations

from typing import TypeVar

from k8sdatapath.maps.table import Table
from k8sdatapath.pybpf.maps import MapType

__all__ = ["Hash", "LRUHash"]

K = TypeVar("K")
V = TypeVar("V")


class Hash(Table[K, V]):
    """``BPF_MAP_TYPE_HASH``: a mapping of at most ``max_entries`` elements (Linux 3.19; in bulk 5.6).

    ::

        with Hash[u32, u64].create("counts", 1024) as counts:
            counts.update_many({1: 10, 2: 20})
            counts[1] += 1
    """

    TYPE = MapType.HASH


class LRUHash(Table[K, V]):
    """``BPF_MAP_TYPE_LRU_HASH``: never full, the elements least recently used make room (Linux 4.10)."""

    TYPE = MapType.LRU_HASH
