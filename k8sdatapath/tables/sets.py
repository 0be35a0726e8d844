"""kd_sets and kd_slots: which backends a service's new flows may get."""

from __future__ import annotations

import sys
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import IntEnum
from typing import Annotated

from k8sdatapath.layout import array as elements
from k8sdatapath.layout import struct, u32
from k8sdatapath.maps import Array
from k8sdatapath.model import Scope
from k8sdatapath.pybpf.memory import store_many
from k8sdatapath.tables.grace import Ranges

__all__ = ["NO_RUN", "SetKind", "SetRow", "Sets", "SlotsBlock"]


@struct
class SetRow:
    """``struct kd_set``: a run of slots."""

    offset: u32
    count: u32


@struct
class SlotsBlock:
    """``struct kd_slots``: sixteen backend ids."""

    backend: Annotated[tuple[int, ...], elements(u32, 16)]


class SetKind(IntEnum):
    """Which of a service's sets (``enum kd_scope``): those of :class:`~k8sdatapath.model.Scope`, and KEPT.

    KEPT names the backends that get no new flows but keep those they have. No program looks at it: it is how
    a process that takes over finds them.
    """

    CLUSTER = Scope.CLUSTER
    LOCAL = Scope.LOCAL
    KEPT = 2


NO_RUN = (0, 0)
_KINDS = len(SetKind)
_LITTLE = sys.byteorder == "little"


class Sets:
    """Backend sets, replaced by one aligned 8-byte store: programs see the old run or the new, never between.

    :param wait: see :class:`~k8sdatapath.tables.grace.Numbers`.
    :param used: services whose sets exist already.
    """

    def __init__(
        self,
        sets: Array[SetRow],
        slots: Array[SlotsBlock],
        wait: Callable[[], None],
        used: Iterable[int] = (),
    ) -> None:
        self._sets = sets.view().cast("Q")
        self._slots = slots.view().cast("I")
        self.services = len(self._sets) // _KINDS
        runs = (self._run(number, kind) for number in used for kind in SetKind)
        self._ranges = Ranges("slots", len(self._slots), wait, (run for run in runs if run[1]))

    @property
    def size(self) -> int:
        """How many slots there are."""
        return len(self._slots)

    @property
    def available(self) -> int:
        """How many slots can still be taken, if not in one run."""
        return self._ranges.available

    def prepare(self, ids: Sequence[int]) -> tuple[int, int]:
        """Fill a run of slots that nothing names yet; returns ``(offset, count)``."""
        count = len(ids)
        if not count:
            return NO_RUN
        offset = self._ranges.take(count)
        self._slots[offset : offset + count] = memoryview(array("I", ids))
        return offset, count

    def put_back(self, run: tuple[int, int]) -> None:
        """Undo a :meth:`prepare` that was never committed."""
        if run[1]:
            self._ranges.put_back(*run)

    def commit(self, services: Iterable[tuple[int, Mapping[SetKind, tuple[int, int]]]]) -> None:
        """Make runs of services current, by set; the runs they had are given back."""
        places, values, old = array("I"), array("Q"), []
        for service, runs in services:
            for kind, (offset, count) in runs.items():
                place = service * _KINDS + kind
                before = self._sets[place]
                if count or before:  # most sets but the first are empty, and stay so
                    old.append(before)
                    places.append(place)
                    values.append(_as_value(offset, count))
        store_many(self._sets, places, values)
        for before in old:
            if before:
                self._ranges.give(*_as_run(before))

    def ids(self, service: int, kind: SetKind) -> list[int]:
        """The backend ids in the slots of a set, as a program would find them."""
        offset, count = self._run(service, kind)
        return self._slots[offset : offset + count].tolist()

    def _run(self, service: int, kind: SetKind) -> tuple[int, int]:
        return _as_run(self._sets[service * _KINDS + kind])


def _as_value(offset: int, count: int) -> int:
    """A run as the number that its row in kd_sets is."""
    return offset | count << 32 if _LITTLE else offset << 32 | count


def _as_run(value: int) -> tuple[int, int]:
    low, high = value & 0xFFFFFFFF, value >> 32
    return (low, high) if _LITTLE else (high, low)
