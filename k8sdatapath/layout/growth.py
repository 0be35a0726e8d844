"""Rows of a C type turned into rows of a later version of it: what has its name goes along."""

from __future__ import annotations

from collections.abc import Iterator

from attrs import frozen

from k8sdatapath.layout.compare import leaves
from k8sdatapath.pybpf.btf import Btf

__all__ = ["Growth"]

_PADDING = ("pad", "reserved", "unused")


@frozen
class Growth:
    """Where each member of a row goes. Members that are new begin as zero.

    :ivar size: of a row as it was; ``grown``: as it will be.
    :ivar runs: ``(from, to, bytes)``.
    """

    size: int
    grown: int
    runs: tuple[tuple[int, int, int], ...]

    @classmethod
    def none(cls, size: int) -> Growth:
        """Of rows that stay as they are."""
        return cls(size, size, ((0, 0, size),))

    @classmethod
    def between(cls, there: Btf, its: int, here: Btf, ours: int) -> Growth | None:
        """From one type to another, if that has all members that the first has, under the same names and of
        the same types, but for padding. None if something would be lost.
        """
        places = {(leaf.path, leaf.type): leaf.offset for leaf in leaves(here, ours)}
        runs = []
        for leaf in leaves(there, its):
            if leaf.path.rpartition(".")[2].startswith(_PADDING):
                continue
            to = places.get((leaf.path, leaf.type))
            if to is None or leaf.bits:
                return None
            runs.append((leaf.offset, to, leaf.size))
        return cls(there.size_of(its), here.size_of(ours), tuple(runs))

    def convert(self, rows: bytes, stride: int, grown: int) -> bytearray:
        """Rows that lie so many bytes apart, and will."""
        made = bytearray(len(rows) // stride * grown)
        for place, to in self._bytes():
            made[to::grown] = rows[place::stride]
        return made

    def _bytes(self) -> Iterator[tuple[int, int]]:
        for place, to, size in self.runs:
            yield from zip(range(place, place + size), range(to, to + size), strict=True)
