"""PolicyReconciler: in which order policies and pods get into the kernel, and what waits for what."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest

from k8sdatapath.component import ObjectKey, Record
from k8sdatapath.errors import CapacityError, ClosedError, NotProgrammedError, StoreError
from k8sdatapath.identity import MemoryStore, StoreAllocator
from k8sdatapath.identity.records import IDENTITIES, NUMBERS, USES
from k8sdatapath.kube.events import Batch, ObjectEvent
from k8sdatapath.kube.policy import AUDIT
from k8sdatapath.model.identity import Identity, Reserved
from k8sdatapath.model.labels import Labels
from k8sdatapath.model.policy import Policy
from k8sdatapath.model.workload import Workload
from k8sdatapath.reconcile import PolicyReconciler, Retry, State, Status
from k8sdatapath.reconcile.policies import KnownPods
from tests.unit.test_policy_translator import event, namespace, pod
from tests.unit.test_reconcile import until


class Told:
    """A source that is told."""

    def __init__(self) -> None:
        self._batches: queue.SimpleQueue[Batch | None] = queue.SimpleQueue()

    def tell(self, *events: ObjectEvent, synced: bool = True) -> None:
        self._batches.put(Batch(events, synced))

    def batches(self, timeout: float | None = None) -> Iterator[Batch]:
        while (batch := self._batches.get()) is not None:
            yield batch

    def close(self) -> None:
        self._batches.put(None)

    def __enter__(self) -> Told:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Kernel:
    """What has been put in force, and in which order."""

    def __init__(self) -> None:
        self.policies: dict[str, Policy] = {}
        self.learned: dict[str, tuple[tuple[str, ...], int]] = {}
        self.pods: KnownPods = {}
        self.order: list[str] = []
        self.full: set[str] = set()

    def apply(self, policies: Iterable[Policy]) -> None:
        wanted = {each.name: each for each in policies}
        if self.full & wanted.keys():
            raise CapacityError("kd_policies", 2, 1)
        self.policies = wanted
        self.order.append("policies")

    def upsert(self, *policies: Policy) -> None:
        self.apply([*self.policies.values(), *policies])

    def remove(self, *names: str) -> None:
        for name in names:
            del self.policies[name]

    def learn(self, workloads: Mapping[Workload, int]) -> None:
        self.learned |= {each.name: (each.labels, number) for each, number in workloads.items()}
        self.order.append("peers")

    def forget(self, *names: str) -> None:
        for name in names:
            self.learned.pop(name, None)

    def know(self, pods: KnownPods) -> None:
        self.pods = pods
        self.order.append("pods")


class Store(MemoryStore):
    """It can be away."""

    away = False

    def list(self, kind: str) -> tuple[Record, ...]:
        if self.away:
            raise StoreError("it is away")
        return super().list(kind)

    def create(self, kind: str, name: str, value: Mapping[str, object]) -> Record:
        if self.away:
            raise StoreError("it is away")
        return super().create(kind, name, value)

    def update(self, record: Record, value: Mapping[str, object]) -> Record:
        if self.away:
            raise StoreError("it is away")
        return super().update(record, value)


@contextmanager
def running(
    store: Store, *, alone: bool = False, **options: Any
) -> Iterator[tuple[Told, Kernel, PolicyReconciler]]:
    source, kernel = Told(), Kernel()
    with PolicyReconciler(
        source,
        "n1",
        kernel,
        StoreAllocator(store, "n1", beats=False),
        on_pods=kernel.know,
        alone=alone,
        retry=Retry(first=0.01, most=0.05),
        **options,
    ).start() as reconciler:
        yield source, kernel, reconciler


def isolate(name: str, app: str) -> ObjectEvent:
    return event("NetworkPolicy", name, spec={"podSelector": {"matchLabels": {"app": app}}})


def labels_of(app: str) -> Labels:
    return Labels(Workload.pod("shop/any", {"app": app}, service_account="default").labels)


def test_nothing_is_written_before_all_is_told_and_then_pods_come_last() -> None:
    with running(Store()) as (source, kernel, reconciler):
        source.tell(
            namespace(), pod("web", "web", "10.0.0.1"), pod("far", "far", "10.0.0.2", "n2"), synced=False
        )
        time.sleep(0.3)
        assert kernel.order == []
        assert reconciler.problem == "not all policies are in force yet"
        source.tell(isolate("web", "web"))
        until(lambda: kernel.pods)
        assert kernel.order.index("peers") < kernel.order.index("policies") < kernel.order.index("pods")
        assert kernel.pods["shop/web"][0].addresses
        until(lambda: reconciler.problem == "")
        assert kernel.learned["shop/far"] == (
            Labels(["reserved:init"]).text and ("reserved:init=",),
            Reserved.INIT,
        )


@pytest.mark.parametrize("heeded", [True, False])
def test_policies_look_on_at_pods_that_are_annotated_so_where_that_is_heeded(heeded: bool) -> None:
    metadata = {"labels": {"app": "web"}, "annotations": {AUDIT: "true"}}
    status = {"podIP": "10.0.0.1", "phase": "Running"}
    with running(Store(), audit_pods=heeded) as (source, kernel, _):
        source.tell(
            namespace(),
            event("Pod", "web", metadata=metadata, spec={"nodeName": "n1", "containers": []}, status=status),
        )
        until(lambda: kernel.pods)
        assert kernel.pods["shop/web"][0].audit is heeded


def test_a_pod_elsewhere_is_who_its_node_says() -> None:
    store = Store()
    with running(store) as (source, kernel, reconciler), StoreAllocator(store, "n2", beats=False) as other:
        source.tell(namespace(), pod("far", "far", "10.0.0.2", "n2"), event("Node", "n2", "", status={}))
        until(lambda: "shop/far" in kernel.learned)
        assert kernel.learned["n2"][1] == Reserved.REMOTE_NODE
        assert kernel.learned["shop/far"][1] == Reserved.INIT
        until(lambda: reconciler.waiting == ("shop/far",))
        number = other.acquire(labels_of("far")).number
        until(lambda: kernel.learned["shop/far"] == (tuple(map(str, labels_of("far"))), number))
        source.tell(pod("far", "new", "10.0.0.2", "n2"))
        newer = other.acquire(labels_of("new")).number
        until(lambda: kernel.learned["shop/far"][1] == newer)
        source.tell(event("Pod", "far"))
        until(lambda: "shop/far" not in kernel.learned)


class Returning(StoreAllocator):
    """Of a node that was taken for gone between the store's answer and who asked for it."""

    def acquire(self, labels: Labels, *, timeout: float | None = None) -> Identity:
        found = super().acquire(labels, timeout=timeout)
        store = self._store
        for each in [each for kind in (USES, IDENTITIES, NUMBERS) for each in store.list(kind)]:
            store.delete(each)
        store.create(NUMBERS, str(found.number), {"owner": "another", "version": "1"})
        self.beat()
        return found


def test_a_number_that_changes_while_it_is_on_its_way_is_not_the_old_one() -> None:
    def renumbered(old: Identity, new: Identity) -> None:
        reconciler.renumber(old, new)

    source, kernel = Told(), Kernel()
    allocator = Returning(MemoryStore(), "n1", beats=False, renumbered=renumbered)
    with PolicyReconciler(source, "n1", kernel, allocator, on_pods=kernel.know) as reconciler:
        reconciler.start()
        source.tell(namespace(), pod("web", "web", "10.0.0.1"))
        until(lambda: kernel.pods)
        [own] = allocator.in_use()
        assert kernel.pods["shop/web"][1] == own.number


def test_before_the_store_was_heard_an_earlier_run_holds() -> None:
    store = Store()
    store.away = True
    with running(store) as (source, kernel, reconciler):
        source.tell(namespace(), isolate("web", "web"), pod("far", "far", "10.0.0.2", "n2"))
        time.sleep(0.6)
        assert kernel.order == []
        assert reconciler.problem
        store.away = False
        until(lambda: kernel.policies and kernel.learned)


def test_alone_a_node_gives_all_numbers() -> None:
    with running(Store(), alone=True) as (source, kernel, _):
        source.tell(namespace(), pod("far", "far", "10.0.0.2", "n2"), pod("web", "web", "10.0.0.1"))
        until(lambda: kernel.pods and kernel.learned["shop/far"][1] > Reserved.INIT)


def test_while_the_store_is_away_the_known_go_on_and_the_new_wait() -> None:
    store = Store()
    with running(store) as (source, kernel, reconciler):
        source.tell(namespace(), pod("web", "web", "10.0.0.1"))
        until(lambda: kernel.pods)
        before = kernel.pods["shop/web"]
        store.away = True
        source.tell(pod("late", "late", "10.0.0.3"), pod("web", "other", "10.0.0.1"), isolate("web", "web"))
        until(lambda: kernel.policies and "it is away" in reconciler.problem)
        assert dict(kernel.pods) == {"shop/web": before}
        store.away = False
        until(lambda: "shop/late" in kernel.pods and kernel.pods["shop/web"] != before)
        until(lambda: not reconciler.problem)


def test_a_pod_waits_for_a_policy_that_does_not_fit() -> None:
    with running(Store()) as (source, kernel, reconciler):
        kernel.full = {"NetworkPolicy shop/web"}
        source.tell(namespace(), pod("web", "web", "10.0.0.1"), pod("db", "db", "10.0.0.2"))
        until(lambda: len(kernel.pods) == 2)
        source.tell(isolate("web", "web"), isolate("db", "db"), pod("late", "web", "10.0.0.3"))
        until(lambda: "NetworkPolicy shop/db" in kernel.policies and reconciler.failures)
        assert kernel.pods.keys() == {"shop/web", "shop/db"}
        assert "NetworkPolicy shop/web" in reconciler.problem
        kernel.full = set()
        until(lambda: "shop/late" in kernel.pods)
        until(lambda: not reconciler.problem)
        assert len(kernel.policies) == 2


def test_what_is_wrong_is_told_and_what_it_said_before_holds() -> None:
    with running(Store()) as (source, kernel, reconciler):
        source.tell(namespace(), isolate("web", "web"))
        until(lambda: kernel.policies)
        held = dict(kernel.policies)
        source.tell(event("NetworkPolicy", "web", spec={"podSelector": {}, "ingress": 7}))
        until(lambda: reconciler.errors)
        assert kernel.policies == held
        source.tell(event("NetworkPolicy", "web"))
        until(lambda: not kernel.policies and not reconciler.errors)


@pytest.mark.parametrize("fails", ["source", "kernel"])
def test_a_fault_ends_it_and_is_told(fails: str, caplog: pytest.LogCaptureFixture) -> None:
    def fault(*_: object) -> None:
        raise RuntimeError("a fault")

    patched: Callable[..., None] = fault
    with running(Store()) as (source, kernel, reconciler):
        if fails == "kernel":
            kernel.apply = patched  # type: ignore[method-assign]
            source.tell(namespace(), isolate("web", "web"))
        else:
            source._batches.put(7)  # type: ignore[arg-type]
        until(lambda: not reconciler.running)
        assert reconciler.error is not None


def key(name: str) -> ObjectKey:
    return "NetworkPolicy", "shop", name


def test_who_waits_for_a_policy_is_told_when_its_pods_have_it() -> None:
    store = Store()
    with running(store) as (source, kernel, reconciler):
        source.tell(namespace())
        with pytest.raises(NotProgrammedError, match=r"shop/web is not programmed after .* s: unknown"):
            reconciler.wait_enforced(key("web"), 0.05)
        source.tell(isolate("web", "web"))
        reconciler.wait_enforced(key("web"), 10)
        assert "NetworkPolicy shop/web" in kernel.policies
        store.away = True
        source.tell(pod("web", "web", "10.0.0.1"))
        until(lambda: reconciler.waiting)
        with pytest.raises(NotProgrammedError, match="pending: 1 pods wait for it, such as shop/web"):
            reconciler.wait_enforced(key("web"), 0.05)
        assert reconciler.status(key("web")).state is State.PENDING
        store.away = False
        reconciler.wait_enforced(key("web"), 10)
        assert "shop/web" in kernel.pods


def test_a_generation_is_waited_for() -> None:
    def said(generation: int, *kinds: str) -> ObjectEvent:
        return event(
            "NetworkPolicy",
            "web",
            metadata={"generation": generation},
            spec={"podSelector": {}, "policyTypes": list(kinds)},
        )

    with running(Store()) as (source, kernel, reconciler):
        source.tell(namespace(), said(1, "Ingress"))
        reconciler.wait_enforced(key("web"), 10, generation=1)
        with pytest.raises(NotProgrammedError):
            reconciler.wait_enforced(key("web"), 0.05, generation=2)
        source.tell(said(2, "Ingress", "Egress"))
        reconciler.wait_enforced(key("web"), 10, generation=2)
        assert len(kernel.policies["NetworkPolicy shop/web"].isolates) == 2


def test_who_waits_when_it_ends_is_told_so() -> None:
    with running(Store()) as (source, _, reconciler):
        source.tell(namespace())
        closing = threading.Timer(0.1, reconciler.close)
        closing.start()
        with pytest.raises(ClosedError):
            reconciler.wait_enforced(key("web"), 10)
        closing.join()


def test_statuses_are_told_when_they_change() -> None:
    told: list[tuple[ObjectKey, str]] = []
    with running(Store(), on_status=lambda key, status: told.append((key, str(status)))) as (
        source,
        kernel,
        reconciler,
    ):
        kernel.full.add("NetworkPolicy shop/full")
        source.tell(
            namespace(), isolate("full", "x"), event("NetworkPolicy", "wrong", spec={"podSelector": 1})
        )
        until(lambda: len(told) == 2)
        assert {each: said.partition(" ")[0] for each, said in told} == {
            key("full"): "error:",
            key("wrong"): "error:",
        }
        assert "podSelector" in dict(told)[key("wrong")]
        assert reconciler.status(key("full")).state is State.ERROR
        kernel.full.clear()
        source.tell(isolate("wrong", "x"))
        until(lambda: len(told) == 4)
        assert dict(told) == {key("full"): "programmed", key("wrong"): "programmed"}
        source.tell(event("NetworkPolicy", "wrong", spec={"podSelector": 2}))
        until(lambda: len(told) == 5)
        source.tell(event("NetworkPolicy", "wrong"))
        until(lambda: reconciler.status(key("wrong")).state is State.UNKNOWN)
        assert len(told) == 5


def test_what_a_policy_names_that_is_not_there_is_told_with_its_status() -> None:
    told: list[Status] = []
    rule = {"fromCIDRSet": [{"cidrGroupRef": "office"}]}
    named = event("CiliumNetworkPolicy", "web", spec={"endpointSelector": {}, "ingress": [rule]})
    with running(Store(), on_status=lambda key, status: told.append(status)) as (source, _, reconciler):
        source.tell(namespace(), named)
        until(lambda: told)
        assert told[0].state is State.PROGRAMMED
        assert "no CiliumCIDRGroup 'office' is here" in told[0].reason
        reconciler.wait_enforced(("CiliumNetworkPolicy", "shop", "web"), 10)
