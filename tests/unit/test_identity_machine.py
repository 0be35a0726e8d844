"""Allocators and collectors, interleaved request by request, with all that can become of a request.

Walks at random through what can happen, each from a seed: a failure names it, and it happens again. That they
would find what is wrong is seen as well: every seeded bug is found by one of the first of them.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from attrs import define, field

from k8sdatapath.errors import CapacityError, ClosedError, StoreError
from k8sdatapath.identity import Collector, StoreAllocator, Timing
from k8sdatapath.identity.records import IDENTITIES, NUMBERS, number_of
from k8sdatapath.model.identity import Identity
from k8sdatapath.model.labels import Labels
from tests.support.identities import Actor, CrashedError, Fate, Stage, app
from tests.support.identity_bugs import BUGS

WALKS = int(os.environ.get("K8SDATAPATH_IDENTITY_WALKS", "60"))
STEPS = 150
TIMINGS = (
    Timing(beat=1, timeout=10, grace=5, quarantine=20),
    Timing(beat=1, timeout=10, grace=5, quarantine=2),  # shorter than anybody is waited for
    Timing(beat=1, timeout=10, grace=20, quarantine=5),
)
NUMBERS_TO_GIVE = range(256, 259)
"""So few that whatever is free is soon used again."""
NODES = ("n0", "n1", "n2")
SETS = 3
FATES = (*[Fate.DONE] * 6, *Fate)
SURVIVED = tuple(each for each in FATES if each is not Fate.CRASH)


@define(eq=False)
class Node:
    """One run of an allocator."""

    allocator: StoreAllocator
    busy: Actor | None = None
    held: list[Identity] = field(factory=list)
    """What those who asked were given, and have not released."""


class Cluster:
    """Three nodes and two collectors, of which a walk decides what they do next."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.now = 0.0
        self.stage = Stage()
        self.timing = chance.choice(TIMINGS)
        self.nodes = {name: self.start(name) for name in NODES}
        self.collectors = [Collector(self.stage, timing=self.timing, clock=self.clock) for _ in range(2)]
        self.passes: list[Actor | None] = [None, None]
        self.ghosts: list[tuple[str, Identity, float]] = []
        """Of which node, and until when: what a run that crashed has left in the kernel."""
        self.used: dict[int, tuple[Labels, float]] = {}
        """Of each number: by whom it was used last, and when."""

    def clock(self) -> float:
        return self.now

    def start(self, name: str) -> Node:
        node = Node.__new__(Node)

        def renumbered(old: Identity, new: Identity) -> None:
            node.held = [new if each == old else each for each in node.held]

        allocator = StoreAllocator(
            self.stage,
            name,
            numbers=NUMBERS_TO_GIVE,
            timing=self.timing,
            renumbered=renumbered,
            beats=False,
            clock=self.clock,
        )
        node.__init__(allocator)  # type: ignore[misc]
        return node

    def idle(self) -> tuple[str, Node | None]:
        name = self.chance.choice(NODES)
        node = self.nodes[name]
        return name, node if node.busy is None else None

    def begin(self, name: str, node: Node, task: Callable[[], object]) -> None:
        """Let a node do something; a few requests of it, at first, or none."""

        def act() -> None:
            try:
                with suppress(StoreError, CapacityError):
                    task()
            except ClosedError:  # shut out by another run of it: its agent begins anew
                raise CrashedError from None

        node.busy = Actor(self.stage, act)
        self.ended(name)
        self.proceed(name, Fate.DONE, self.chance.randrange(7))

    def proceed(self, name: str, fate: Fate, steps: int) -> None:
        """Some requests go well, and then one as it may."""
        for each in [Fate.DONE] * (steps - 1) + [fate] * (steps > 0):
            node = self.nodes[name]
            if node.busy is not None:
                node.busy.step(each)
                self.ended(name)

    def ended(self, name: str) -> None:
        node = self.nodes[name]
        assert node.busy is not None
        if node.busy.done:
            crashed, node.busy = node.busy.dead, None
            if crashed:
                self.restart(name)

    def restart(self, name: str) -> None:
        node = self.nodes[name]
        self.ghosts += [(name, each, node.allocator._valid) for each in node.held]
        node.allocator.close()
        self.nodes[name] = self.start(name)

    # what can happen

    def acquire(self) -> None:
        name, node = self.idle()
        labels = app(self.chance.randrange(SETS))
        if node:
            self.begin(name, node, lambda: node.held.append(node.allocator.acquire(labels, timeout=0)))

    def beat(self) -> None:
        name, node = self.idle()
        if node:
            self.begin(name, node, node.allocator.beat)

    def release(self) -> None:
        _, node = self.idle()
        if node and node.held:
            node.allocator.release(node.held.pop(self.chance.randrange(len(node.held))))

    def settle(self) -> None:
        """After a restart, what an earlier run has left is taken out of the kernel first."""
        name, node = self.idle()
        if node:
            self.ghosts = [each for each in self.ghosts if each[0] != name]
            self.begin(name, node, node.allocator.settle)

    def go_on(self) -> None:
        self.proceed(self.chance.choice(NODES), self.chance.choice(FATES), self.chance.randrange(1, 9))

    def collect(self) -> None:
        which = self.chance.randrange(2)
        if self.passes[which] is None:

            def task() -> None:
                with suppress(StoreError):
                    self.collectors[which].collect()

            self.passes[which] = Actor(self.stage, task)
        fate, steps = self.chance.choice(SURVIVED), self.chance.randrange(1, 9)
        for each in [Fate.DONE] * (steps - 1) + [fate]:
            actor = self.passes[which]
            if actor is not None:
                actor.step(each)
                if actor.done:
                    self.passes[which] = None

    def deliver(self) -> None:
        if self.stage.late:
            self.stage.deliver()

    def pass_time(self) -> None:
        self.now += self.chance.choice((1, 4, 6, 11, 21))

    def go_by(self) -> None:
        """Time passes, in which the collector does what it can, and some nodes are not heard of."""
        heard = [name for name in NODES if self.chance.random() < 0.7]
        for _ in range(self.chance.randrange(1, 5)):
            self.now += self.chance.choice((0, 1, 6, 11, 21))
            for name in heard:
                node = self.nodes[name]
                if node.busy is None:
                    try:
                        with suppress(CapacityError):
                            node.allocator.beat()
                    except ClosedError:
                        self.restart(name)
            if self.passes[0] is None:
                self.collectors[0].collect()
            self.check_that_numbers_wait()

    # what is so, always

    def check(self) -> None:
        self.check_that_numbers_wait()
        self.check_the_store()
        self.check_the_living()

    def check_that_numbers_wait(self) -> None:
        """Nobody comes to a number that somebody else has, or has had not long ago."""
        users = [(each, node.allocator._valid) for node in self.nodes.values() for each in node.held]
        users += [(each, until) for _, each, until in self.ghosts]
        owners: dict[int, Labels] = {}
        for each, until in users:
            if self.now < until:
                assert owners.setdefault(each.number, each.labels) == each.labels, "a number of two sets"
                labels, when = self.used.get(each.number, (each.labels, self.now))
                assert labels == each.labels or self.now - when >= self.timing.quarantine, "given too soon"
                gone = until - self.timing.validity + self.timing.timeout
                self.used[each.number] = each.labels, min(self.now, gone)

    def check_the_store(self) -> None:
        """It has no number of two sets, and none without its record."""
        owners: dict[int, Any] = {}
        for record in self.stage.inner.list(IDENTITIES):
            number = number_of(record)
            if number is not None:
                assert owners.setdefault(number, record.name) == record.name, "a number of two sets"
                taken = self.stage.inner.get(NUMBERS, str(number))
                assert taken is not None, "a number that others may take"
                assert taken.value["owner"] == record.name, "a number that others have taken"

    def check_the_living(self) -> None:
        """What a node uses that was heard of lately is in the store, so that all others come to the same.

        A node that was away so long that others may have begun anew does as it did before.
        """
        numbers: dict[Any, int] = {}
        for node in self.nodes.values():
            silent = self.now - (node.allocator._valid - self.timing.validity)
            for each in node.held:
                if silent < self.timing.timeout:
                    record = self.stage.inner.get(IDENTITIES, each.labels.hash)
                    assert record is not None, "in use, and gone"
                    assert number_of(record) == each.number, "in use, and another one"
                if silent < self.timing.timeout + self.timing.grace:
                    assert numbers.setdefault(each.labels, each.number) == each.number, "two numbers"

    def end(self) -> None:
        """Left alone, everybody gets what he wants, and in the end all numbers are free again."""
        while self.stage.late:
            self.stage.deliver()
        for actor in self.passes:
            while actor is not None and not actor.done:
                actor.step(Fate.DONE)
        for name in NODES:
            while self.nodes[name].busy is not None:
                self.proceed(name, Fate.DONE, 1)
            self.nodes[name].allocator.close()
        for _ in range(5):
            self.now += 40
            self.collectors[0].collect()
        assert self.stage.inner.list(IDENTITIES) == self.stage.inner.list(NUMBERS) == (), "left for ever"


WEIGHTS: dict[Callable[[Cluster], None], float] = {
    Cluster.acquire: 6,
    Cluster.beat: 3,
    Cluster.release: 4,
    Cluster.go_on: 6,
    Cluster.collect: 8,
    Cluster.deliver: 1,
    Cluster.pass_time: 2,
    Cluster.go_by: 2,
    Cluster.settle: 0.5,
}


def walk(seed: int) -> None:
    random.seed(seed)  # by which allocators choose numbers
    chance = random.Random(seed)
    cluster = Cluster(chance)
    for _ in range(STEPS):
        [step] = chance.choices(list(WEIGHTS), list(WEIGHTS.values()))
        step(cluster)
        cluster.check()
    cluster.end()


def test_no_number_is_of_two_sets_and_no_set_has_two_numbers() -> None:
    for seed in range(WALKS):
        try:
            walk(seed)
        except AssertionError as error:
            raise AssertionError(f"walk({seed}): {error}") from error


@pytest.mark.parametrize("bug", BUGS)
def test_a_seeded_bug_is_found(bug: str, monkeypatch: pytest.MonkeyPatch) -> None:
    BUGS[bug](monkeypatch)
    assert any(fails(seed) for seed in range(10 * WALKS))


def fails(seed: int) -> bool:
    try:
        walk(seed)
    except AssertionError:
        return True
    return False
