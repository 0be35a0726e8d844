"""Reconciler: what is wanted gets into the kernel and stays there, whatever fails on the way."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
from attrs import evolve

from k8sdatapath.component import Delta, ObjectKey, Report
from k8sdatapath.datapath.service_table import ServiceTable
from k8sdatapath.errors import (
    CapacityError,
    ClosedError,
    KernelError,
    ManifestError,
    NotProgrammedError,
    SourceError,
)
from k8sdatapath.model import Backend, Exposure, Frontend, Service
from k8sdatapath.pins import PinsBusyError
from k8sdatapath.reconcile import Applied, Feed, Reconciler, Retry, State, Status
from tests.support.service_maps import memory

SOON = 30.0
AT_ONCE = Retry(first=0.01, most=0.05)


def service(port: int, *hosts: int, **options: Any) -> Service:
    backends = [Backend(f"10.244.1.{host}", 8080) for host in hosts]
    return Service("10.96.0.10", port, backends=backends, **({"name": f"s{port}"} | options))


def key(port: int) -> ObjectKey:
    return "Service", "", f"s{port}"


def until(condition: Callable[[], object], seconds: float = SOON) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.005)


class Flaky:
    """A service table that fails when told to."""

    def __init__(self, table: ServiceTable) -> None:
        self.table = table
        self.fails: Callable[[set[Frontend]], Exception | None] = lambda _: None
        self.calls: list[set[Frontend]] = []

    @property
    def frontends(self) -> frozenset[Frontend]:
        return self.table.frontends

    def change(self, upserts: Iterable[Service] = (), removed: Iterable[Frontend] = ()) -> Report:
        upserts, removed = list(upserts), list(removed)
        touched = {*(each.frontend for each in upserts), *removed}
        self.calls.append(touched)
        if error := self.fails(touched):
            raise error
        return self.table.change(upserts, removed)

    def verify(self) -> tuple[Frontend, ...]:
        return self.table.verify()


@pytest.fixture
def kernel() -> dict[str, Any]:
    return memory(rows=8, frontends=8)


@pytest.fixture
def table(kernel: dict[str, Any]) -> Iterator[Flaky]:
    with ServiceTable.bind(kernel) as bound:
        yield Flaky(bound)


@pytest.fixture
def feed() -> Feed:
    return Feed()


@pytest.fixture
def running(feed: Feed, table: Flaky) -> Iterator[Reconciler]:
    with Reconciler(feed, table, retry=AT_ONCE) as reconciler:
        yield reconciler.start()


def here(table: Flaky) -> set[Service]:
    return set(table.table.dump())


class TestFollowing:
    def test_nothing_is_written_before_the_source_is_synced(
        self, running: Reconciler, feed: Feed, table: Flaky
    ) -> None:
        table.table.upsert(service(99, 9))
        feed.upsert(service(80, 1))
        time.sleep(0.4)  # longer than a tick
        assert here(table) == {service(99, 9)}
        assert not running.synced
        feed.replace([service(80, 1), service(81, 2)])
        assert running.wait_synced(SOON)
        assert here(table) == {service(80, 1), service(81, 2)}
        assert len(table.calls) == 1  # one plan for all, and what is not wanted goes with it

    def test_an_empty_world_is_wanted_too(self, running: Reconciler, feed: Feed, table: Flaky) -> None:
        table.table.upsert(service(99, 9))
        feed.replace([])
        assert running.wait_synced(SOON)
        assert here(table) == set()

    def test_changes_follow(self, running: Reconciler, feed: Feed, table: Flaky) -> None:
        feed.replace([service(80, 1)])
        feed.upsert(service(80, 1, 2))
        running.wait_programmed(service(80, 1, 2), SOON)
        assert table.table.get(service(80).frontend) == service(80, 1, 2)
        feed.remove(service(80).frontend)
        until(lambda: not here(table))
        assert running.status(key(80)) == Status(State.UNKNOWN)

    def test_many_changes_of_one_service_are_one(self, running: Reconciler, feed: Feed, table: Flaky) -> None:
        feed.replace([])
        running.wait_synced(SOON)
        busy = threading.Event()
        table.fails = lambda _: busy.wait(SOON) and None
        for number in range(1, 200):
            feed.upsert(service(80, number % 3 + 1), service(81, 5))
        busy.set()
        feed.upsert(service(80, 7))
        running.wait_programmed(service(80, 7), SOON)
        assert len(table.calls) < 10

    def test_followers_are_told_what_was_done(self, feed: Feed, table: Flaky) -> None:
        seen: list[Applied] = []
        with Reconciler(feed, table, seen.append).start() as running:
            feed.replace([service(80, 1)])
            running.wait_programmed(key(80), SOON)
            feed.replace([])
            until(lambda: sum(each.report.removed for each in seen) == 1)
        assert seen[0].report.added == 1
        assert seen[0].delta.upserts == (service(80, 1),)

    def test_metrics_count(self, running: Reconciler, feed: Feed) -> None:
        feed.replace([service(80, 1)])
        running.wait_synced(SOON)
        feed.upsert(service(80, 2), service(81, 2))
        running.wait_programmed(service(81, 2), SOON)
        metrics = running.metrics
        assert (metrics.added, metrics.changed) == (2, 1)
        assert metrics.event_to_kernel.count == 2
        assert 0 < metrics.event_to_kernel.quantile(0.99) < SOON
        assert metrics.network_programming.count == 0  # a feed does not tell what triggered it


class TestFailing:
    def test_what_does_not_fit_waits_for_room_and_the_rest_goes_on(
        self, running: Reconciler, feed: Feed, table: Flaky
    ) -> None:
        feed.replace([service(80, 1, 2, 3), service(81, 4, 5, 6), service(82, 7, 8, 9)])
        running.wait_synced(SOON)
        assert len(here(table)) == 2
        [(lacking, status)] = running.errors().items()
        assert status.state is State.ERROR
        assert "3 new backends needed, 2 fit" in status.reason
        assert status.retry_at > 0
        with pytest.raises(NotProgrammedError, match="new backends needed") as caught:
            running.wait_programmed(lacking, 0.0)
        assert caught.value.key == lacking
        other = next(iter(here(table)))
        feed.remove(other.frontend)
        running.wait_programmed(lacking, SOON)
        assert running.errors() == {}

    def test_a_service_that_the_kernel_refuses_does_not_hold_up_the_others(
        self, running: Reconciler, feed: Feed, table: Flaky
    ) -> None:
        poison = service(83).frontend
        table.fails = lambda touched: KernelError("update", "map", 22) if poison in touched else None
        feed.replace([service(port, 1) for port in range(80, 86)])
        for port in (80, 81, 82, 84, 85):
            running.wait_programmed(service(port, 1), SOON)
        until(lambda: running.status(key(83)).state is State.ERROR)
        assert "update: map" in running.status(key(83)).reason
        feed.upsert(service(80, 2))
        running.wait_programmed(service(80, 2), SOON)
        table.fails = lambda _: None
        running.wait_programmed(service(83, 1), SOON)
        assert running.metrics.failures > 0
        assert running.metrics.retries > 0

    def test_only_the_failed_are_tried_again_and_ever_later(self, feed: Feed, table: Flaky) -> None:
        poison = service(81).frontend
        table.fails = lambda touched: KernelError("update", "map", 12) if poison in touched else None
        with Reconciler(feed, table, retry=Retry(first=0.3, most=60)).start() as running:
            feed.replace([service(80, 1), service(81, 1)])
            running.wait_programmed(service(80, 1), SOON)
            until(lambda: running.status(key(81)).state is State.ERROR)
            until(lambda: running.metrics.retries >= 2)
            early = [touched for touched in table.calls if poison not in touched]
            assert len(early) < 6  # full plans once after each failure, not all the time
            assert running.status(key(81)).retry_at > time.time() + 0.2

    def test_a_busy_pin_directory_is_waited_for(self, running: Reconciler, feed: Feed, table: Flaky) -> None:
        table.fails = lambda _: PinsBusyError("lock", "/sys/fs/bpf/kd", 11, "process 7 has it")
        feed.replace([service(80, 1)])
        until(lambda: running.status(key(80)).state is State.ERROR)
        assert "process 7 has it" in running.status(key(80)).reason
        assert not running.synced
        table.fails = lambda _: None
        running.wait_programmed(service(80, 1), SOON)
        assert running.synced

    def test_a_follower_that_fails_is_called_again_with_all_that_was_done(
        self, feed: Feed, table: Flaky
    ) -> None:
        seen: list[Applied] = []

        def follower(applied: Applied) -> None:
            seen.append(applied)
            if len(seen) < 3:
                raise RuntimeError("not yet")

        with Reconciler(feed, table, follower, retry=AT_ONCE).start() as running:
            feed.replace([service(80, 1)])
            until(lambda: len(seen) == 3)
            assert seen[-1].report.added == 1
            assert running.metrics.follower_failures == 2
            feed.replace([])
            until(lambda: len(seen) == 4)
            assert (seen[-1].report.added, seen[-1].report.removed) == (0, 1)

    def test_errors_are_told_when_they_come_and_go(self, feed: Feed, table: Flaky) -> None:
        told: list[tuple[ObjectKey, Status]] = []
        poison = service(80).frontend
        table.fails = lambda touched: KernelError("update", "map", 12) if poison in touched else None
        with Reconciler(
            feed, table, retry=AT_ONCE, on_status=lambda *news: told.append(news)
        ).start() as running:
            feed.replace([service(80, 1)])
            until(lambda: running.metrics.retries >= 3)
            table.fails = lambda _: None
            until(lambda: len(told) == 2)
        assert [(each, status.state) for each, status in told] == [
            (key(80), State.ERROR),
            (key(80), State.PROGRAMMED),
        ]

    def test_while_an_object_cannot_be_read_nothing_unknown_is_removed(self, table: Flaky) -> None:
        table.table.upsert(service(99, 9))
        bad: ObjectKey = "Service", "default", "web"
        source = Scripted(
            Delta(upserts=(service(80, 1),), errors={bad: ManifestError("api", "spec", "cannot be")}),
            Delta(),
            Delta(errors={bad: None}),
        )
        with Reconciler(source, table).start() as running:
            source.step.release()
            assert running.wait_synced(SOON)
            assert running.status(bad).state is State.ERROR
            assert "cannot be" in running.status(bad).reason
            source.step.release()
            assert here(table) == {service(80, 1), service(99, 9)}
            source.step.release()
            until(lambda: here(table) == {service(80, 1)})


class Scripted:
    """A source of given deltas, one with each release."""

    def __init__(self, *deltas: Delta, then: Exception | None = None) -> None:
        self.step = threading.Semaphore(0)
        self._deltas, self._then = deltas, then
        self._closed = False

    def deltas(self, timeout: float | None = None) -> Iterator[Delta]:
        for delta in self._deltas:
            self.step.acquire()
            if self._closed:
                return
            yield delta
        if self._then is not None:
            raise self._then
        self.step.acquire()

    def close(self) -> None:
        self._closed = True
        self.step.release(10)


class TestLife:
    def test_no_thread_survives_close(self, running: Reconciler, feed: Feed) -> None:
        feed.replace([service(80, 1)])
        running.wait_synced(SOON)
        running.close()
        running.close()
        assert not running.running
        assert not [each for each in threading.enumerate() if each.name == "reconciler"]
        with pytest.raises(ClosedError):
            feed.upsert(service(81, 1))
        with pytest.raises(ClosedError):
            running.start()
        with pytest.raises(ClosedError, match="has ended"):
            running.wait_programmed(service(99), 1)

    def test_it_runs_in_the_thread_of_the_caller_until_it_is_closed(self, feed: Feed, table: Flaky) -> None:
        reconciler = Reconciler(feed, table)
        feed.replace([service(80, 1)])
        waiter = threading.Thread(
            target=lambda: (reconciler.wait_programmed(key(80), SOON), reconciler.close())
        )
        waiter.start()
        reconciler.run()
        waiter.join()
        assert here(table) == {service(80, 1)}

    def test_a_source_that_ends_with_an_error_is_told_and_what_is_written_stays(self, table: Flaky) -> None:
        source = Scripted(Delta(upserts=(service(80, 1),)), then=SourceError("the token is not valid"))
        source.step.release()
        with Reconciler(source, table) as reconciler, pytest.raises(SourceError, match="token"):
            reconciler.run()
        assert isinstance(reconciler.error, SourceError)
        assert here(table) == {service(80, 1)}

    def test_an_interrupt_ends_it_and_closes_the_source(self, table: Flaky) -> None:
        feed = Feed()

        def interrupt(_: Applied) -> None:
            raise KeyboardInterrupt

        reconciler = Reconciler(feed, table, interrupt)
        feed.replace([service(80, 1)])
        with pytest.raises(KeyboardInterrupt):
            reconciler.run()
        with pytest.raises(ClosedError):
            feed.replace([])
        assert here(table) == {service(80, 1)}

    def test_beside_an_event_loop(self, feed: Feed, table: Flaky) -> None:
        async def main() -> None:
            reconciler = Reconciler(feed, table)
            task = asyncio.create_task(reconciler.run_async())
            feed.replace([service(80, 1)])
            await asyncio.to_thread(reconciler.wait_programmed, key(80), SOON)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert not reconciler.running

        asyncio.run(main())
        assert here(table) == {service(80, 1)}
        assert not [each for each in threading.enumerate() if each.name == "reconciler"]

    def test_run_async_ends_when_it_is_closed_from_elsewhere(self, feed: Feed, table: Flaky) -> None:
        async def main() -> None:
            reconciler = Reconciler(feed, table)
            task = asyncio.create_task(reconciler.run_async())
            await asyncio.sleep(0)
            await asyncio.to_thread(reconciler.close)
            await asyncio.wait_for(task, SOON)

        asyncio.run(main())


class TestDrift:
    @pytest.mark.parametrize("spoil", ["frontend", "backend", "set", "stranger"])
    def test_what_somebody_else_changes_is_found_and_repaired(
        self, kernel: dict[str, Any], table: Flaky, feed: Feed, spoil: str
    ) -> None:
        wanted = [
            service(80, 1, 2),
            service(81, 3, exposed=[Exposure("node_port", "192.0.2.11", 30080)], name="default/web"),
        ]
        with Reconciler(feed, table, verify_every=0.05).start() as running:
            feed.replace(wanted)
            running.wait_synced(SOON)
            with table.table._lock:
                self.spoil(kernel, spoil)
            until(lambda: running.metrics.drifted > 0)
            until(lambda: here(table) == set(wanted) and table.table.verify() == ())
        assert {each.name for each in table.table.dump()} == {"s80", "default/web"}

    def spoil(self, kernel: dict[str, Any], what: str) -> None:
        frontends = kernel["kd_frontends"]
        by_port = {found.port: found for found in frontends}
        if what == "frontend":
            del frontends[by_port[30080]]
        elif what == "backend":
            kernel["kd_backends"][0] = evolve(kernel["kd_backends"][0], status=0)
        elif what == "set":
            place = 3 * frontends[by_port[80]].service
            kernel["kd_sets"][place] = evolve(kernel["kd_sets"][place], count=1)
        else:
            stranger = type(by_port[80])(by_port[80].addr, 99, 6)
            frontends[stranger] = frontends[by_port[80]]

    def test_nothing_is_found_where_nothing_is(self, table: Flaky) -> None:
        table.table.upsert(
            service(80, 1, 2),
            Service(
                "10.96.0.10", 81, backends=[Backend("10.244.1.1", 1, weight=4), Backend("10.244.1.2", 1)]
            ),
        )
        assert table.table.verify() == ()


def test_a_capacity_error_is_what_it_was() -> None:
    """Statuses show the message of the error, so it has to say who and how much."""
    assert "s80: 3 slots needed, 2 fit" in str(CapacityError("slots", 3, 2, "s80"))
