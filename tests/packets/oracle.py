"""The kernel's choices, said again in Python."""

from __future__ import annotations

from k8sdatapath.layout import layout_of
from k8sdatapath.tables.conntrack import Tuple


def murmur3(data: bytes) -> int:
    """MurmurHash3_x86_32 with seed 0, of whole words."""

    def rotate(word: int, by: int) -> int:
        return (word << by | word >> 32 - by) & 0xFFFFFFFF

    hash = 0
    for at in range(0, len(data), 4):
        word = int.from_bytes(data[at : at + 4], "little") * 0xCC9E2D51 & 0xFFFFFFFF
        hash ^= rotate(word, 15) * 0x1B873593 & 0xFFFFFFFF
        hash = (rotate(hash, 13) * 5 + 0xE6546B64) & 0xFFFFFFFF
    hash ^= len(data)
    hash = (hash ^ hash >> 16) * 0x85EBCA6B & 0xFFFFFFFF
    hash = (hash ^ hash >> 13) * 0xC2B2AE35 & 0xFFFFFFFF
    return hash ^ hash >> 16


def maglev_slot(flow: Tuple, count: int) -> int:
    """Which of ``count`` slots a flow falls into (``kd_flow_hash`` in ``kd/service.h``)."""
    return murmur3(layout_of(Tuple).pack(flow)) % count
