"""The newest events: what the kernel has told, and what was made here, in one order."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from attrs import evolve

from k8sdatapath.datapath.event_store import EventStore
from k8sdatapath.datapath.flow_decoder import lost_record
from k8sdatapath.layout import layout_of
from k8sdatapath.tables.events import EVENT_SIZE, EventRow

EVENT = layout_of(EventRow)


def record(time: int) -> bytes:
    return EVENT.pack(evolve(EVENT.unpack(lost_record(0, 1, 0, 0)), time=time))


class Ring:
    """What the kernel has, as a list of times."""

    def __init__(self) -> None:
        self.times: list[int] = []

    def drain_into(self, room: bytearray, written: int) -> int:
        for time in self.times:
            at = written % (len(room) // EVENT_SIZE) * EVENT_SIZE
            room[at : at + EVENT_SIZE] = record(time)
            written += 1
        self.times = []
        return written


def shown(store: EventStore) -> list[int]:
    first, data = store.read(*store.span)
    assert first == store.span[0]
    return [EVENT.unpack(data[at : at + EVENT_SIZE]).time for at in range(0, len(data), EVENT_SIZE)]


@pytest.mark.parametrize(
    ("drained", "ours", "wanted"),
    [
        ([1, 4, 7], [], [1, 4, 7]),
        ([1, 4, 7], [5, 2, 9], [1, 2, 4, 5, 7, 9]),
        ([1, 4, 7], [4], [1, 4, 4, 7]),
        ([], [3], [3]),
        ([4, 1, 7], [3, 5], [3, 4, 1, 5, 7]),  # the kernel's stay as they came
        ([*range(0, 24, 2)], [21, 3], [10, 12, 14, 16, 18, 20, 21, 22]),
    ],
)
def test_what_is_made_here_is_put_where_its_time_is(
    drained: Sequence[int], ours: Sequence[int], wanted: Sequence[int]
) -> None:
    ring = Ring()
    store = EventStore(ring, 8)
    for begin in range(3):  # where the room begins anew
        before = store.span[1]
        ring.times = [*drained]
        assert store.drain() == len(drained)
        assert store.span[1] == before
        store.show([record(time) for time in ours])
        assert shown(store)[-min(8, len(drained) + len(ours)) :] == [*wanted], begin


def test_what_is_not_in_its_place_yet_is_not_seen() -> None:
    ring = Ring()
    store = EventStore(ring, 4)
    ring.times = [1, 2]
    store.drain()
    assert shown(store) == []
    store.show()
    ring.times = [3, 4, 5]
    store.drain()
    assert shown(store) == [2]
    store.show()
    assert shown(store) == [2, 3, 4, 5]
