"""Events of several CPUs become one sequence; queues are shared with programs, here written as they do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing

import pytest
from attrs import evolve

from k8sdatapath.datapath import event_source
from k8sdatapath.datapath.event_source import EventSource
from k8sdatapath.datapath.flow_decoder import lost_record
from k8sdatapath.errors import ClosedError
from k8sdatapath.layout import layout_of
from k8sdatapath.maps import MMAPABLE, Array, RingBuffer
from k8sdatapath.node.loading import event_rows
from k8sdatapath.pybpf.cpus import listed, online, possible
from k8sdatapath.tables.events import EVENT_SIZE, EventRow, QueueRow

pytestmark = pytest.mark.kernel
EVENT = layout_of(EventRow)


class Cpus:
    """CPUs that tell, of which 0 and 2 are online, and what their events are read from."""

    def __init__(self, own: ExitStack, rows: int) -> None:
        self.queues = own.enter_context(Array[QueueRow].create("kdtest_queues", 5, flags=MMAPABLE))
        self.rows = own.enter_context(Array[EventRow].create("kdtest_rows", rows, flags=MMAPABLE))
        self.ring = own.enter_context(RingBuffer[EventRow].create("kdtest_ring", 4096))

    def open(self) -> EventSource:
        return EventSource(self.ring, self.queues, self.rows)

    def tell(self, cpu: int, *times: int) -> int:
        """What finds room, as ``kd_event_put()`` does it; returns how many."""
        for count, time in enumerate(times):
            queue = self.queues[cpu]
            first, room = divmod(queue.share, 1 << 32)
            if queue.written - queue.taken >= room:
                self.queues[cpu] = evolve(queue, wanted=queue.wanted or not room)
                return count
            event = evolve(EVENT.unpack(lost_record(cpu, 1, 0, 0)), time=time)
            self.rows[first + queue.written % room] = event
            self.queues[cpu] = evolve(queue, written=queue.written + 1)
        return len(times)


@pytest.fixture
def cpus(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cpus]:
    monkeypatch.setattr(event_source.cpus, "online", lambda: (0, 2))
    with ExitStack() as own:
        yield Cpus(own, 11)


def times(source: EventSource) -> list[int]:
    room = bytearray(64 * EVENT_SIZE)
    count = source.drain_into(room, 0)
    return [EVENT.unpack(room[at * EVENT_SIZE : (at + 1) * EVENT_SIZE]).time for at in range(count)]


def test_events_of_all_cpus_are_in_order_of_time_and_those_of_one_as_they_came(cpus: Cpus) -> None:
    with closing(cpus.open()) as source:
        cpus.tell(0, 1, 5, 4, 20)
        cpus.tell(2, 2, 3, 10)
        assert times(source) == [1, 2, 3, 5, 4, 10, 20]
        assert times(source) == []


def test_a_queue_goes_round_and_what_finds_no_room_is_not_told(cpus: Cpus) -> None:
    with closing(cpus.open()) as source:
        assert source.room == 4  # of eleven for two
        assert cpus.tell(0, 1, 2, 3) == 3
        assert times(source) == [1, 2, 3]
        assert cpus.tell(0, 4, 5, 6, 7, 8) == 4
        assert cpus.tell(2, 9) == 1
        assert times(source) == [4, 5, 6, 7, 9]
        assert cpus.tell(0, 10) == 1
        assert times(source) == [10]


def test_what_a_reader_left_is_there_for_the_next(cpus: Cpus) -> None:
    with closing(cpus.open()) as source:
        cpus.tell(2, 1)
        assert times(source) == [1]
    cpus.tell(0, 2)
    cpus.tell(2, 3)
    with closing(cpus.open()) as source:
        assert times(source) == [2, 3]


def test_a_queue_that_was_of_another_size_begins_anew(cpus: Cpus) -> None:
    cpus.queues[0] = QueueRow(written=5, taken=3, share=10 << 32 | 2)  # of 12 rows
    with closing(cpus.open()) as source:
        assert times(source) == []
        assert cpus.queues[0] == QueueRow(written=5, taken=5, share=4)
        assert cpus.tell(0, 1, 2, 3, 4, 5) == 4
        assert times(source) == [1, 2, 3, 4]


def test_what_a_reader_is_late_to_say_is_not_read_twice_over(cpus: Cpus) -> None:
    """One that was stopped in the middle, and goes on when another has read for long."""
    with closing(cpus.open()) as source:
        for number in range(5):
            cpus.tell(0, number)
            assert times(source) == [number]
        cpus.tell(0, 5, 6)
        cpus.queues[0] = evolve(cpus.queues[0], taken=1)
        assert times(source) == [3, 4, 5, 6]  # no more than the queue has
        assert cpus.tell(0, 7, 8, 9, 10, 11) == 4
        assert times(source) == [7, 8, 9, 10]


def test_a_cpu_that_comes_later_gets_a_share_of_all(cpus: Cpus) -> None:
    """And what the others have told by then is there."""
    with closing(cpus.open()) as source:
        cpus.tell(0, 1, 2)
        assert times(source) == [1, 2]
        cpus.tell(0, 5)
        cpus.tell(2, 3, 4)
        assert cpus.tell(3, 6) == cpus.tell(4, 6) == 0
        assert times(source) == [3, 4, 5]
        assert source.room == 2  # of eleven for four
        for cpu, time in (0, 7), (2, 8), (3, 9), (4, 10):
            assert cpus.tell(cpu, time, 11) == 2
        assert times(source) == [7, 8, 9, 10, 11, 11, 11, 11]
        assert not any(each.wanted for each in cpus.queues)
    with closing(cpus.open()) as source:  # the next reader finds it so
        assert source.room == 2
        assert cpus.tell(3, 12) == 1
        assert times(source) == [12]


def test_shares_that_are_in_each_others_way_are_dealt_out_anew(cpus: Cpus) -> None:
    for cpu in 0, 2:
        cpus.queues[cpu] = QueueRow(share=4)
    with closing(cpus.open()) as source:
        assert [each.share for each in cpus.queues] == [4, 0, 4 << 32 | 4, 0, 0]
        assert times(source) == []


def test_of_rows_that_are_too_few_some_cpus_get_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_source.cpus, "online", lambda: (0, 1, 2))
    with ExitStack() as own:
        cpus = Cpus(own, 2)
        with closing(cpus.open()) as source:
            assert [cpus.tell(cpu, 1) for cpu in range(3)] == [1, 1, 0]
            assert times(source) == [1, 1]
            assert cpus.tell(2, 2) == 0


def test_there_is_no_room_before_a_reader_has_come(cpus: Cpus) -> None:
    assert cpus.tell(0, 1) == 0


def test_closed_twice_and_read_afterwards(cpus: Cpus) -> None:
    source = cpus.open()
    source.close()
    source.close()
    with pytest.raises(ClosedError):
        times(source)


@pytest.mark.parametrize(
    ("processors", "rows"),
    [(1, 65536), (2, 65536), (6, 65536), (16, 65536), (17, 131072), (64, 262144), (500, 262144)],
)
def test_there_are_as_many_rows(processors: int, rows: int) -> None:
    assert event_rows(processors) == rows


def test_cpus_are_listed_with_their_holes() -> None:
    assert listed("0-2,5,8-9\n") == (0, 1, 2, 5, 8, 9)
    assert listed("\n") == ()
    assert {*online()} <= {*possible()}
