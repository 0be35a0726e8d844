"""Programs by number, for tail calls."""

from __future__ import annotations

from typing import Any

from k8sdatapath.layout import Layout, u32
from k8sdatapath.maps.base import HasFileno, handle
from k8sdatapath.maps.elements import Elements
from k8sdatapath.pybpf.maps import MapInfo, MapType

__all__ = ["ProgArray"]


class ProgArray(Elements[int, Any]):
    """``BPF_MAP_TYPE_PROG_ARRAY``: what programs tail-call (Linux 4.2).

    What goes in is a program, ``a[3] = program``; what can be told from outside is its id: :meth:`ids`. The
    kernel empties the array when its last descriptor and pin are gone, even if programs still use it.
    """

    TYPE = MapType.PROG_ARRAY
    PARAMETERS = ()
    key_type = u32

    @classmethod
    def _item_layout(cls, about: MapInfo) -> Layout[Any]:
        return handle("program", 4)

    def __setitem__(self, index: int, program: HasFileno) -> None:
        self._set(index, program)

    def __delitem__(self, index: int) -> None:
        if not self._store.delete(self._key.pack(index)):
            raise self._missing(index)

    def __len__(self) -> int:
        return self._capacity()

    def ids(self) -> dict[int, int]:
        """The ids of the programs, by their places."""
        return dict(self._pairs())

    def _summary(self) -> str:
        return f"programs {len(self.ids())}/{len(self)}"
