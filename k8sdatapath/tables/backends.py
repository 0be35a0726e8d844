"""kd_backends: one row for each endpoint's membership in a service."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from k8sdatapath.layout import addr, be16, layout_of, struct, u8, u32, u64
from k8sdatapath.maps import Array
from k8sdatapath.model import Backend, BackendState, Protocol
from k8sdatapath.tables.grace import Numbers

__all__ = ["FREE", "BackendRow", "BackendRows"]

FREE = 0
"""State of a row that belongs to nobody; the others are :class:`~k8sdatapath.model.BackendState`."""

_INDEX_BITS = 22
_INDEX_MASK = (1 << _INDEX_BITS) - 1
_GENERATIONS = 1 << (32 - _INDEX_BITS)


@struct
class BackendRow:
    """``struct kd_backend``."""

    addr: addr
    flows: u64
    id: u32
    port: be16
    protocol: u8
    state: u8


class BackendRows:
    """The rows, and which of them are taken. Written through memory: nobody reads a row before a slot names it.

    Rows that are not free when this is made count as taken.

    :param wait: see :class:`~k8sdatapath.tables.grace.Numbers`.
    """

    def __init__(self, table: Array[BackendRow], wait: Callable[[], None]) -> None:
        self._layout = layout_of(BackendRow)
        self._view = table.view()
        self._size = self._layout.size
        self._numbers = Numbers("backends", len(table), wait, self._taken())

    @property
    def available(self) -> int:
        """How many rows can still be taken."""
        return self._numbers.available

    def add(self, backend: Backend, protocol: Protocol) -> int:
        """Write a row that nothing names yet; returns the id that will name it."""
        index = self._numbers.take()
        at = index * self._size
        generation = (
            (self._row(index).id >> _INDEX_BITS) + 1
        ) % _GENERATIONS or 1  # 0 stays free to mean "no backend"
        id = generation << _INDEX_BITS | index
        row = BackendRow(backend.address, 0, id, backend.port, protocol, backend.state)
        self._view[at : at + self._size] = self._layout.pack(row)
        return id

    def put_back(self, id: int) -> None:
        """Undo an :meth:`add` that was never shown to any program."""
        self._set_state(id, FREE)
        self._numbers.put_back(id & _INDEX_MASK)

    def remove(self, id: int) -> None:
        """End a membership: from now on flows that remember this id choose anew."""
        self._set_state(id, FREE)
        self._numbers.give(id & _INDEX_MASK)

    def set_state(self, id: int, state: BackendState) -> None:
        """Change an existing membership."""
        self._set_state(id, state)

    def get(self, id: int) -> BackendRow | None:
        """The row of this very id, or None if it is gone."""
        index = id & _INDEX_MASK
        if index >= self._numbers.size:
            return None
        row = self._row(index)
        return row if row.id == id and row.state != FREE else None

    def all(self) -> list[BackendRow]:
        """Every row that belongs to somebody."""
        return [self._row(index) for index in self._taken()]

    def _taken(self) -> Iterator[int]:
        states = bytes(self._view[self._size - 1 :: self._size])  # state is the last byte of a row
        return (match.start() for match in re.finditer(rb"[^\0]", states))

    def _row(self, index: int) -> BackendRow:
        at = index * self._size
        return self._layout.unpack(self._view[at : at + self._size])

    def _set_state(self, id: int, state: int) -> None:
        self._view[(id & _INDEX_MASK) * self._size + self._size - 1] = state
