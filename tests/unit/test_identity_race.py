"""Many allocators at once, whose requests are late, lost or not answered, and which crash: one number a set.

``K8SDATAPATH_RACE=64x200`` is how many allocators want how many sets of labels.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import pytest

from k8sdatapath.component import RecordStore
from k8sdatapath.errors import StoreError
from k8sdatapath.identity import Collector, StoreAllocator
from k8sdatapath.identity.records import IDENTITIES, number_of
from tests.support.identities import CrashedError, Fate, Relay, app
from tests.unit.test_identity_stores import Shared, server, shared

__all__ = ["server", "shared"]  # fixtures

ALLOCATORS, SETS = map(int, os.environ.get("K8SDATAPATH_RACE", "64x50").split("x"))
T = TypeVar("T")


class Faulty(Relay):
    """A store to which the way is bad: requests come late, get lost, are not answered, or kill who asks."""

    def __init__(self, inner: RecordStore, chance: random.Random) -> None:
        self.inner, self.chance = inner, chance
        self.late: list[threading.Timer] = []

    def _ask(self, request: Callable[[], T]) -> T:
        if self.chance.random() < 0.1:
            time.sleep(self.chance.uniform(0, 0.02))
        fates = list(Fate)
        [fate] = self.chance.choices(fates, [0.92, 0.02, 0.02, 0.02, 0.02])
        if fate is Fate.LOST:
            raise StoreError("lost")
        if fate is Fate.LATE:
            timer = threading.Timer(self.chance.uniform(0, 0.2), quietly, [request])
            self.late.append(timer)
            timer.start()
            raise StoreError("late")
        if fate is Fate.DONE:
            return request()
        quietly(request)
        raise StoreError("not answered") if fate is Fate.UNANSWERED else CrashedError


def quietly(request: Callable[[], object]) -> None:
    try:
        request()
    except StoreError:
        return


@pytest.mark.parametrize("shared", ["etcd", "kubernetes"], indirect=True)
def test_one_number_for_a_set_ever(shared: Shared) -> None:
    given: dict[str, set[int]] = defaultdict(set)
    stores = [Faulty(shared.connect(), random.Random(index)) for index in range(-1, ALLOCATORS)]
    crashes = [0] * ALLOCATORS
    ended = threading.Event()

    def node(index: int) -> None:
        store = stores[1 + index]
        order = [app(each) for each in range(SETS)]
        store.chance.shuffle(order)
        own = StoreAllocator(store, f"n{index}", beats=False)
        while order:
            try:
                found = own.acquire(order[-1])
            except CrashedError:
                crashes[index] += 1
                own = StoreAllocator(store, f"n{index}", beats=False)
            else:
                given[found.labels.text].add(found.number)
                order.pop()

    def collect() -> None:
        collector = Collector(stores[0])
        while not ended.wait(0.05):
            try:
                collector.collect()
            except (StoreError, CrashedError):
                continue

    with ThreadPoolExecutor(ALLOCATORS + 1) as pool:
        collecting = pool.submit(collect)
        nodes = [pool.submit(node, index) for index in range(ALLOCATORS)]
        for each in nodes:
            each.result()
        ended.set()
        collecting.result()
    for store in stores:
        for timer in store.late:
            timer.join()
    assert len(given) == SETS
    assert [len(numbers) for numbers in given.values()] == [1] * SETS
    assert len({number for numbers in given.values() for number in numbers}) == SETS
    there = {each.value["labels"]: number_of(each) for each in shared.connect().list(IDENTITIES)}
    assert there == {text: min(numbers) for text, numbers in given.items()}
    assert sum(crashes) > SETS / 2
