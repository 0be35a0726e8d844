"""Rings of flows and their readers: what is last, what comes, what was lost."""

from __future__ import annotations

import threading
import time

import pytest
from attrs import evolve

from k8sdatapath.errors import ModelError
from k8sdatapath.flow_source import FlowRing, Seen
from k8sdatapath.model.flow import Flow, LostEvent, LostEventSource, Verdict
from tests.support.flows import SECOND, START


def flow(number: int, **changes: object) -> Flow:
    return evolve(Flow(time=START + number * SECOND, uuid=str(number)), **changes)


def ring(count: int, capacity: int = 100) -> FlowRing:
    found = FlowRing(capacity)
    found.add(*(flow(number) for number in range(count)))
    return found


def numbers(items: list[Seen]) -> list[int]:
    return [int(item.uuid) for item in items if isinstance(item, Flow)]


def even(each: Flow) -> bool:
    return int(each.uuid) % 2 == 0


def test_the_last_ones_are_told_oldest_first() -> None:
    assert numbers(ring(10).last(3)) == [7, 8, 9]
    assert numbers(ring(10).last()) == list(range(10))
    assert numbers(ring(0).last(3)) == []
    assert numbers(ring(250).last(3)) == [247, 248, 249]


class Busy(FlowRing):
    """One to which a flow comes whenever somebody looks how far it goes."""

    def span(self) -> tuple[int, int]:
        found = super().span()
        self.add(flow(found[1]))
        return found


def test_there_are_as_many_last_ones_though_others_come_meanwhile() -> None:
    source = Busy()
    source.add(*(flow(number) for number in range(10)))
    assert numbers(source.last(1)) == [9]
    assert len(source.last(3)) == 3
    assert len(source.last(3, matches=even)) == 3


def test_a_number_of_flows_is_0_or_more() -> None:
    source = ring(3)
    assert (
        source.last(0) == source.first(0) == source.last(0, since=START) == source.follow(last=0).take() == []
    )
    for ask in (source.last, source.first, lambda number: source.follow(last=number)):
        with pytest.raises(ModelError, match="0 or more"):
            ask(-1)


def test_filters_count_first() -> None:
    assert numbers(ring(1000, 900).last(300, matches=even)) == list(range(400, 1000, 2))


def test_since_beats_the_number_which_counts_from_there() -> None:
    since = START + 4 * SECOND
    assert numbers(ring(10).last(since=since)) == [4, 5, 6, 7, 8, 9]
    assert numbers(ring(10).last(2, since=since)) == [4, 5]
    assert numbers(ring(10).last(since=since + 1, until=START + 7 * SECOND)) == [5, 6, 7]
    assert numbers(ring(10).last(since=START + 100 * SECOND)) == []


def test_the_first_ones_are_those_that_are_still_there() -> None:
    assert numbers(ring(150).first(2)) == [50, 51]
    assert numbers(ring(150).first(2, matches=lambda each: int(each.uuid) > 60)) == [61, 62]


def test_who_follows_is_told_what_comes() -> None:
    source = ring(3)
    cursor, with_last = source.follow(matches=even), source.follow(last=2)
    assert cursor.take() == []
    source.add(flow(3), flow(4))
    assert numbers(cursor.take()) == [4]
    assert numbers(with_last.take()) == [1, 2, 3, 4]
    threading.Timer(0.05, lambda: source.add(flow(5), flow(6))).start()
    assert numbers(cursor.take(10)) == [6]


def test_who_waits_in_vain_returns() -> None:
    started = time.monotonic()
    assert ring(3).follow().take(0.05) == []
    assert 0.04 < time.monotonic() - started < 5


def test_a_slow_reader_is_told_what_it_has_missed() -> None:
    source = ring(2)
    cursor = source.follow(last=2)
    assert numbers(cursor.take()) == [0, 1]
    source.add(*(flow(number) for number in range(2, 152)))
    found = cursor.take()
    assert found[0] == LostEvent(
        LostEventSource.HUBBLE_RING_BUFFER, 50, None, START + SECOND, START + 52 * SECOND
    )
    assert numbers(found) == list(range(52, 152))


def test_losses_are_told_once_a_second_and_added_up(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    source = ring(0, capacity=10)
    cursor = source.follow()
    found: list[Seen] = []
    for start in range(0, 60, 20):
        source.add(*(flow(number) for number in range(start, start + 20)))
        found += cursor.take()
    assert [item.num_events_lost for item in found if isinstance(item, LostEvent)] == [10]
    now[0] += 1.0
    source.add(flow(60))
    later = cursor.take()
    assert isinstance(later[0], LostEvent)
    assert later[0].num_events_lost == 20
    assert numbers(later) == [60]


@pytest.mark.parametrize(("end", "lost"), [(40, [10, 10]), (35, [10, 10]), (25, [10, 5])])
def test_a_reader_that_ends_is_told_of_all_that_it_has_missed(end: int, lost: list[int]) -> None:
    source = ring(0, capacity=10)
    cursor = source.cursor(0, end=end)
    found: list[Seen] = []
    for start in range(0, 40, 20):
        source.add(*(flow(number) for number in range(start, start + 20)))
        found += cursor.take()
    assert cursor.over
    assert [item.num_events_lost for item in found if isinstance(item, LostEvent)] == lost
    assert len(numbers(found)) + sum(lost) == end


def test_a_reader_is_told_what_it_has_missed_when_it_is_ended() -> None:
    source = ring(0, capacity=10)
    cursor = source.follow()
    for start in range(0, 40, 20):
        source.add(*(flow(number) for number in range(start, start + 20)))
        cursor.take()
    cursor.end_at(40)
    (lost,) = cursor.drain()
    assert isinstance(lost, LostEvent)
    assert lost.num_events_lost == 10


def test_losses_in_the_ring_are_told_whatever_is_asked_and_do_not_count() -> None:
    source = FlowRing(10)
    lost = LostEvent(LostEventSource.PERF_EVENT_RING_BUFFER, 7, 1, START, START)
    source.add(flow(0), lost, flow(1), flow(2))
    assert source.last(2, matches=even) == [flow(0), lost, flow(2)]


def test_the_rate_is_that_of_the_last_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time_ns()
    monkeypatch.setattr(time, "time_ns", lambda: now)
    source = FlowRing(10_000)
    source.add(*(Flow(time=now - age * SECOND // 100) for age in range(9000, 0, -1)))
    assert 99 < source.rate() < 101
    short = FlowRing(1000)
    short.add(*(Flow(time=now - age * SECOND // 100) for age in range(9000, 0, -1)))
    assert 90 < short.rate() < 101
    assert FlowRing(10).rate() == 0


def test_readers_do_not_disturb_each_other() -> None:
    source = FlowRing(64)
    dropped = source.follow(matches=lambda each: each.verdict == Verdict.DROPPED)
    cursors = [source.follow() for _ in range(50)]
    for number in range(50):
        source.add(flow(number, verdict=Verdict.DROPPED if number == 7 else Verdict.FORWARDED))
    assert [numbers(cursor.take()) for cursor in cursors] == [list(range(50))] * 50
    assert numbers(dropped.take()) == [7]
