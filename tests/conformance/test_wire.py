"""Manifests in, packets on the wire: two nodes, each with its own view of the same objects."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest

from k8sdatapath.kube import NodeView, Translation
from k8sdatapath.kube.health import HealthServer
from k8sdatapath.lab import Lab
from k8sdatapath.lab.host import Host
from k8sdatapath.lab.lab import LabNode
from k8sdatapath.node import Capacity
from tests.conformance.manifests import Object, endpoint, part, service, translated

SMALL = Capacity(services=1024, backends=4096, slots=65536, flows=65536, pods=64)
VIP, BALANCED, PORT = "10.96.0.10", "203.0.113.7", 30080
SERVING, ENDING = (False, True, True), (False, False, True)


class World:
    """Pods ``one`` on n1 and ``two`` on n2 say their names; one on each to ask from, and a host outside."""

    def __init__(self, lab: Lab, sockets: bool) -> None:
        self.lab = lab
        self.n1, self.n2 = lab.nodes
        self.one, self.two = lab.pod("one", self.n1), lab.pod("two", self.n2)
        self.near, self.far = lab.pod("near", self.n1), lab.pod("far", self.n2)
        self.outside = lab.external("outside")
        self.clients: list[Host] = [self.near, self.far, self.outside]
        if sockets:  # what the node's own processes send is balanced nowhere else
            self.clients.append(self.n1)
        for pod in self.one, self.two:
            pod.serve_http(8080, pod.name)

    def apply(self, *objects: Object) -> Translation:
        """To both nodes; what n1 made of it."""
        found = {}
        for node, name in (self.n1, "n1"), (self.n2, "n2"):
            view = NodeView(name, addresses=node.addresses)
            found[name] = translated(*objects, node=view)
            node.services.plan(found[name].services).apply()
        return found["n1"]

    def slice(self, one: tuple[bool, ...] = (), two: tuple[bool, ...] | None = ()) -> Object:
        """The endpoints, ready unless conditions are told; ``two`` may be absent."""
        eps = [endpoint(str(self.one.address), *one, nodeName="n1")]
        if two is not None:
            eps.append(endpoint(str(self.two.address), *two, nodeName="n2"))
        return part(*eps)


@pytest.fixture(scope="module", params=[True, False], ids=["socket", "tc"])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    with Lab.start(nodes=2, capacity=SMALL, socket_lb=request.param) as lab:
        yield World(lab, request.param)


def balancer(**spec: object) -> Object:
    ports = [{"port": 80, "nodePort": PORT}]
    found = service(**{"type": "LoadBalancer", "ports": ports} | spec)
    return found | {"status": {"loadBalancer": {"ingress": [{"ip": BALANCED}]}}}


def answers(client: Host, address: object, port: int = 80, times: int = 12) -> set[str]:
    """Who answers; ``refused`` if nobody does."""
    found = set()
    for _ in range(times):
        try:
            found.add(client.get(f"http://{address}:{port}/").text)
        except ConnectionRefusedError:
            return {"refused"}
    return found


def dropped(client: Host, address: object, port: int = 80) -> bool:
    """Whether nobody answers, nor refuses to."""
    try:
        client.get(f"http://{address}:{port}/", timeout=0.5)
    except TimeoutError:
        return True
    return False


BOTH = {"one", "two"}


def at(node: LabNode, client: Host) -> set[str]:
    return answers(client, node.address, PORT)


def test_by_default_every_way_leads_to_every_endpoint(world: World) -> None:
    world.apply(balancer(), world.slice())
    for client in world.clients:
        assert answers(client, VIP, times=40) == BOTH
        assert answers(client, BALANCED, times=40) == BOTH
        assert answers(client, world.n1.address, PORT, times=40) == BOTH


class TestExternalLocal:
    def test_from_outside_each_node_answers_by_its_own(self, world: World) -> None:
        world.apply(balancer(externalTrafficPolicy="Local"), world.slice())
        assert at(world.n1, world.outside) == {"one"}
        assert at(world.n2, world.outside) == {"two"}
        assert at(world.n1, world.far) == {"one"}  # a pod elsewhere is outside of this node

    def test_from_the_node_itself_all_answer(self, world: World) -> None:
        world.apply(balancer(externalTrafficPolicy="Local"), world.slice())
        for address, port in (world.n1.address, PORT), (BALANCED, 80), (VIP, 80):
            assert answers(world.near, address, port, times=40) == BOTH

    def test_one_that_leaves_stands_in_on_its_node_only(self, world: World) -> None:
        """Who resolves another node's address at the socket, by its own sets, gets one of these wrong."""
        world.apply(balancer(externalTrafficPolicy="Local"), world.slice(SERVING, None))
        assert at(world.n1, world.far) == {"one"}
        assert dropped(world.near, world.n2.address, PORT)
        assert at(world.n1, world.near) == {"one"}

    def test_one_that_leaves_here_and_a_ready_one_there(self, world: World) -> None:
        world.apply(balancer(externalTrafficPolicy="Local"), world.slice(SERVING))
        assert at(world.n1, world.outside) == {"one"}
        assert answers(world.near, VIP) == {"two"}

    def test_none_here_is_dropped_and_none_anywhere_refused(self, world: World) -> None:
        world.apply(balancer(externalTrafficPolicy="Local"), world.slice(ENDING))
        assert dropped(world.outside, world.n1.address, PORT)
        assert at(world.n2, world.outside) == {"two"}
        assert answers(world.near, VIP) == {"two"}
        world.apply(balancer(externalTrafficPolicy="Local"), world.slice(ENDING, None))
        assert answers(world.near, VIP) == {"refused"}


def test_internal_local(world: World) -> None:
    world.apply(balancer(internalTrafficPolicy="Local"), world.slice())
    assert answers(world.near, VIP) == {"one"}
    assert answers(world.far, VIP) == {"two"}
    assert answers(world.near, BALANCED, times=40) == BOTH


def test_source_ranges_hold_at_the_load_balancers_address_only(world: World) -> None:
    world.apply(balancer(loadBalancerSourceRanges=[f" {world.outside.address}/32 "]), world.slice())
    assert answers(world.outside, BALANCED) <= BOTH
    assert dropped(world.near, BALANCED)
    assert at(world.n1, world.near) <= BOTH
    assert answers(world.near, VIP) <= BOTH


def test_affinity_is_kept_and_ends_with_its_backend(world: World) -> None:
    sticky = balancer(sessionAffinity="ClientIP")
    world.apply(sticky, world.slice())
    [first] = answers(world.near, VIP)
    assert len(answers(world.outside, world.n1.address, PORT)) == 1
    leaves = world.slice(SERVING) if first == "one" else world.slice((), SERVING)
    world.apply(sticky, leaves)
    assert answers(world.near, VIP) == BOTH - {first}


def test_hints_lead_to_the_node(world: World) -> None:
    hinted = world.slice()
    for each, name in zip(hinted["endpoints"], ("n1", "n2"), strict=True):  # type: ignore[call-overload]
        each["hints"] = {"forNodes": [{"name": name}]}
    world.apply(balancer(), hinted)
    assert answers(world.near, VIP) == {"one"}
    assert answers(world.far, VIP) == {"two"}


def test_host_port(world: World) -> None:
    ports = [{"containerPort": 8080, "hostPort": 8000}]
    world.apply(
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "one"},
            "spec": {"nodeName": "n1", "containers": [{"ports": ports}]},
            "status": {"podIPs": [{"ip": str(world.one.address)}]},
        }
    )
    for client in world.clients:
        assert answers(client, world.n1.address, 8000) == {"one"}
    assert answers(world.outside, world.n2.address, 8000) == {"refused"}


def test_a_load_balancer_is_told_before_traffic_has_to_end(world: World) -> None:
    """One that terminates answers still, while the node says that it has none any more."""
    local = balancer(externalTrafficPolicy="Local", healthCheckNodePort=32000)
    with HealthServer([world.n1.address]) as health:
        told = Counter[str]()
        for conditions, status in ((), 200), (SERVING, 503):
            checks = world.apply(local, world.slice(conditions)).health_checks
            world.n1.netns.call(health.update, checks)
            assert health.failed == {}
            answer = world.outside.get(f"http://{world.n1.address}:32000/healthz")
            assert answer.status == status
            assert at(world.n1, world.outside) == {"one"}
            told[answer.text] += 1
    assert len(told) == 2
