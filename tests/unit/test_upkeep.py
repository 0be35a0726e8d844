"""How often a node collects flows."""

from __future__ import annotations

import threading
import time

import pytest

from k8sdatapath.datapath.conntrack_table import Sweep
from k8sdatapath.errors import KernelError
from k8sdatapath.node import upkeep as upkeep_module
from k8sdatapath.node.upkeep import Upkeep, pause


def swept(entries: int, flows: int = 0) -> Sweep:
    return Sweep(entries, 1000, flows, 0.0)


def test_a_table_that_does_not_grow_is_left_alone_for_long():
    assert pause(swept(0), 0, 10, 0) == 10
    assert pause(swept(500), 500, 10, 0) == 10
    assert pause(swept(300), 500, 10, 0) == 10


def test_the_faster_it_fills_the_sooner_it_is_looked_at_again():
    assert pause(swept(150), 0, 1, 0) == 4  # 150 a second, and 600 until three quarters
    assert pause(swept(300), 0, 1, 0) == 1.5
    assert pause(swept(700), 0, 1, 0) == 1
    assert pause(swept(900), 0, 1, 0) == 1  # too full already
    assert pause(swept(900, flows=450), 0, 10, 0) > 8  # but not for long


def test_collecting_takes_a_tenth_of_a_processor_at_most():
    assert pause(swept(900), 0, 1, 0.5) == 5


def test_it_goes_on_after_an_error_and_ends_when_it_is_closed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(upkeep_module, "_SHORTEST", 0.001)
    monkeypatch.setattr(upkeep_module, "_LONGEST", 0.001)
    done, others = threading.Event(), threading.enumerate()
    results = iter([swept(10, flows=3), swept(4, flows=2)])

    def sweep() -> Sweep:
        try:
            return next(results)
        except StopIteration:
            done.set()
            raise KernelError("read", "kd_conntrack", 5) from None

    with Upkeep(sweep, lambda: 0) as upkeep:
        assert done.wait(10)
    assert (upkeep.sweeps, upkeep.collected, upkeep.last) == (2, 5, swept(4, flows=2))
    assert isinstance(upkeep.error, KernelError)
    assert "upkeep of a node" not in {thread.name for thread in threading.enumerate() if thread not in others}


def test_changes_are_answered_by_one_walk_each_time_and_a_last_one_before_it_ends():
    walks: list[int] = []
    begun, go_on = threading.Event(), threading.Event()

    def reap() -> int:
        walks.append(1)
        begun.set()
        assert go_on.wait(10)
        return 2

    with Upkeep(lambda: swept(0), reap) as upkeep:
        upkeep.reap_soon()
        assert begun.wait(10)
        for _ in range(100):
            upkeep.reap_soon()
        go_on.set()
    assert (len(walks), upkeep.reaped) == (2, 4)


def test_a_walk_that_only_waits_does_not_keep_the_next_one_waiting():
    walks: list[int] = []
    thrice = threading.Event()

    def reap() -> int:
        walks.append(1)
        if len(walks) == 3:
            thrice.set()
        else:
            upkeep.reap_soon()
            time.sleep(0.6)  # ten times as long between two, if it were work
        return 0

    with Upkeep(lambda: swept(0), reap) as upkeep:
        upkeep.reap_soon()
        assert thrice.wait(10)


def test_what_a_process_before_has_not_forgotten_is_forgotten_and_what_fails_is_tried_again(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(upkeep_module, "_SHORTEST", 0.001)
    monkeypatch.setattr(upkeep_module, "_LONGEST", 0.001)
    done = threading.Event()
    results = iter([KernelError("run", "reap_flows", 5), 7])

    def reap() -> int:
        result = next(results, 0)
        if isinstance(result, KernelError):
            raise result
        done.set()
        return result

    with Upkeep(lambda: swept(0), reap) as upkeep:
        assert done.wait(10)
    assert upkeep.reaped == 7


def test_what_a_walk_has_left_to_late_answers_is_taken_away_by_one_more(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(upkeep_module, "_LINGER", 0.05)
    walks: list[float] = []
    again = threading.Event()

    def reap() -> int:
        walks.append(time.monotonic())
        if len(walks) == 2:
            again.set()
        return 0

    with Upkeep(lambda: swept(0), reap) as upkeep:
        asked = time.monotonic()
        upkeep.reap_soon()
        assert again.wait(10)
        time.sleep(0.3)
        assert len(walks) == 2  # and no more, as nobody has asked
    assert walks[1] - asked >= 0.05
