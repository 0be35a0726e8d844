"""ServiceTranslator: after any history of events it has what ``translate`` makes of what they left."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, TypeAlias

import pytest
from attrs import evolve
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from k8sdatapath.component import ObjectKey
from k8sdatapath.errors import ManifestError
from k8sdatapath.kube import NodeDelta, NodeView, ServiceTranslator, translate
from k8sdatapath.kube.events import ObjectEvent
from k8sdatapath.kube.objects import (
    Endpoint,
    EndpointSlice,
    HostPort,
    KubeNode,
    KubeObject,
    KubePod,
    KubeService,
    Port,
)
from k8sdatapath.model import Frontend, Protocol, Service, address

KINDS = {KubeService: "Service", EndpointSlice: "EndpointSlice", KubePod: "Pod", KubeNode: "Node"}
VIEW = NodeView("n1")
NODE = KubeNode("n1", "z1", (address("192.0.2.11"),))


def event(object: KubeObject) -> ObjectEvent:
    return ObjectEvent(KINDS[type(object)], object.namespace, object.name, object, time.monotonic())


def gone(object: KubeObject) -> ObjectEvent:
    return evolve(event(object), object=None)


def unreadable(object: KubeObject) -> ObjectEvent:
    return evolve(event(object), object=None, error=ManifestError("api", "spec", "cannot be"))


def service(name: str = "web", ip: str = "10.96.0.10", **options: Any) -> KubeService:
    ports = options.pop("ports", (Port("", 80, Protocol.TCP, options.pop("node_port", 0)),))
    return KubeService("default", name, (address(ip),), ports, **options)


def slice_of(service: str = "web", *hosts: int, name: str = "", node: str = "n1") -> EndpointSlice:
    endpoints = tuple(Endpoint(address(f"10.244.1.{host}"), node=node) for host in hosts)
    port = Port("", 8080, Protocol.TCP)
    return EndpointSlice("default", name or f"{service}-1", service, 4, (port,), endpoints)


def pod(name: str, born: str = "", host_port: int = 8080, host: int = 1) -> KubePod:
    port = HostPort(host_port, Protocol.TCP, 80, None)
    return KubePod("default", name, "n1", (address(f"10.244.1.{host}"),), (port,), (born, name))


class Follower:
    """A translator, and what who follows its deltas ends up with."""

    def __init__(self, view: NodeView | None = VIEW) -> None:
        self.translator = ServiceTranslator(view)
        self.services: dict[Frontend, Service] = {}
        self.errors: dict[ObjectKey, Exception] = {}
        self.last = NodeDelta()

    def update(self, *events: ObjectEvent) -> NodeDelta:
        self.last = delta = self.translator.update(events)
        assert not {each.frontend for each in delta.upserts} & set(delta.removed)
        assert {each.frontend for each in delta.upserts} | set(delta.removed) == set(delta.causes)
        for frontend in delta.removed:
            del self.services[frontend]
        for each in delta.upserts:
            assert self.services.get(each.frontend) != each or self.services[each.frontend].name != each.name
            self.services[each.frontend] = each
        for key, error in delta.errors.items():
            self.errors.pop(key, None)
            if error is not None:
                self.errors[key] = error
        return delta


class TestDeltas:
    def test_an_endpoint_that_comes_changes_its_service_and_nothing_else(self) -> None:
        node = Follower()
        node.update(event(service()), event(service("shop", "10.96.0.11")), event(slice_of("web", 1)))
        delta = node.update(event(slice_of("web", 1, 2)))
        [changed] = delta.upserts
        assert changed.name == "default/web"
        assert len(changed.backends) == 2
        assert delta.removed == ()
        keys = set(delta.causes[changed.frontend])
        assert keys == {("Service", "default", "web"), ("EndpointSlice", "default", "web-1")}

    def test_what_changes_nothing_is_told_and_no_more(self) -> None:
        node = Follower()
        node.update(event(service()), event(slice_of("web", 1)))
        delta = node.update(event(evolve(slice_of("web", 1), triggered=5.0)))
        assert delta.upserts == ()
        [told] = delta.told
        assert (told.key, told.triggered) == (("EndpointSlice", "default", "web-1"), 5.0)

    def test_an_endpoint_that_moves_between_slices_in_one_batch_stays(self) -> None:
        node = Follower()
        first, second = slice_of("web", 1), slice_of("web", name="web-2")
        node.update(event(service()), event(first), event(second))
        delta = node.update(event(slice_of("web")), event(slice_of("web", 1, name="web-2")))
        assert delta.upserts == ()

    def test_an_endpoint_that_goes_or_comes_is_all_that_is_looked_at(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        node = Follower()
        node.update(event(service()), event(slice_of("web", 1, 2, 3)))
        [before] = node.services.values()
        monkeypatch.setattr("k8sdatapath.kube.translator.services_of", None)
        node.update(event(slice_of("web", 2, 3, 4)))
        [after] = node.services.values()
        assert [str(each.address) for each in after.backends] == [f"10.244.1.{host}" for host in (2, 3, 4)]
        assert after.frontend is before.frontend

    def test_a_slice_that_comes_back_in_one_batch_leaves_nothing_behind(self) -> None:
        node = Follower()
        first = slice_of("web", 1)
        node.update(event(service()), event(service("shop", "10.96.0.11")), event(first))
        back = evolve(first, endpoints=(*first.endpoints, Endpoint(address("10.244.1.2"), node="n1")))
        node.update(event(evolve(first, service="shop")), event(back))
        web, shop = (node.services[Frontend(ip, 80)] for ip in ("10.96.0.10", "10.96.0.11"))
        assert [str(each) for each in web.backends] == ["10.244.1.1:8080", "10.244.1.2:8080"]
        assert shop.backends == ()

    def test_what_one_endpoint_does_to_others_is_seen(self) -> None:
        node = Follower()
        node.update(event(service()), event(slice_of("web", 1)))
        leaving = Endpoint(address("10.244.1.2"), ready=False, terminating=True)
        node.update(event(evolve(slice_of("web", name="web-2"), endpoints=(leaving,))))
        node.update(event(slice_of("web")))
        [left] = node.services.values()
        assert [str(each) for each in left.candidates] == ["10.244.1.2:8080"]

    def test_a_service_made_anew_with_another_address_leaves_the_old_one(self) -> None:
        node = Follower()
        node.update(event(service()), event(slice_of("web", 1)))
        delta = node.update(event(service(ip="10.96.0.99")))
        assert delta.removed == (Frontend("10.96.0.10", 80),)
        [made] = delta.upserts
        assert (made.frontend, len(made.backends)) == (Frontend("10.96.0.99", 80), 1)

    def test_an_address_given_to_another_service_goes_over_in_one_delta(self) -> None:
        node = Follower()
        node.update(event(service("a")))
        delta = node.update(gone(service("a")), event(service("b")))
        assert delta.removed == ()
        assert [each.name for each in delta.upserts] == ["default/b"]

    def test_a_frontend_that_two_want_goes_to_the_other_when_it_is_free(self) -> None:
        one = service("a", external_ips=(address("203.0.113.1"),))
        two = service("b", "10.96.0.11", external_ips=(address("203.0.113.1"),))
        node = Follower()
        delta = node.update(event(one), event(two), event(NODE))
        assert [note for note in delta.notes if "b: 203.0.113.1:80" in note]
        delta = node.update(event(evolve(one, external_ips=())))
        assert {each.name for each in delta.upserts} == {"default/a", "default/b"}
        assert delta.notes == ()
        delta = node.update(event(one))
        assert [each.address for each in node.services[Frontend("10.96.0.11", 80)].exposed] == []

    def test_the_youngest_pod_has_the_host_port(self) -> None:
        node = Follower(NodeView("n1", addresses=["192.0.2.11"]))
        node.update(event(pod("old", "2026-01-01", host=1)))
        place = Frontend("192.0.2.11", 8080)
        delta = node.update(event(pod("new", "2026-01-02", host=2)))
        assert (delta.removed, node.services[place].name) == ((), "default/new:8080")
        node.update(gone(pod("new")))
        assert node.services[place].name == "default/old:8080"

    def test_health_checks_are_the_same_tuple_until_they_change(self) -> None:
        node = Follower()
        balanced = service(kind="LoadBalancer", external_local=True, health_port=32000)
        checks = node.update(event(balanced), event(slice_of("web", 1))).health_checks
        assert [each.ipv4 for each in checks] == [1]
        assert node.update(event(service("other", "10.96.0.11"))).health_checks is checks
        assert [each.ipv4 for each in node.update(event(slice_of("web"))).health_checks] == [0]


def exposed(node: Follower) -> set[str]:
    addresses = (each.address for service in node.services.values() for each in service.exposed)
    return {str(each) for each in addresses if not each.is_loopback}


class TestTheNode:
    def test_its_object_gives_addresses_and_zone(self) -> None:
        node = Follower()
        node.update(event(service(kind="NodePort", node_port=30080)))
        assert exposed(node) == set()
        delta = node.update(event(NODE))
        assert [each.name for each in delta.upserts] == ["default/web"]
        assert delta.view == NodeView("n1", "z1", ["192.0.2.11"])
        assert exposed(node) == {"192.0.2.11"}
        node.update(event(evolve(NODE, addresses=(address("192.0.2.50"),))))
        assert exposed(node) == {"192.0.2.50"}

    def test_what_was_given_is_not_overruled(self) -> None:
        view = NodeView("n1", "mine", ["192.0.2.77"])
        node = Follower(view)
        assert node.update(event(NODE)).view == view

    def test_another_node_is_none_of_ours_and_ours_stays_when_its_object_goes(self) -> None:
        node = Follower()
        node.update(event(NODE))
        delta = node.update(event(evolve(NODE, name="n2", zone="z2")), gone(NODE))
        assert delta.view == NodeView("n1", "z1", ["192.0.2.11"])


class TestErrors:
    def test_what_cannot_be_read_keeps_what_it_had(self) -> None:
        node = Follower()
        node.update(event(service()), event(slice_of("web", 1)))
        delta = node.update(unreadable(service()), unreadable(slice_of()))
        assert (delta.upserts, delta.removed) == ((), ())
        assert set(node.errors) == {("Service", "default", "web"), ("EndpointSlice", "default", "web-1")}
        node.update(event(service()), gone(slice_of()))
        assert node.errors == {}
        assert node.services[Frontend("10.96.0.10", 80)].backends == ()

    def test_of_two_services_with_one_cluster_ip_the_second_by_name_has_an_error(self) -> None:
        node = Follower()
        node.update(event(service("b")))
        node.update(event(service("a")))
        assert [each.name for each in node.services.values()] == ["default/a"]
        assert set(node.errors) == {("Service", "default", "b")}
        node.update(gone(service("a")))
        assert [each.name for each in node.services.values()] == ["default/b"]
        assert node.errors == {}


addresses = st.sampled_from([address(f"10.96.0.{last}") for last in (1, 2, 3)])
virtual = st.lists(
    st.sampled_from([address(each) for each in ("203.0.113.1", "192.0.2.11", "10.96.0.1")]),
    max_size=2,
    unique=True,
).map(tuple)
protocols = st.sampled_from([Protocol.TCP, Protocol.TCP, Protocol.UDP])
names = st.sampled_from("abc")
ports = st.lists(
    st.builds(
        Port,
        st.sampled_from(["", "x"]),
        st.sampled_from([80, 8080, 30080]),
        protocols,
        st.sampled_from([0, 30080, 30081]),
    ),
    min_size=1,
    max_size=2,
    unique_by=(lambda port: port.name, lambda port: (port.number, port.protocol)),
).map(tuple)
services = st.builds(
    KubeService,
    st.just("default"),
    names,
    addresses.map(lambda ip: (ip,)),
    ports,
    kind=st.sampled_from(["ClusterIP", "NodePort", "LoadBalancer"]),
    load_balancer_ips=virtual,
    external_ips=virtual,
    internal_local=st.booleans(),
    external_local=st.booleans(),
    health_port=st.sampled_from([0, 32000]),
).map(lambda made: evolve(made, where=made.name))
hints = st.sampled_from([frozenset(), frozenset(["z1"]), frozenset(["z2"])])
endpoints = st.builds(
    Endpoint,
    st.integers(1, 4).map(lambda last: address(f"10.244.1.{last}")),
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.sampled_from(["n1", "n2"]),
    zone_hints=hints,
)
slices = st.builds(
    EndpointSlice,
    st.just("default"),
    st.sampled_from(["one", "two", "three"]),
    names,
    st.just(4),
    st.lists(
        st.builds(Port, st.sampled_from(["", "x"]), st.sampled_from([80, 81]), protocols),
        max_size=2,
        unique_by=lambda port: (port.name, port.protocol),
    ).map(tuple),
    st.lists(endpoints, max_size=3).map(tuple),
)
pods = st.builds(
    KubePod,
    st.just("default"),
    names,
    st.sampled_from(["n1", "n1", "n2"]),
    st.just((address("10.244.1.1"),)),
    st.lists(
        st.builds(
            HostPort,
            st.sampled_from([80, 8080, 30080]),
            protocols,
            st.just(80),
            st.sampled_from([None, address("192.0.2.11"), address("203.0.113.1")]),
        ),
        min_size=1,
        max_size=2,
        unique_by=lambda port: (port.number, port.protocol),
    ).map(tuple),
    st.tuples(st.sampled_from(["2026-01-01", "2026-01-02"]), names),
)
nodes = st.builds(
    KubeNode,
    st.sampled_from(["n1", "n1", "n2"]),
    st.sampled_from(["", "z1", "z2"]),
    st.lists(st.sampled_from([address("192.0.2.11"), address("192.0.2.12")]), unique=True).map(tuple),
)
histories = st.lists(
    st.tuples(st.one_of(services, slices, pods, nodes), st.sampled_from([event, event, gone, unreadable])),
    min_size=1,
    max_size=5,
)


History: TypeAlias = list[tuple[KubeObject, Callable[[KubeObject], ObjectEvent]]]


class Histories(RuleBasedStateMachine):
    """Random events, in batches, against the objects that they leave behind."""

    view: NodeView | None = VIEW

    def __init__(self) -> None:
        super().__init__()
        self.node = Follower(self.view)
        self.objects: dict[ObjectKey, KubeObject] = {}
        self.seen = self.view
        self.unreadable: set[ObjectKey] = set()

    @rule(history=histories)
    def batch(self, history: History) -> None:
        batch = {told.key: told for told in (make(object) for object, make in history)}
        for key, told in batch.items():
            self.unreadable.discard(key)
            if told.error is not None:
                self.unreadable.add(key)
            elif told.object is None:
                self.objects.pop(key, None)
            else:
                self.objects[key] = told.object
                if self.view is not None and isinstance(told.object, KubeNode) and told.name == "n1":
                    self.seen = self.view.completed(told.object)
        self.node.update(*batch.values())

    @invariant()
    def all_is_as_translate_has_it(self) -> None:
        wanted = translate(self.objects.values(), self.seen, strict=False)
        assert self.node.services == {each.frontend: each for each in wanted.services}
        assert {each.name for each in self.node.services.values()} == {s.name for s in wanted.services}
        assert set(self.node.translator.services) == set(wanted.services)
        if self.view is not None:
            assert set(self.node.last.health_checks) == set(wanted.health_checks)
            assert set(self.node.last.notes) == set(wanted.notes)
        at_odds = {("Service", "default", error.where) for error in wanted.errors}
        assert set(self.node.errors) == at_odds | self.unreadable
        assert self.node.errors == self.node.translator.errors


TestHistories = Histories.TestCase
TestHistories.settings = settings(max_examples=100, stateful_step_count=15)


class HistoriesOfNoNode(Histories):
    """The same where no node is known."""

    view = None


TestHistoriesOfNoNode = HistoriesOfNoNode.TestCase
TestHistoriesOfNoNode.settings = settings(max_examples=30, stateful_step_count=10)


PUBLIC = address("203.0.113.1")
TWO_PORTS = Port("", 80, Protocol.TCP), Port("x", 81, Protocol.UDP)
few_endpoints = [
    *(
        Endpoint(address(f"10.244.1.{last}"), node=node)
        for last in (1, 2, 3, 4, 5, 6, 7, 8)
        for node in ("n1", "n2")
    ),
    Endpoint(address("10.244.1.1"), ready=False, terminating=True),
    Endpoint(address("10.244.1.2"), zone_hints=frozenset(["z1"])),
]
few_services = [
    service("a", ports=TWO_PORTS, internal_local=True),
    service("b", "10.96.0.11"),
    service(
        "a",
        kind="LoadBalancer",
        external_local=True,
        health_port=32000,
        external_ips=(address("203.0.113.1"),),
    ),
]
slices_of_few = st.builds(
    EndpointSlice,
    st.just("default"),
    st.sampled_from(["one", "two", "three"]),
    st.sampled_from(["a", "a", "a", "b"]),
    st.just(4),
    st.sampled_from(
        [(Port("", 80, Protocol.TCP), Port("x", 81, Protocol.UDP)), (Port("", 82, Protocol.TCP),)]
    ),
    st.lists(st.sampled_from(few_endpoints[:16]) | st.sampled_from(few_endpoints), max_size=6).map(tuple),
)
histories_of_few = st.lists(
    st.tuples(slices_of_few, st.sampled_from([event, event, event, gone, unreadable]))
    | st.tuples(st.sampled_from(few_services), st.just(event)),
    min_size=1,
    max_size=3,
)


class HistoriesOfEndpoints(Histories):
    """Endpoints that come and go, the very same values again: most changes need no look at others."""

    @rule(history=histories_of_few)
    def batch(self, history: History) -> None:
        super().batch(history)


TestHistoriesOfEndpoints = HistoriesOfEndpoints.TestCase
TestHistoriesOfEndpoints.settings = settings(max_examples=100, stateful_step_count=20)
