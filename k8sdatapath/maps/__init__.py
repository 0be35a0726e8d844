"""Typed maps, one class per kind; see docs/reference/maps.md.

``Hash[FrontendKey, Frontend]`` is a kind with types. ``create`` makes a new map of it, :func:`bind` takes one
that exists, :func:`in_memory` needs no kernel.
"""

from __future__ import annotations

from k8sdatapath.maps.array import Array
from k8sdatapath.maps.base import Map
from k8sdatapath.maps.binding import bind
from k8sdatapath.maps.hash import Hash, LRUHash
from k8sdatapath.maps.lpm_trie import LPMTrie
from k8sdatapath.maps.memory import in_memory
from k8sdatapath.maps.nested import ArrayOfMaps, HashOfMaps
from k8sdatapath.maps.per_cpu import PerCpuArray, PerCpuHash
from k8sdatapath.maps.prog_array import ProgArray
from k8sdatapath.maps.ring_buffer import RingBuffer
from k8sdatapath.maps.sock_hash import SockHash, SockMap
from k8sdatapath.pybpf.fd import Fd
from k8sdatapath.pybpf.maps import MMAPABLE, info

__all__ = [
    "MMAPABLE",
    "Array",
    "ArrayOfMaps",
    "Hash",
    "HashOfMaps",
    "LPMTrie",
    "LRUHash",
    "Map",
    "PerCpuArray",
    "PerCpuHash",
    "ProgArray",
    "RingBuffer",
    "SockHash",
    "SockMap",
    "bind",
    "bind_untyped",
    "in_memory",
]

_KINDS: dict[int, type[Map]] = {
    int(kind.TYPE): kind
    for kind in (
        Array,
        ArrayOfMaps,
        Hash,
        HashOfMaps,
        LPMTrie,
        LRUHash,
        PerCpuArray,
        PerCpuHash,
        ProgArray,
        RingBuffer,
        SockHash,
        SockMap,
    )
    if kind.TYPE is not None
}


def bind_untyped(fd: Fd, *, owned: bool = False) -> Map:
    """A descriptor as a map of the kind it is, of bytes; a bare :class:`Map` for kinds not listed here."""
    return bind(_KINDS.get(info(fd).type, Map), fd, owned=owned)
