"""Reconciler over Kubernetes objects: statuses, latency as kube-proxy tells it, health checks, load."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
from attrs import evolve

from k8sdatapath.component import ObjectKey
from k8sdatapath.datapath.service_table import ServiceTable
from k8sdatapath.errors import ManifestError, NotProgrammedError
from k8sdatapath.kube import Batch, NodeView, ObjectEvent, node_local
from k8sdatapath.kube.translator import NodeDelta
from k8sdatapath.model import Frontend, Selection, Service
from k8sdatapath.reconcile import Applied, Reconciler, State
from tests.support.service_maps import memory
from tests.unit.test_kube_translator import NODE, event, gone, service, slice_of, unreadable
from tests.unit.test_reconcile import SOON, until

WEB = Frontend("10.96.0.10", 80)
SLICE: ObjectKey = ("EndpointSlice", "default", "web-1")


class Objects:
    """A source in memory: told by calls."""

    def __init__(self) -> None:
        self._news = threading.Condition()
        self._pending: dict[ObjectKey, ObjectEvent] = {}
        self._synced = self._closed = False

    def tell(self, *events: ObjectEvent, synced: bool = True) -> None:
        with self._news:
            self._pending |= {each.key: each for each in events}
            self._synced |= synced
            self._news.notify_all()

    def batches(self, timeout: float | None = None) -> Iterator[Batch]:
        while not self._closed:
            with self._news:
                self._news.wait_for(lambda: self._pending or self._closed, timeout)
                pending, self._pending = self._pending, {}
                batch = Batch(tuple(pending.values()), self._synced)
            yield batch

    def close(self) -> None:
        with self._news:
            self._closed = True
            self._news.notify_all()

    def __enter__(self) -> Objects:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@pytest.fixture
def objects() -> Objects:
    return Objects()


@pytest.fixture
def table() -> Iterator[ServiceTable]:
    with ServiceTable.bind(memory(frontends=256, rows=1024, slots=64)) as bound:
        yield bound


@pytest.fixture
def running(objects: Objects, table: ServiceTable) -> Iterator[Reconciler]:
    with Reconciler(node_local(objects, "n1"), table) as reconciler:
        yield reconciler.start()


def test_half_of_the_objects_change_nothing(
    running: Reconciler, objects: Objects, table: ServiceTable
) -> None:
    table.upsert(Service("10.96.0.99", 1), Service("10.96.0.99", 2))
    objects.tell(event(service()), synced=False)
    until(lambda: running.status(("Service", "default", "web")).state is State.UNKNOWN)
    time.sleep(0.3)
    assert len(table) == 2
    objects.tell(event(slice_of("web", 1)))
    running.wait_programmed(SLICE, SOON)
    assert [(each.frontend, len(each.backends)) for each in table.dump()] == [(WEB, 1)]


def test_what_is_wrong_is_told_before_all_is_known(objects: Objects, table: ServiceTable) -> None:
    told: list[str] = []
    reconciler = Reconciler(
        node_local(objects, "n1"), table, on_status=lambda key, status: told.append(status.reason)
    )
    with reconciler.start():
        bad = ManifestError("web.yaml", "spec", "missing")
        objects.tell(ObjectEvent("Service", "default", "web", None, 0.0, bad), synced=False)
        until(lambda: told == ["web.yaml: spec: missing"])
        assert not reconciler.synced
        assert list(reconciler.errors()) == [("Service", "default", "web")]


def test_objects_are_waited_for_by_key_and_by_what_they_are_to_be(
    running: Reconciler, objects: Objects, table: ServiceTable
) -> None:
    objects.tell(event(service()), event(slice_of("web", 1)), event(NODE))
    running.wait_programmed(("Node", "", "n1"), SOON)
    running.wait_programmed(slice_of("web", 1), SOON)
    later = slice_of("web", 1, 2)
    with pytest.raises(NotProgrammedError, match="EndpointSlice default/web-1 is not programmed after 0 s"):
        running.wait_programmed(later, 0)
    objects.tell(event(later))
    running.wait_programmed(later, SOON)
    assert len(table.get(WEB).backends) == 2
    objects.tell(gone(service()))
    until(lambda: running.status(("Service", "default", "web")).state is State.UNKNOWN)
    assert WEB not in table


def test_a_service_that_gets_its_place_when_another_goes_is_programmed(
    running: Reconciler, objects: Objects, table: ServiceTable
) -> None:
    """Nothing more is told of it: it was right all the time, and lost to another."""
    key: ObjectKey = ("Service", "default", "web")
    objects.tell(event(service("first")), event(service("web")), event(slice_of("web", 1)))
    until(lambda: running.status(key).state is State.ERROR)
    objects.tell(event(service("web", selection=Selection.MAGLEV)), event(slice_of("web", 1, 2)))
    running.wait_programmed(slice_of("web", 1, 2), SOON)
    with pytest.raises(NotProgrammedError, match="is taken"):
        running.wait_programmed(key, 0)
    objects.tell(gone(service("first")))
    running.wait_programmed(key, SOON)
    running.wait_programmed(service("web", selection=Selection.MAGLEV), SOON)
    assert table.get(WEB).name == "default/web"
    objects.tell(gone(service("web")))
    until(lambda: running.status(key).state is State.UNKNOWN)
    assert key not in running.statuses()


def test_what_cannot_be_read_is_reported_and_keeps_what_it_had(
    running: Reconciler, objects: Objects, table: ServiceTable
) -> None:
    objects.tell(event(service()), event(slice_of("web", 1)))
    running.wait_programmed(SLICE, SOON)
    objects.tell(unreadable(slice_of()))
    until(lambda: running.status(SLICE).state is State.ERROR)
    assert running.status(SLICE).reason == "api: spec: cannot be"
    assert len(table.get(WEB).backends) == 1
    objects.tell(event(slice_of("web")))
    running.wait_programmed(SLICE, SOON)
    assert table.get(WEB).backends == ()


def test_programming_latency_is_counted_from_the_trigger_and_from_the_event(
    running: Reconciler, objects: Objects
) -> None:
    long_ago = evolve(slice_of("web", 1), triggered=time.time() - 1000)
    objects.tell(event(service()), event(long_ago))
    running.wait_programmed(SLICE, SOON)
    metrics = running.metrics  # what was there before us is no change
    assert (metrics.network_programming.count, metrics.event_to_kernel.count) == (
        0,
        0,
    )
    now = evolve(slice_of("web", 1, 2), triggered=time.time())
    objects.tell(event(now))
    running.wait_programmed(now, SOON)
    assert (metrics.network_programming.count, metrics.event_to_kernel.count) == (1, 1)
    assert 0 < metrics.event_to_kernel.sum < SOON
    assert 0 < metrics.network_programming.sum < SOON
    bounds = [bound for bound, _ in metrics.network_programming.cumulative()]
    assert (bounds[:3], bounds[-2:]) == ([0.25, 0.5, 1.0], [300, float("inf")])


def test_followers_have_the_health_checks(objects: Objects, table: ServiceTable) -> None:
    seen: list[Applied] = []
    view = NodeView("n1", addresses=["192.0.2.11"])
    with Reconciler(node_local(objects, view), table, seen.append).start() as running:
        balanced = service(kind="LoadBalancer", external_local=True, health_port=32000)
        objects.tell(event(balanced), event(slice_of("web", 1)))
        running.wait_programmed(SLICE, SOON)
        objects.tell(event(slice_of("web")))
        until(lambda: len(seen) == 2)
    counts = []
    for each in seen:
        assert isinstance(each.delta, NodeDelta)
        counts.append([check.ipv4 for check in each.delta.health_checks])
    assert counts == [[1], [0]]


def test_ten_thousand_changes_come_to_a_few(
    running: Reconciler, objects: Objects, table: ServiceTable
) -> None:
    names = [f"s{number}" for number in range(100)]
    made = [service(name, f"10.96.1.{number}") for number, name in enumerate(names)]
    objects.tell(*map(event, made))
    running.wait_synced(SOON)
    changes = [slice_of(names[number % 100], 1 + number // 100 % 9) for number in range(10_000)]
    for each in changes:
        objects.tell(event(each))
    for each in changes[-100:]:
        running.wait_programmed(each, SOON)
    assert running.metrics.changed < 5_000
    hosts = {str(backend.address) for each in table.dump() for backend in each.backends}
    assert hosts == {f"10.244.1.{1 + 9_999 // 100 % 9}"}
