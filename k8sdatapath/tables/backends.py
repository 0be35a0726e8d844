"""kd_backends: one row for each endpoint's membership in a service."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice

from k8sdatapath.errors import ContractError
from k8sdatapath.layout import addr, be16, layout_of, struct, u8, u32, u64
from k8sdatapath.maps import Array
from k8sdatapath.model import Backend, Protocol, Scope
from k8sdatapath.tables.grace import Numbers

__all__ = ["FREE", "BackendRow", "BackendRows"]

FREE = 0
"""State of a row that belongs to nobody; the others are :class:`~k8sdatapath.model.BackendState`."""

_INDEX_BITS = 22
_INDEX_MASK = (1 << _INDEX_BITS) - 1
_GENERATIONS = 1 << (32 - _INDEX_BITS)
_AT_ONCE = 1024
_STATE_MASK = 0xF  # of a status; each scope has a bit above


@struct
class BackendRow:
    """``struct kd_backend``."""

    addr: addr
    flows: u64
    id: u32
    port: be16
    protocol: u8
    status: u8

    @property
    def state(self) -> int:
        """:data:`FREE` or a :class:`~k8sdatapath.model.BackendState`, without the sets that it is in."""
        return self.status & _STATE_MASK

    def is_in(self, scope: Scope) -> bool:
        """Whether it is in this set of its service, be it a candidate now or later."""
        return bool(self.status & _in(scope))


class BackendRows:
    """The rows, and which of them are taken.

    Written through memory: no program reads a row before a slot names it.
    Rows that are not free when this is made count as taken.

    :param wait: see :class:`~k8sdatapath.tables.grace.Numbers`.
    """

    def __init__(self, table: Array[BackendRow], wait: Callable[[], None]) -> None:
        if len(table) > _INDEX_MASK + 1:
            raise ContractError(f"{table.name} has {len(table)} rows, an id can tell {_INDEX_MASK + 1} apart")
        self._layout = layout_of(BackendRow)
        self._size = self._layout.size
        self._view = table.view()
        self._words = self._view.cast("B").cast("I")
        self._id_word = next(field.offset for field in self._layout.fields if field.name == "id") // 4
        self._numbers = Numbers("backends", len(table), wait, self._taken())

    @property
    def size(self) -> int:
        """How many rows there are."""
        return self._numbers.size

    @property
    def available(self) -> int:
        """How many rows can still be taken."""
        return self._numbers.available

    def add(self, members: Sequence[tuple[Backend, Protocol]]) -> list[int]:
        """Write rows that nothing names yet; returns the ids that will name them.

        :raises CapacityError: there is not so much room; nothing was written.
        """
        indexes = self._numbers.take_many(len(members))
        ids = [self._next_id(index) for index in indexes]
        rows = (
            BackendRow(backend.address, 0, id, backend.port, protocol, _status(backend))
            for (backend, protocol), id in zip(members, ids, strict=True)
        )
        packed = b"".join(map(self._layout.pack_many, iter(lambda: list(islice(rows, _AT_ONCE)), [])))
        size = self._size
        first = indexes[0] if indexes else 0
        if indexes == list(range(first, first + len(indexes))):  # in a row: one copy
            self._view[first * size : first * size + len(packed)] = packed
        else:
            for place, index in enumerate(indexes):
                self._view[index * size : (index + 1) * size] = packed[place * size : (place + 1) * size]
        return ids

    def _next_id(self, index: int) -> int:
        before = self._words[index * (self._size // 4) + self._id_word] >> _INDEX_BITS
        generation = (before + 1) % _GENERATIONS or 1  # 0 stays free to mean "no backend"
        return generation << _INDEX_BITS | index

    def put_back(self, ids: Iterable[int]) -> None:
        """Undo an :meth:`add` that was never shown to any program."""
        for id in ids:
            self._set_status(id, FREE)
            self._numbers.put_back(id & _INDEX_MASK)

    def remove(self, id: int) -> None:
        """End a membership: from now on flows that remember this id choose anew."""
        self._set_status(id, FREE)
        self._numbers.give(id & _INDEX_MASK)

    def update(self, id: int, backend: Backend) -> None:
        """Change an existing membership: its state, and the sets that it is in."""
        self._set_status(id, _status(backend))

    def get(self, id: int) -> BackendRow | None:
        """The row of this very id, or None if it is gone."""
        index = id & _INDEX_MASK
        if index >= self._numbers.size:
            return None
        row = self._layout.unpack(self._view[index * self._size : (index + 1) * self._size])
        return row if row.id == id and row.state != FREE else None

    def holds(self, id: int, backend: Backend) -> bool:
        """Whether the row of this id is that of a backend."""
        row = self.get(id)
        wanted = backend.address, backend.port, _status(backend)
        return row is not None and (row.addr, row.port, row.status) == wanted

    def all(self) -> list[BackendRow]:
        """Every row that belongs to somebody."""
        end = max(self._taken(), default=-1) + 1
        return [row for row in self._layout.unpack_many(self._view[: end * self._size]) if row.state != FREE]

    def _taken(self) -> Iterator[int]:
        statuses = bytes(self._view[self._size - 1 :: self._size])  # status is the last byte of a row
        return (match.start() for match in re.finditer(rb"[^\0]", statuses))

    def _set_status(self, id: int, status: int) -> None:
        self._view[(id & _INDEX_MASK) * self._size + self._size - 1] = status


def _status(backend: Backend) -> int:
    """``kd_backend.status``: clients with affinity return to a backend that is in the set they ask."""
    if not backend.weight:
        return backend.state
    return backend.state | (_IN_CLUSTER if backend.cluster else 0) | (_IN_LOCAL if backend.local else 0)


def _in(scope: Scope) -> int:
    """``KD_BACKEND_IN(scope)``."""
    return 0x10 << scope


_IN_CLUSTER, _IN_LOCAL = _in(Scope.CLUSTER), _in(Scope.LOCAL)
