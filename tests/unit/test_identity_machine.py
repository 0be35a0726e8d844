"""Allocators and collectors, interleaved request by request, with all that can become of a request."""

from __future__ import annotations

from typing import Any

from attrs import define, field
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from k8sdatapath.errors import CapacityError, StoreError
from k8sdatapath.identity import Collector, StoreAllocator, Timing
from k8sdatapath.identity.records import IDENTITIES, NUMBERS, number_of
from k8sdatapath.model.identity import Identity
from tests.support.identities import Actor, Fate, Stage, app

TIMING = Timing(beat=1, timeout=10, grace=5, quarantine=20)
NUMBERS_TO_GIVE = range(256, 264)
NODES = ["n0", "n1", "n2"]
SETS = 3
SURVIVED = [each for each in Fate if each is not Fate.CRASH]


@define(eq=False)
class Node:
    """One run of an allocator."""

    allocator: StoreAllocator
    busy: Actor | None = None
    held: list[Identity] = field(factory=list)
    """What those who asked were given, and have not released."""


class Cluster(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.stage = Stage()
        self.nodes = {name: self.start(name) for name in NODES}
        self.collectors = [Collector(self.stage, timing=TIMING, clock=self.clock) for _ in range(2)]
        self.passes: list[Actor | None] = [None, None]
        self.ghosts: list[tuple[str, Identity, float]] = []
        """Of which node, and until when: what a run that crashed has left in the kernel."""

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
            timing=TIMING,
            renumbered=renumbered,
            beats=False,
            clock=self.clock,
        )
        node.__init__(allocator)  # type: ignore[misc]
        return node

    def idle(self, name: str) -> Node | None:
        node = self.nodes[name]
        return node if node.busy is None else None

    # what they begin to do

    @rule(name=st.sampled_from(NODES), number=st.integers(0, SETS - 1))
    def acquire(self, name: str, number: int) -> None:
        if node := self.idle(name):

            def task() -> None:
                try:
                    node.held.append(node.allocator.acquire(app(number), timeout=0))
                except (StoreError, CapacityError):
                    return

            node.busy = Actor(self.stage, task)
            self.ended(name)

    @rule(name=st.sampled_from(NODES))
    def beat(self, name: str) -> None:
        if node := self.idle(name):

            def task() -> None:
                try:
                    node.allocator.beat()
                except (StoreError, CapacityError):
                    return

            node.busy = Actor(self.stage, task)
            self.ended(name)

    @rule(name=st.sampled_from(NODES), data=st.data())
    def release(self, name: str, data: st.DataObject) -> None:
        node = self.idle(name)
        if node and node.held:
            node.allocator.release(node.held.pop(data.draw(st.integers(0, len(node.held) - 1))))

    @rule(name=st.sampled_from(NODES))
    def settle(self, name: str) -> None:
        """After a restart, what an earlier run has left is taken out of the kernel first."""
        if node := self.idle(name):
            self.ghosts = [each for each in self.ghosts if each[0] != name]
            node.allocator.settle()

    @rule(which=st.integers(0, 1))
    def collect(self, which: int) -> None:
        if self.passes[which] is None:

            def task() -> None:
                try:
                    self.collectors[which].collect()
                except StoreError:
                    return

            self.passes[which] = Actor(self.stage, task)

    # how it goes on

    @rule(name=st.sampled_from(NODES), fate=st.sampled_from(Fate), steps=st.integers(1, 8))
    def go_on(self, name: str, fate: Fate, steps: int) -> None:
        """Some requests go well, and then one as it may."""
        for each in [Fate.DONE] * (steps - 1) + [fate]:
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
                self.ghosts += [(name, each, node.allocator._valid) for each in node.held]
                node.allocator.close()
                self.nodes[name] = self.start(name)

    @rule(
        which=st.integers(0, 1),
        fate=st.sampled_from([each for each in Fate if each is not Fate.CRASH]),
        steps=st.integers(1, 12),
    )
    def collect_on(self, which: int, fate: Fate, steps: int) -> None:
        for each in [Fate.DONE] * (steps - 1) + [fate]:
            actor = self.passes[which]
            if actor is not None:
                actor.step(each)
                if actor.done:
                    self.passes[which] = None

    @precondition(lambda self: self.stage.late)
    @rule()
    def deliver(self) -> None:
        self.stage.deliver()

    @rule(seconds=st.sampled_from([1, 4, 6, 11, 21]))
    def pass_time(self, seconds: int) -> None:
        self.now += seconds

    @rule()
    def collect_all(self) -> None:
        """All that is unused goes, if time has passed."""
        if self.passes[0] is None:
            self.collectors[0].collect()

    # what is so, always

    @invariant()
    def no_number_is_of_two_sets(self) -> None:
        owners: dict[int, Any] = {}
        for node in self.nodes.values():
            if node.allocator.valid:
                for each in node.held:
                    assert owners.setdefault(each.number, each.labels) == each.labels
        for _, each, until in self.ghosts:
            if self.now < until:
                assert owners.setdefault(each.number, each.labels) == each.labels
        for record in self.stage.inner.list(IDENTITIES):
            number = number_of(record)
            if number is not None:
                labels = owners.setdefault(number, record.value["labels"])
                assert getattr(labels, "text", labels) == record.value["labels"]
                taken = self.stage.inner.get(NUMBERS, str(number))
                assert taken is not None
                assert taken.value["owner"] == record.name

    @invariant()
    def no_set_has_two_numbers(self) -> None:
        """But for a node that was away so long that others may have begun anew; it does as it did before."""
        numbers: dict[Any, int] = {}
        for node in self.nodes.values():
            heard = node.allocator._valid - TIMING.validity
            if self.now - heard < TIMING.timeout + TIMING.grace:
                for each in node.held:
                    assert numbers.setdefault(each.labels, each.number) == each.number

    def teardown(self) -> None:
        """Left alone, everybody gets what he wants, and in the end all numbers are free again."""
        while self.stage.late:
            self.stage.deliver()
        for each in self.passes:
            while each is not None and not each.done:
                each.step(Fate.DONE)
        for name, node in self.nodes.items():
            while node.busy is not None:
                node.busy.step(Fate.DONE)
                self.ended(name)
            node.allocator.close()
        for _ in range(5):
            self.now += 40
            self.collectors[0].collect()
        assert self.stage.inner.list(IDENTITIES) == self.stage.inner.list(NUMBERS) == ()


def check(examples: int) -> None:
    run_state_machine_as_test(
        Cluster,
        settings=settings(
            max_examples=examples,
            stateful_step_count=60,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_no_number_is_of_two_sets_and_no_set_has_two_numbers() -> None:
    check(60)
