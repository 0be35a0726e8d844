"""FlowObserver: what becomes of packets, as flows with names.

A thread takes events out of the kernel's memory, many at a time, into a ring of so many records
(:class:`~k8sdatapath.datapath.event_store.EventStore`). A record becomes a flow when somebody reads it:
whoever reads nothing costs nothing. Readers have places in the ring and nothing else, so one that is slow
costs no memory and holds nobody up; what is overwritten before it comes, it is told as a loss. So it is told
what the kernel found no room for.
"""

from __future__ import annotations

import asyncio
import os
import select
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from importlib.metadata import version
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from attrs import frozen

from k8sdatapath import maps
from k8sdatapath.datapath.contract import Bindable, bind_maps
from k8sdatapath.datapath.dns_event import DnsEvent
from k8sdatapath.datapath.event_source import EventSource
from k8sdatapath.datapath.event_store import EventStore
from k8sdatapath.datapath.flow_columns import frame, packed_columns
from k8sdatapath.datapath.flow_decoder import Decoder, lost_record
from k8sdatapath.datapath.flow_filters import EventFilter
from k8sdatapath.datapath.flow_names import KnownNames, Names
from k8sdatapath.datapath.flow_questions import question_flow
from k8sdatapath.datapath.flow_requests import RequestSource, request_flow
from k8sdatapath.errors import CapacityError, ClosedError, DatapathError, ModelError
from k8sdatapath.flow_source import LOST_EVERY, Chunk, FlowSource, Seen
from k8sdatapath.model.address import shown
from k8sdatapath.model.flow import Flow
from k8sdatapath.model.flow_match import Matcher
from k8sdatapath.objects import ObjectSpec
from k8sdatapath.pybpf import cpus
from k8sdatapath.resource import Resource
from k8sdatapath.tables.counters import outcomes
from k8sdatapath.tables.events import EventRow, FilterRow, Level, QueueRow, SetupRow, TellingRow, to_level

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    import polars as pl
    import pyarrow as pa

__all__ = ["CONTRACT", "FlowObserver", "Telling"]

#: The maps that an observer reads and writes.
CONTRACT: Mapping[str, Any] = {
    "kd_events": maps.RingBuffer[EventRow],
    "kd_event_queues": maps.Array[QueueRow],
    "kd_event_rows": maps.Array[EventRow],
    "kd_event_setup": maps.Array[SetupRow],
    "kd_event_filters": maps.Array[FilterRow],
    "kd_telling": maps.PerCpuArray[TellingRow],
}

_MOST_QUESTIONS = 16384
"""To name servers, that are kept until the thread takes them; of more the oldest are forgotten."""
_PAUSE = 0.02
"""Seconds until a second look: above KD_EVENT_WAKE and two KD_EVENT_TICK, or the last events stay unread."""
_FILLED = 8
"""What part of a CPU's queue may fill meanwhile, at the rate of before: else the look is earlier."""
_LIMITED = 1000
"""Milliseconds until the next look at what was above a rate, which wakes nobody."""


@frozen
class Telling:
    """What the programs have told, since they were loaded.

    :ivar told: events.
    :ivar full: those that found no room, as nobody read fast enough.
    :ivar limited: those above the rate.
    """

    told: int
    full: int
    limited: int


class FlowObserver(FlowSource, Resource):
    """The flows of a node. Make one with :meth:`bind`; its methods may be called from any thread::

        observer = FlowObserver.bind(loaded)
        observer.watch(Level.AGGREGATED)
        for flow in observer.last(20): ...
        for flow in observer.follow(): ...          # as they come

    :ivar names: what makes names of addresses and numbers.
    """

    def __init__(
        self, tables: dict[str, Any], own: ExitStack, *, decoder: Decoder, names: Names, capacity: int
    ) -> None:
        self.names = names
        self._own = own
        self._setup: maps.Array[SetupRow] = tables["kd_event_setup"]
        self._filters: maps.Array[FilterRow] = tables["kd_event_filters"]
        self._telling: maps.PerCpuArray[TellingRow] = tables["kd_telling"]
        self._source = EventSource(tables["kd_events"], tables["kd_event_queues"], tables["kd_event_rows"])
        self._store = EventStore(self._source, capacity)
        self._decoder = decoder
        self._taking = threading.Lock()  # of the thread, and of readers who look for themselves
        self._changed = threading.Condition()
        self._arrivals: set[Callable[[], None]] = set()
        self._missed = [row.full + row.limited for row in self._telling[0]]
        self._missed_at = time.monotonic_ns()
        self._closing = False
        self._called = False  # to look: once is enough
        self._limited = self._setup[0].rate > 0
        self._requests: RequestSource | None = None
        self._questions: deque[DnsEvent] = deque(maxlen=_MOST_QUESTIONS)
        self._made: list[tuple[int, Flow]] = []  # here, and not yet among the others
        self._stop, self._stopped = os.pipe2(os.O_CLOEXEC)
        self._poll = select.poll()
        self._poll.register(self._source.fileno(), select.POLLIN)
        self._poll.register(self._stop, select.POLLIN)
        self._thread = threading.Thread(target=self._run, name="flow observer", daemon=True)
        self._thread.start()

    @classmethod
    def bind(
        cls,
        source: Bindable,
        *,
        names: Names | None = None,
        node: str = "default/",
        capacity: int = 65536,
    ) -> FlowObserver:
        """The flows of a loaded object or of pins. The object may be closed before it.

        Events are taken by whoever comes first: there is one observer at a time.

        :param names: what makes names of addresses; default is one that knows none but those it is told.
        :param node: ``cluster/node``.
        :param capacity: how many flows are kept, 168 bytes each.
        :raises ContractError: the maps are not there.
        :raises LayoutError: one holds something else.
        :raises ModelError: no such capacity.
        """
        if type(capacity) is not int or capacity < 1:
            raise ModelError(f"an observer keeps 1 flow or more, not {shown(capacity)}")
        tables, own = bind_maps(source, CONTRACT, cls.__name__, keep=True)
        btf = ObjectSpec.from_file("pod").btf
        called = {each.number: each.name for each in outcomes(btf)}
        names = names if names is not None else KnownNames()
        decoder = Decoder(names, called, node, version("k8sdatapath"))
        return cls(tables, own, decoder=decoder, names=names, capacity=capacity)

    # ---- what is told

    @property
    def level(self) -> Level:
        """How much the programs tell."""
        return Level(self._setup[0].level)

    def watch(
        self,
        level: Level | str = Level.AGGREGATED,
        *filters: EventFilter,
        interval: int = 5,
        rate: int = 0,
    ) -> None:
        """Say how much the programs tell from now on.

        :param level: see :class:`~k8sdatapath.tables.events.Level`.
        :param filters: the kernel tells nothing that fits none of these; without any, everything.
        :param interval: seconds after which something is told of a connection again.
        :param rate: events that each CPU may tell in a second; 0 is any number.
        :raises ModelError: an unknown level, or no such number.
        :raises CapacityError: more filters than the kernel has room for.
        """
        level = to_level(level)
        for each in (interval, rate):
            if type(each) is not int or not 0 <= each < 1 << 32:
                raise ModelError(f"an interval and a rate are numbers of 32 bits, not {shown(each)}")
        if len(filters) > len(self._filters):
            raise CapacityError("event filters", len(filters), len(self._filters), "kd_event_filters")
        rows = [each.row for each in filters]
        if rows:
            self._setup[0] = SetupRow(Level.OFF)  # while some filters are of the old list
        for index, row in enumerate(rows):
            self._filters[index] = row
        self._setup[0] = SetupRow(level, interval, rate, len(rows))
        self._limited = rate > 0
        self._have_it_look()

    @property
    def telling(self) -> Telling:
        """What the programs have told and could not."""
        rows = self._telling[0]
        return Telling(
            sum(row.told for row in rows), sum(row.full for row in rows), sum(row.limited for row in rows)
        )

    def listen(self, requests: RequestSource) -> None:
        """Tell of requests as well. Their events are taken by this observer from now on."""
        self._requests = requests
        self._poll.register(requests.fileno(), select.POLLIN)
        self._have_it_look()

    def tell(self, event: DnsEvent) -> None:
        """Tell of a question to a name server, or of an answer, as a flow among the others."""
        self._questions.append(event)
        self._have_it_look()

    # ---- reading

    @property
    def capacity(self) -> int:
        """How many flows are kept."""
        return self._store.capacity

    def span(self) -> tuple[int, int]:
        """The number of the oldest flow that is there, and of the next to come."""
        if self._drain():  # with what was to wake the thread, and those that follow wake nobody
            self._have_it_look()
        return self._store.span

    def read(self, start: int, stop: int) -> Chunk:
        """The flows with numbers from ``start``, before ``stop``, that are there."""
        first, data = self._store.read(start, stop)
        return Chunk(first, self._decoder.decode(data, first))

    def packed(self, start: int, stop: int) -> tuple[int, bytes]:
        """The same as they came from the kernel, ``struct kd_event`` after ``struct kd_event``."""
        return self._store.read(start, stop)

    def columns(self, *, last: int | None = None) -> np.ndarray[Any, Any]:
        """The newest events as a structured array, with the members of ``struct kd_event``.

        :param last: how many; default all.
        :raises MissingExtraError: numpy is not installed.
        """
        return packed_columns(self._newest(last))

    def to_pandas(self, *, last: int | None = None) -> pd.DataFrame:
        """The newest events as a table with names.

        :param last: how many; default all.
        :raises MissingExtraError: pandas is not installed.
        """
        return frame(self._newest(last), self._decoder, "pandas")

    def to_polars(self, *, last: int | None = None) -> pl.DataFrame:
        """The same for polars."""
        made: pl.DataFrame = frame(self._newest(last), self._decoder, "polars")
        return made

    def to_arrow(self, *, last: int | None = None) -> pa.Table:
        """The same for Arrow."""
        return frame(self._newest(last), self._decoder, "pyarrow")

    def _newest(self, number: int | None) -> bytes:
        if number is not None and number < 0:
            raise ModelError(f"{number} events: a number of events is 0 or more")
        oldest, end = self.span()
        return self._store.read(oldest if number is None else end - number, end)[1]

    def wait(self, number: int, timeout: float) -> None:
        """Return when this flow is there, or the seconds are over."""
        with self._changed:
            self._changed.wait_for(lambda: self._store.span[1] > number or self._closing, timeout)
        if self._closing:
            raise ClosedError("the observer is closed")

    async def stream(
        self, *, matches: Matcher | None = None, last: int = 0, since: int | None = None
    ) -> AsyncIterator[Seen]:
        """What :meth:`follow` gives, for asyncio."""
        cursor = self.follow(matches=matches, last=last, since=since)
        arrived = asyncio.Event()
        with self._told_of_arrivals(arrived, asyncio.get_running_loop()):
            while not self._closing:
                arrived.clear()
                found = cursor.take()
                for each in found:
                    yield each
                if not found:
                    with suppress(TimeoutError):  # what was lost is told though nothing comes
                        await asyncio.wait_for(arrived.wait(), LOST_EVERY if cursor.missed else None)

    @contextmanager
    def _told_of_arrivals(self, event: asyncio.Event, loop: asyncio.AbstractEventLoop) -> Iterator[None]:
        def arrived() -> None:
            with suppress(RuntimeError):  # the loop has ended before its reader
                loop.call_soon_threadsafe(event.set)

        with self._changed:
            self._arrivals.add(arrived)
        try:
            yield
        finally:
            with self._changed:
                self._arrivals.discard(arrived)

    # ---- the thread

    def _run(self) -> None:
        self._take_all()  # what is there already may wake nobody
        while not self._closing:
            woken = dict(self._poll.poll(_LIMITED if self._limited else None))
            if self._stop in woken and not self._closing:
                os.read(self._stop, 4096)
                self._called = False
            self._take_all()

    def _have_it_look(self) -> None:
        with self._changed:
            if not (self._called or self._closing):
                self._called = True
                os.write(self._stopped, b"1")

    def _take_all(self) -> None:
        """Look until a whole pause has brought nothing: after a shorter one the last events may be unread."""
        pause = _PAUSE / 8  # how much comes is not known yet
        while not self._closing:
            came = self._drain()
            if not came and pause >= _PAUSE:
                return
            pause = min(_PAUSE, pause * min(4, self._source.room / _FILLED / came)) if came else _PAUSE
            time.sleep(pause)

    def _drain(self) -> int:
        """Take what is there; returns how many came."""
        with self._taking:
            if self._closing:
                return 0
            until = time.monotonic_ns()
            came = self._store.drain()
            self._drain_requests()
            self._drain_questions()
            came += len(self._made)
            # what is later than the last look at the ring waits for the next, which has what happened before
            now = sorted((each for each in self._made if each[0] <= until), key=itemgetter(0))
            self._made = [each for each in self._made if each[0] > until]
            self._store.show([self._decoder.keep(flow, at) for at, flow in now])
            lost = self._note_losses() if came or self._limited else 0
        if came or lost:
            with self._changed:
                self._changed.notify_all()
                arrivals = tuple(self._arrivals)
            for tell in arrivals:
                tell()
        return came

    def _drain_requests(self) -> None:
        """Take what was asked for and answered."""
        for each in self._requests.events() if self._requests is not None else ():
            self._keep(request_flow(each, self.names, **self._about), each.time)

    def _drain_questions(self) -> None:
        """The same of name servers."""
        with suppress(IndexError):
            while True:
                event = self._questions.popleft()
                self._keep(question_flow(event, self.names, **self._about), event.time)

    @property
    def _about(self) -> dict[str, Any]:
        """What flows have that are made here."""
        made = self._decoder
        return {"clock": made.clock, "node": made.node, "emitter": made.emitter}

    def _keep(self, flow: Flow, time: float) -> None:
        self._made.append((round(time * 1e9), flow))

    def _note_losses(self) -> int:
        """Put into the ring what the kernel could not."""
        with self._changed:
            now, noted = time.monotonic_ns(), 0
            for place, (cpu, row) in enumerate(zip(cpus.possible(), self._telling[0], strict=True)):
                missed = row.full + row.limited
                if missed != self._missed[place]:
                    lost = lost_record(cpu, missed - self._missed[place], self._missed_at, now)
                    self._store.show([lost])
                    self._missed[place], noted = missed, noted + 1
            self._missed_at = now
            return noted

    def close(self) -> None:
        """Tell the programs to tell nothing, and stop; does nothing the second time."""
        if self._closing:
            return
        with suppress(DatapathError):
            self._setup[0] = SetupRow(Level.OFF)
        with self._changed:
            self._closing = True
            os.close(self._stopped)
        self._thread.join()
        os.close(self._stop)
        with self._changed:
            self._changed.notify_all()
            arrivals = tuple(self._arrivals)
        for tell in arrivals:
            tell()
        with self._taking:
            self._source.close()
            self._own.close()

    def __repr__(self) -> str:
        if self._closing:
            return "<FlowObserver closed>"
        oldest, end = self._store.span
        return f"<FlowObserver {self.level.name.lower()}: {end - oldest}/{self.capacity} flows>"
