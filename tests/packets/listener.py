"""What a datapath tells of packets, read as an observer reads it."""

from __future__ import annotations

from k8sdatapath import maps
from k8sdatapath.datapath.event_source import EventSource
from k8sdatapath.layout import layout_of
from k8sdatapath.objects import Object
from k8sdatapath.tables.counters import outcomes
from k8sdatapath.tables.events import (
    EVENT_SIZE,
    EventRow,
    FilterRow,
    Level,
    QueueRow,
    SetupRow,
    TellingRow,
    reason_of,
)

_MOST = 8192  # that are there at once


class Listener:
    """Hears all events of a loaded object."""

    def __init__(self, loaded: Object, level: Level = Level.ALL) -> None:
        self._source = EventSource(
            loaded.map("kd_events", maps.RingBuffer[EventRow]),
            loaded.map("kd_event_queues", maps.Array[QueueRow]),
            loaded.map("kd_event_rows", maps.Array[EventRow]),
        )
        self._setup = loaded.map("kd_event_setup", maps.Array[SetupRow])
        self._filters = loaded.map("kd_event_filters", maps.Array[FilterRow])
        self._telling = loaded.map("kd_telling", maps.PerCpuArray[TellingRow])
        self._names = {each.number: each.name for each in outcomes(loaded.spec.btf)}
        self.ask(level)

    def ask(self, level: Level, *filters: FilterRow, interval: int = 5, rate: int = 0) -> None:
        for index, each in enumerate(filters):
            self._filters[index] = each
        self._setup[0] = SetupRow(level, interval, rate, len(filters))

    def heard(self) -> list[EventRow]:
        """What was told since the last time."""
        room = bytearray(EVENT_SIZE * _MOST)
        written = self._source.drain_into(room, 0)
        return layout_of(EventRow).unpack_many(memoryview(room)[: written * EVENT_SIZE])

    def outcome(self, event: EventRow) -> str:
        return self._names[reason_of(event.result)]

    @property
    def told(self) -> int:
        return sum(row.told for row in self._telling[0])

    @property
    def full(self) -> int:
        return sum(row.full for row in self._telling[0])

    @property
    def limited(self) -> int:
        return sum(row.limited for row in self._telling[0])
