"""Addresses that go from one service to another, or go: flows follow them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from attrs import evolve

from k8sdatapath.datapath.conntrack_table import ConntrackTable
from k8sdatapath.datapath.flow import Flow
from k8sdatapath.model import Backend, Exposure, FrontendKind, Protocol, Selection, Service
from tests.packets.rig import Rig, rig
from tests.packets.world import PROTOCOLS, TCP, UDP, V4, WORLDS, World

FAMILIES = pytest.mark.parametrize("world", WORLDS, ids=lambda world: world.name)


@pytest.fixture
def datapath() -> Iterator[Rig]:
    with rig("from_uplink", redirect=False) as made:
        yield made


def owner(world: World, name: str, backend: str, protocol: Protocol, *, has: bool) -> Service:
    """A service that may have the load balancer's address."""
    exposed = [Exposure(FrontendKind.LOAD_BALANCER, *world["balancer"])] if has else []
    return Service(*world[name], protocol, backends=[Backend(*world[backend])], exposed=exposed)


def owned_by(datapath: Rig, world: World, protocol: Protocol, name: str) -> None:
    datapath.services.plan(
        owner(world, main, backend, protocol, has=main == name)
        for main, backend in (("service", "one"), ("other", "two"))
    ).apply()


def next_second(datapath: Rig) -> None:
    flows = datapath.flows
    flows.update_many({key: evolve(row, last_seen=max(0, row.last_seen - 1)) for key, row in flows.items()})


def listed(datapath: Rig) -> list[Flow]:
    return list(ConntrackTable.bind({"kd_conntrack": datapath.flows}).flows())


def reached(datapath: Rig, world: World, protocol: Protocol, flags: str = "A") -> str:
    sent = datapath.send(world.frame("stranger", "balancer", protocol, flags))
    return str(sent.packet.dst) if sent.outcome == "TO_STACK" else sent.outcome


@FAMILIES
def test_datagrams_follow_an_address_to_another_service(datapath: Rig, world: World) -> None:
    """Even of a sender that never waits for an answer, and whose flow so never ends."""
    for name, backend in (("service", "one"), ("other", "two"), ("service", "one")):
        owned_by(datapath, world, UDP, name)
        next_second(datapath)
        assert reached(datapath, world, UDP) == world.address(backend)
        answer = datapath.send(world.frame(backend, "stranger", UDP)).packet
        assert (str(answer.src), answer.sport) == world["balancer"]
        assert len(listed(datapath)) == 1


@FAMILIES
def test_datagrams_end_with_their_frontend(datapath: Rig, world: World) -> None:
    """Its service and backend stay."""
    owned_by(datapath, world, UDP, "service")
    assert reached(datapath, world, UDP) == world.address("one")
    owned_by(datapath, world, UDP, "nobody")
    next_second(datapath)
    assert reached(datapath, world, UDP) == "PASS"
    assert not listed(datapath)


@FAMILIES
def test_connections_go_on_and_the_next_follow_the_address(datapath: Rig, world: World) -> None:
    owned_by(datapath, world, TCP, "service")
    assert reached(datapath, world, TCP, "S") == world.address("one")
    owned_by(datapath, world, TCP, "other")
    next_second(datapath)
    assert reached(datapath, world, TCP, "A") == world.address("one")
    assert reached(datapath, world, TCP, "S") == world.address("two")
    assert reached(datapath, world, TCP, "A") == world.address("two")


@pytest.mark.parametrize("protocol", PROTOCOLS, ids=lambda protocol: protocol.name)
@pytest.mark.parametrize("selection", list(Selection), ids=lambda selection: selection.name)
def test_a_backend_without_weight_keeps_the_flows_it_has(
    datapath: Rig, protocol: Protocol, selection: Selection
) -> None:
    before = evolve(owner(V4, "service", "one", protocol, has=True), selection=selection)
    datapath.services.upsert(before)
    assert reached(datapath, V4, protocol, "S") == V4.address("one")
    idle = [Backend(*V4["one"], weight=0), Backend(*V4["two"])]
    datapath.services.upsert(evolve(before, backends=idle))
    next_second(datapath)
    assert {reached(datapath, V4, protocol) for _ in range(10)} == {V4.address("one")}
    for _ in range(20):
        datapath.flows.clear()
        assert reached(datapath, V4, protocol, "S") == V4.address("two")


@pytest.mark.parametrize("protocol", PROTOCOLS, ids=lambda protocol: protocol.name)
def test_other_changes_of_a_service_move_no_flow(datapath: Rig, protocol: Protocol) -> None:
    before = owner(V4, "service", "one", protocol, has=True)
    datapath.services.upsert(before)
    assert reached(datapath, V4, protocol, "S") == V4.address("one")
    after = evolve(before, backends=[*before.backends, Backend(*V4["two"])], affinity_timeout=10)
    datapath.services.upsert(evolve(after, external_local=True, source_ranges=["192.0.2.0/24"]))
    next_second(datapath)
    assert reached(datapath, V4, protocol) == V4.address("one")
