"""Allocators and collectors: what their users see, and the races that are known to matter."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import pytest

from k8sdatapath.errors import CapacityError, ClosedError, KeyNotFoundError, ModelError, StoreError
from k8sdatapath.identity import (
    Collected,
    Collecting,
    Collector,
    MemoryStore,
    NetworkAllocator,
    StoreAllocator,
    Timing,
)
from k8sdatapath.identity.records import IDENTITIES, NUMBERS
from k8sdatapath.model.identity import CLUSTER_NUMBERS, LOCAL_NUMBERS, Identity, well_known
from tests.support.identities import Actor, Fate, Stage, app
from tests.support.watching import wait

TIMING = Timing(beat=1, timeout=10, grace=5, quarantine=20)


class Time:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class World:
    """A store, nodes, and a collector; time passes when told."""

    def __init__(self, store: Any) -> None:
        self.store, self.time = store, Time()
        self.collector = Collector(store, timing=TIMING, clock=self.time)

    def node(self, name: str, **options: Any) -> StoreAllocator:
        return StoreAllocator(self.store, name, timing=TIMING, beats=False, clock=self.time, **options)

    def after(self, seconds: float) -> str:
        self.time.now += seconds
        return str(self.collector.collect())


def test_what_is_no_set_of_labels_or_identity_is_an_error(world: World) -> None:
    with world.node("n1") as node:
        with pytest.raises(ModelError, match=r"'k8s:app=web' is no Labels: pod_labels makes those of a pod"):
            node.acquire("k8s:app=web")  # type: ignore[arg-type]
        with pytest.raises(ModelError, match=r"300 is no Identity: acquire returns one"):
            node.release(300)  # type: ignore[arg-type]
        assert node.in_use() == ()


@pytest.fixture
def world() -> World:
    return World(MemoryStore())


@pytest.fixture
def stage() -> World:
    return World(Stage())


def steps(actor: Actor, number: int) -> None:
    for _ in range(number):
        actor.step(Fate.DONE)


def finish(actor: Actor) -> None:
    while not actor.done:
        actor.step(Fate.DONE)


def acting(world: World, task: Callable[[], object]) -> Actor:
    return Actor(world.store, lambda: (task(), None)[1])


def test_one_number_for_a_set_on_all_nodes(world: World) -> None:
    one, two = world.node("n1"), world.node("n2")
    web = one.acquire(app(1))
    assert two.acquire(app(1)) == web == one.lookup(web.number) == world.node("n3").lookup(web.number)
    assert web.number in CLUSTER_NUMBERS
    assert two.acquire(app(2)).number != web.number
    assert one.in_use() == (web,)
    assert one.lookup(9999) is None
    assert str(one.lookup(2)) == "2 (reserved:world=)"


def test_threads_of_many_nodes_race(world: World) -> None:
    nodes = [world.node(f"n{each}") for each in range(8)]
    barrier = threading.Barrier(16)

    def one(index: int) -> list[Identity]:
        barrier.wait()
        return [nodes[index % 8].acquire(app((each + index) % 30)) for each in range(30)]

    with ThreadPoolExecutor(16) as pool:
        found = {each for given in pool.map(one, range(16)) for each in given}
    assert len(found) == len({each.number for each in found}) == len({each.labels for each in found}) == 30


def test_fixed_ones_need_no_store() -> None:
    class Away(MemoryStore):
        def create(self, *args: Any) -> Any:
            raise StoreError("away")

    fixed = well_known() | {app(1): 128}
    with StoreAllocator(Away(), "n1", fixed=fixed) as identities:
        dns = next(iter(well_known()))
        assert identities.acquire(dns).number == 102
        assert identities.acquire(app(1)) == identities.lookup(128) == Identity(128, app(1))
        with pytest.raises(StoreError, match="away"):
            identities.acquire(app(2), timeout=0)
        identities.release(Identity(128, app(1)))
    with pytest.raises(ModelError, match="fixed"):
        StoreAllocator(Away(), "n1", fixed={app(1): 300})
    with pytest.raises(ModelError, match="name of a node"):
        StoreAllocator(Away(), "N/1")


def test_while_the_store_is_away_known_ones_go_on_and_new_ones_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(MemoryStore())
    node = world.node("n1")
    web = node.acquire(app(1))
    away = threading.Event()
    create = MemoryStore.create
    update = MemoryStore.update

    def failing(call: Any) -> Any:
        def answer(self: MemoryStore, *args: Any) -> Any:
            if away.is_set():
                raise StoreError("away")
            return call(self, *args)

        return answer

    monkeypatch.setattr(MemoryStore, "create", failing(create))
    monkeypatch.setattr(MemoryStore, "update", failing(update))
    away.set()
    assert node.acquire(app(1), timeout=0) == web
    with pytest.raises(StoreError):
        node.acquire(app(2), timeout=0)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(node.acquire, app(2))
        away.clear()
        assert waiting.result(10).number != web.number
    away.set()
    world.time.now += TIMING.validity + 1  # others may have been given its number: it is not given out again
    assert not node.valid
    with pytest.raises(StoreError):
        node.acquire(app(1), timeout=0)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(node.acquire, app(3))
        node.close()
        with pytest.raises(ClosedError):
            waiting.result(10)


def test_what_nobody_uses_is_deleted_and_its_number_waits(world: World) -> None:
    node = world.node("n1", numbers=[300])
    web = node.acquire(app(1))
    with pytest.raises(CapacityError, match=r"2 numbers of identities needed, 1 fit.*a Collector"):
        node.acquire(app(2), timeout=0)
    assert node.acquire(app(1)) == web
    for _ in range(4):
        node.beat()
        world.after(9)
    assert world.store.get(IDENTITIES, app(2).hash) is None  # which never came to a number
    node.release(web)
    node.release(web)
    with pytest.raises(KeyNotFoundError):
        node.release(web)
    node.beat()
    assert world.after(0) == "0 nodes gone, 0 identities deleted, 0 numbers free"
    node.beat()
    assert world.after(6) == "0 nodes gone, 1 identities deleted, 0 numbers free"
    for _ in range(2):
        node.beat()
        with pytest.raises(CapacityError):
            node.acquire(app(2), timeout=0)
        assert world.after(9) == "0 nodes gone, 0 identities deleted, 0 numbers free"
    node.beat()
    assert world.after(9).endswith("1 numbers free")
    assert node.acquire(app(2)).number == 300


def test_a_restart_keeps_what_was_in_use_until_it_settles(world: World) -> None:
    old = world.node("n1")
    one, two = old.acquire(app(1)), old.acquire(app(2))
    new = world.node("n1")
    assert new.acquire(app(1)) == one
    with pytest.raises(ClosedError, match="another allocator has taken over node n1"):
        old.beat()
    for _ in range(3):
        new.beat()
        assert world.after(6).startswith("0 nodes gone, 0 identities deleted")
    new.settle()
    world.after(0)
    new.beat()
    assert world.after(6).startswith("0 nodes gone, 1 identities deleted")
    assert new.acquire(app(1)) == one
    assert new.acquire(app(2)).number != two.number


def test_who_was_away_too_long_is_told_its_new_numbers(world: World) -> None:
    told: list[tuple[Identity, Identity]] = []
    away = world.node("n1", renumbered=lambda old, new: told.append((old, new)))
    old = away.acquire(app(1))
    world.after(0)
    assert world.after(11).startswith("1 nodes gone")
    assert world.after(6).startswith("0 nodes gone, 1 identities deleted")
    assert away.acquire(app(1)) == old  # its number is nobody else's yet
    other = world.node("n2").acquire(app(1))
    away.beat()
    assert told == [(old, other)]
    assert away.in_use() == (other,)
    away.release(old)
    away.release(other)


def test_a_late_request_does_not_hide_that_a_node_was_gone(stage: World) -> None:
    """The first thing that it ever wrote arrives after all of it was taken back."""
    node = stage.node("n1")

    def beat() -> None:
        with pytest.raises(StoreError):
            node.beat()

    acting(stage, beat).step(Fate.LATE)
    web = node.acquire(app(1))
    for seconds in 0, 11, 6, 0, 21:
        stage.after(seconds)
    assert stage.store.list(IDENTITIES) == ()
    stage.store.deliver()
    node.beat()
    [web] = node.in_use()
    assert stage.node("n2").lookup(web.number) == web


def test_a_number_that_comes_too_late_is_not_written(stage: World) -> None:
    """Its allocator stood still between taking it and writing it; meanwhile it was given to others."""
    slow, quick = stage.node("n1", numbers=[300]), stage.node("n2", numbers=[300, 301])
    given: list[Identity] = []
    stuck = acting(stage, lambda: given.append(slow.acquire(app(1), timeout=0)))
    steps(stuck, 4)  # its use, a look, the identity, the number: next is to write it
    for seconds in 0, 11, 6, 0, 21:
        stage.after(seconds)
    assert stage.store.list(NUMBERS) == stage.store.list(IDENTITIES) == ()
    taken = {quick.acquire(app(each)).number for each in (2, 3)}
    assert taken == {300, 301}
    with pytest.raises(CapacityError):
        finish(stuck)
    assert given == []


def test_of_two_that_begin_at_once_one_number_stays(stage: World) -> None:
    nodes = [stage.node("n1"), stage.node("n2")]
    given: list[Identity] = []
    both = [acting(stage, lambda node=node: given.append(node.acquire(app(1)))) for node in nodes]  # type: ignore[misc]
    steps(both[0], 4)
    steps(both[1], 3)
    finish(both[0])
    finish(both[1])
    assert given[0] == given[1]
    assert [each.name for each in stage.store.list(NUMBERS)] == [str(given[0].number)]


def test_who_needs_what_is_about_to_go_stops_the_collector(stage: World) -> None:
    one, two = stage.node("n1"), stage.node("n2")
    web = one.acquire(app(1))
    one.release(web)
    one.beat()
    stage.after(0)
    one.beat()
    stage.time.now += 6
    collecting = acting(stage, stage.collector.collect)
    steps(collecting, 2)  # it has seen the uses, and the identities: next is to delete
    assert two.acquire(app(1)) == web
    finish(collecting)
    assert stage.node("n3").lookup(web.number) == web


def test_who_lives_is_not_shut_out_behind_its_back(stage: World) -> None:
    node = stage.node("n1")
    web = node.acquire(app(1))
    stage.after(0)
    stage.time.now += 11
    collecting = acting(stage, stage.collector.collect)
    steps(collecting, 1)  # it has seen that the node is silent
    node.beat()
    finish(collecting)
    for _ in range(4):
        node.beat()
        stage.after(6)
    assert node.acquire(app(1)) == web == stage.node("n2").lookup(web.number)


def test_a_number_in_the_making_is_not_taken_away(stage: World) -> None:
    node = stage.node("n1")
    collecting = acting(stage, stage.collector.collect)
    steps(collecting, 2)  # next are the numbers
    given: list[Identity] = []
    making = acting(stage, lambda: given.append(node.acquire(app(1))))
    steps(making, 4)
    finish(collecting)
    finish(making)
    for _ in range(5):
        node.beat()
        stage.after(9)
    assert stage.node("n2").lookup(given[0].number) == given[0]


@pytest.mark.parametrize("fate", [Fate.LOST, Fate.UNANSWERED, Fate.LATE, Fate.CRASH])
@pytest.mark.parametrize("at", range(5))
def test_whatever_becomes_of_a_request_the_next_try_goes_well(stage: World, at: int, fate: Fate) -> None:
    node = stage.node("n1")

    def task() -> None:
        with pytest.raises(StoreError):
            node.acquire(app(1), timeout=0)

    actor = acting(stage, task)
    steps(actor, at)
    actor.step(fate)
    node = stage.node("n1") if fate is Fate.CRASH else node
    web = node.acquire(app(1))
    while stage.store.late:
        stage.store.deliver()
    assert stage.node("n2").acquire(app(1)) == web
    for _ in range(8):
        node.beat()
        stage.after(9)
    assert [each.name for each in stage.store.list(NUMBERS)] == [str(web.number)]


def test_watch_tells_all_then_changes(world: World) -> None:
    one = world.node("n1")
    web = one.acquire(app(1))
    with world.node("n2") as two:
        changes = two.watch(timeout=0.01, every=0.01)
        assert next(changes).added == (web,)
        db = one.acquire(app(2))
        assert (next(changes).added or next(changes).added) == (db,)
        world.after(0)
        world.after(11)
        world.after(6)
        gone = {each for change in (next(changes), next(changes)) for each in change.removed}
        assert gone == {web, db}
    assert list(changes) == []


def test_a_thread_tells_the_store_that_the_node_is_there() -> None:
    store = MemoryStore()
    with StoreAllocator(store, "n1", timing=Timing(beat=0.01, timeout=1)) as identities:
        identities.acquire(app(1))
        first = store.get("uses", "n1")
        wait(lambda: store.get("uses", "n1") != first)
    assert "kd-identity" not in [each.name for each in threading.enumerate()]


def test_networks() -> None:
    time = Time()
    numbers = LOCAL_NUMBERS[:3]
    networks = NetworkAllocator(numbers=numbers, quarantine=10, withheld=numbers[:1], clock=time)
    one = networks.acquire("10.0.0.0/8")
    assert one.number == LOCAL_NUMBERS[1]
    assert one == networks.acquire("10.0.0.0/8") == networks.lookup(one.number)
    two = networks.acquire("fd00::/8")
    with pytest.raises(CapacityError):
        networks.acquire("192.0.2.0/24")
    networks.release(one)
    networks.release(one)
    with pytest.raises(KeyNotFoundError):
        networks.release(one)
    with pytest.raises(CapacityError):
        networks.acquire("192.0.2.0/24")
    networks.settle()
    time.now = 11
    assert networks.acquire("192.0.2.0/24").number == LOCAL_NUMBERS[0]
    assert networks.acquire("198.51.100.0/24").number == one.number
    assert networks.lookup(two.number) == two


def test_the_first_node_by_name_collects_most_often() -> None:
    passes: Counter[str] = Counter()

    class Counted(Collector):
        name = ""

        def collect(self) -> Collected:
            passes[self.name] += 1
            return super().collect()

    store = MemoryStore()
    with ExitStack() as own:
        pauses = []
        for name in "abc":
            own.enter_context(StoreAllocator(store, name, beats=False)).beat()
            collector = Counted(store)
            collector.name = name
            collecting = own.enter_context(Collecting(collector, name, every=0.02))
            pauses.append(collecting._pause)
        wait(lambda: min(passes[name] for name in "abc") > 1)
        assert [pause() for pause in pauses] == [0.02, 0.04, 0.06]
