"""Maps with one value per CPU: programs count without locks, user space adds up."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Generic, TypeVar

from k8sdatapath.errors import LayoutError
from k8sdatapath.layout import Layout
from k8sdatapath.layout.codecs import Codec
from k8sdatapath.maps.array import Array
from k8sdatapath.maps.table import Table
from k8sdatapath.pybpf.maps import MapInfo, MapType, padded, possible_cpus

__all__ = ["PerCpuArray", "PerCpuHash"]

K = TypeVar("K")
V = TypeVar("V")


class PerCpuHash(Table[K, tuple[V, ...]], Generic[K, V]):
    """``BPF_MAP_TYPE_PERCPU_HASH``: each value is a tuple, an item per possible CPU (Linux 4.6)."""

    TYPE = MapType.PERCPU_HASH

    @classmethod
    def _value_layout(cls, about: MapInfo) -> Layout[tuple[V, ...]]:
        return _per_cpu(cls._item_layout(about))


class PerCpuArray(Array[tuple[V, ...]], Generic[V]):
    """``BPF_MAP_TYPE_PERCPU_ARRAY``: each value is a tuple, an item per possible CPU (Linux 4.6)."""

    TYPE = MapType.PERCPU_ARRAY

    @classmethod
    def _value_layout(cls, about: MapInfo) -> Layout[tuple[V, ...]]:
        return _per_cpu(cls._item_layout(about))


def _per_cpu(item: Layout[V]) -> Layout[tuple[V, ...]]:
    """The layout of one value per CPU, each in a multiple of 8 bytes."""
    size = padded(item.size) * possible_cpus()
    return Layout(
        Codec(f"{item.name} per CPU", size, 8, f"{size}s", partial(_pack, item), partial(_unpack, item))
    )


def _pack(item: Layout[V], values: Iterable[V]) -> bytes:
    parts = [item.pack(value).ljust(padded(item.size), b"\0") for value in values]
    if len(parts) != possible_cpus():
        raise LayoutError(f"{possible_cpus()} values are needed, one per CPU, not {len(parts)}")
    return b"".join(parts)


def _unpack(item: Layout[V], data: bytes) -> tuple[V, ...]:
    return tuple(item.unpack(data[at : at + item.size]) for at in range(0, len(data), padded(item.size)))
