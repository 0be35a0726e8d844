"""Stores that nodes share: a real etcd, and an API server over HTTP. What holds for one holds for all."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from attrs import define

from k8sdatapath.component import RecordStore
from k8sdatapath.errors import StoreConflictError, StoreError
from k8sdatapath.identity import Collector, MemoryStore, StoreAllocator, Timing
from k8sdatapath.identity.etcd import EtcdStore
from k8sdatapath.identity.records import IDENTITIES, NUMBERS
from k8sdatapath.kube.patience import Patience
from k8sdatapath.kube.store import KubeStore
from tests.api.graph import ROOT
from tests.support.api_double import ApiDouble
from tests.support.api_requests import Refusal
from tests.support.etcd import Etcd, etcd
from tests.support.identities import app
from tests.support.watching import client

PATIENT = Patience(connect=2.0, answer=20.0)


@define
class Shared:
    """A store that can be reached by several, and be away."""

    connect: Callable[[], RecordStore]
    url: str = ""
    down: Callable[[], None] = lambda: None
    up: Callable[[], None] = lambda: None


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Etcd]:
    with etcd(tmp_path_factory.mktemp("etcd")) as running:
        yield running


@pytest.fixture(params=["memory", "etcd", "kubernetes"])
def shared(request: pytest.FixtureRequest) -> Iterator[Shared]:
    made: list[Any] = []

    def kept(store: Any) -> Any:
        made.append(store)
        return store

    if request.param == "memory":
        memory = MemoryStore()
        yield Shared(lambda: memory)
    elif request.param == "etcd":
        running = request.getfixturevalue("server")
        prefix = f"/test/{random.getrandbits(60)}"
        yield Shared(
            lambda: kept(EtcdStore([running.url], prefix=prefix)), running.url, running.down, running.up
        )
    else:
        with ApiDouble() as double:
            yield Shared(
                lambda: kept(KubeStore(client(double), patience=PATIENT)), double.url, double.down, double.up
            )
            for each in made:
                each.close()
            made.clear()
    for each in made:
        each.close()


def test_records(shared: Shared) -> None:
    one, two = shared.connect(), shared.connect()
    assert one.get("numbers", "300") is None
    assert list(one.list("numbers")) == []
    made = one.create("numbers", "300", {"owner": "a", "version": "v"})
    assert two.get("numbers", "300") == made
    with pytest.raises(StoreConflictError, match="numbers 300 was changed by somebody else"):
        two.create("numbers", "300", {"owner": "b", "version": "v"})
    changed = two.update(made, {"owner": "c", "version": "v"})
    assert one.get("numbers", "300") == changed
    assert changed.value["owner"] == "c"
    for stale in (lambda: one.update(made, {"owner": "d"}), lambda: one.delete(made)):
        with pytest.raises(StoreConflictError):
            stale()
    other = one.create("numbers", "301", {"owner": "e", "version": "v"})
    one.create("uses", "300", {"uses": ["x"], "run": "r", "beat": 1})
    assert sorted(each.name for each in two.list("numbers")) == ["300", "301"]
    one.delete(changed)
    for gone in (lambda: two.delete(changed), lambda: two.update(changed, {})):
        with pytest.raises(StoreConflictError):
            gone()
    again = two.create("numbers", "300", {"owner": "a", "version": "v"})
    assert again.version not in (made.version, changed.version)
    with pytest.raises(StoreConflictError):
        one.delete(made)
    assert {each.version for each in one.list("numbers")} == {again.version, other.version}


def test_many_allocators_race(shared: Shared) -> None:
    nodes = [StoreAllocator(shared.connect(), f"n{each}", beats=False) for each in range(16)]
    with ThreadPoolExecutor(16) as pool:

        def work(index: int) -> list[tuple[int, str]]:
            order = list(range(20))
            random.Random(index).shuffle(order)
            found = [nodes[index].acquire(app(each)) for each in order]
            return [(each.number, each.labels.text) for each in found]

        given = {pair for pairs in pool.map(work, range(16)) for pair in pairs}
    assert len(given) == len({number for number, _ in given}) == len({text for _, text in given}) == 20
    store = shared.connect()
    assert len(store.list(IDENTITIES)) == len(store.list(NUMBERS)) == 20


def test_collecting(shared: Shared) -> None:
    timing = Timing(beat=1, timeout=10, grace=5, quarantine=20)
    now = [0.0]
    store = shared.connect()
    node = StoreAllocator(shared.connect(), "n1", timing=timing, beats=False, clock=lambda: now[0])
    collector = Collector(store, timing=timing, clock=lambda: now[0])
    kept, left = node.acquire(app(1)), node.acquire(app(2))
    node.release(left)
    done = []
    for seconds in 0, 6, 21:
        now[0] += seconds
        node.beat()
        done.append(str(collector.collect()))
    assert done == [
        "0 nodes gone, 0 identities deleted, 0 numbers free",
        "0 nodes gone, 1 identities deleted, 0 numbers free",
        "0 nodes gone, 0 identities deleted, 1 numbers free",
    ]
    assert node.lookup(kept.number) == kept
    assert node.lookup(left.number) is None


@pytest.mark.parametrize("shared", ["etcd", "kubernetes"], indirect=True)
def test_while_the_store_is_away(shared: Shared) -> None:
    node = StoreAllocator(shared.connect(), "n1", beats=False)
    web = node.acquire(app(1))
    shared.down()
    try:
        assert node.acquire(app(1), timeout=0) == web
        with pytest.raises(StoreError):
            node.acquire(app(2), timeout=0)
        with pytest.raises(StoreError):
            node.beat()
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(node.acquire, app(2), timeout=60)
            shared.up()
            assert waiting.result(60).number != web.number
    finally:
        shared.down()
        shared.up()
    assert StoreAllocator(shared.connect(), "n2", beats=False).acquire(app(1)) == web


PROCESS = """
import json, sys
from k8sdatapath.identity import StoreAllocator
from tests.unit.test_identity_stores import store_of
from tests.support.identities import app
kind, url, node = sys.argv[1:]
with StoreAllocator(store_of(kind, url), node) as identities:
    given = [identities.acquire(app(number)) for number in range(15)]
    print(json.dumps([(each.number, each.labels.text) for each in given]))
"""


def store_of(kind: str, url: str) -> RecordStore:
    if kind == "etcd":
        return EtcdStore([url], prefix="/processes")
    from kubernetes.client import ApiClient, Configuration

    configuration = Configuration()
    configuration.host = url
    return KubeStore(ApiClient(configuration), patience=PATIENT)


@pytest.mark.parametrize("shared", ["etcd", "kubernetes"], indirect=True)
def test_processes_race(shared: Shared, request: pytest.FixtureRequest) -> None:
    kind = "etcd" if "etcd" in request.node.name else "kubernetes"
    commands = [[sys.executable, "-c", PROCESS, kind, shared.url, f"p{each}"] for each in range(4)]
    running = [subprocess.Popen(each, stdout=subprocess.PIPE, cwd=ROOT) for each in commands]
    told = [each.communicate(timeout=90)[0] for each in running]
    assert [each.returncode for each in running] == [0] * 4
    given = {tuple(pair) for each in told for pair in json.loads(each)}
    assert len(given) == len({number for number, _ in given}) == 15


def test_connections_that_break_anywhere(tmp_path: Path) -> None:
    """The server carries out what it was asked, and then cuts some connections instead of answering."""
    chance = random.Random(7)
    with ApiDouble() as double:
        answer = double.answer_change

        def cutting(*what: Any) -> Any:
            done = answer(*what)
            if chance.random() < 0.15:
                raise ConnectionError
            return done

        double.answer_change = cutting  # type: ignore[method-assign]
        stores = [KubeStore(client(double), patience=PATIENT) for _ in range(8)]
        nodes = [StoreAllocator(store, f"n{each}", beats=False) for each, store in enumerate(stores)]
        with ThreadPoolExecutor(8) as pool:
            found = pool.map(lambda node: [node.acquire(app(each)) for each in range(8)], nodes)
            given = {each for identities in found for each in identities}
        assert len(given) == len({each.number for each in given}) == 8
        for store in stores:
            store.close()


def test_refusals_of_an_api_server() -> None:
    with ApiDouble() as double:

        def refuse(*_: Any) -> None:
            raise Refusal(403, "Forbidden", "identities is forbidden")

        double.refuse_write = refuse  # type: ignore[method-assign,assignment]
        with (
            KubeStore(client(double)) as store,
            pytest.raises(StoreError, match="403 Forbidden identities is forbidden") as caught,
        ):
            StoreAllocator(store, "n1", beats=False).acquire(app(1), timeout=0)
        assert not isinstance(caught.value, StoreConflictError)


def test_refusals_of_an_etcd(server: Etcd) -> None:
    with pytest.raises(StoreError, match="not a URL"):
        EtcdStore(["etcd:2379"])
    with pytest.raises(StoreError, match="needs an endpoint"):
        EtcdStore([])
    with EtcdStore(["http://127.0.0.1:1", server.url], prefix="/two", timeout=2) as store:
        with pytest.raises(StoreError, match="ConnectionRefusedError"):
            store.get("numbers", "1")
        assert store.get("numbers", "1") is None  # the other one is asked
    with (
        EtcdStore([server.url], user="nobody", password="wrong") as store,
        pytest.raises(StoreError, match="auth"),
    ):
        store.get("numbers", "1")
