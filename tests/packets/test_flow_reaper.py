"""Flows of datagrams are forgotten when a change has ended them, though no datagram comes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from attrs import evolve

from k8sdatapath.datapath.flow_reaper import FlowReaper
from k8sdatapath.errors import ContractError
from k8sdatapath.model import Exposure, FrontendKind, Protocol, Service
from tests.packets.rig import Rig, rig
from tests.packets.world import TCP, UDP, V4, WORLDS, World

FAMILIES = pytest.mark.parametrize("world", WORLDS, ids=lambda world: world.name)
CLIENTS = 3


@pytest.fixture
def datapath() -> Iterator[Rig]:
    with rig("from_uplink", redirect=False) as made:
        yield made


@pytest.fixture
def reaper(datapath: Rig) -> Iterator[FlowReaper]:
    with FlowReaper.bind(datapath.loaded) as made:
        yield made


def exposed(world: World, protocol: Protocol, name: str, *backends: str, has: bool = True) -> Service:
    balancer = [Exposure(FrontendKind.LOAD_BALANCER, *world["balancer"])] if has else []
    return evolve(world.service(name, protocol, list(backends)), exposed=balancer)


def begin(datapath: Rig, world: World, protocol: Protocol, dialled: str = "service") -> None:
    """Some clients dial, and are silent from then on."""
    for port in range(2000, 2000 + CLIENTS):
        at = World("", world.places | {"client": (world.address("client"), port)})
        datapath.send(at.frame("client", dialled, protocol))


CHANGES = {
    "the backend is another": lambda world: [exposed(world, UDP, "service", "two")],
    "nobody is left": lambda world: [exposed(world, UDP, "service")],
    "the service is gone": lambda world: [],
}


@FAMILIES
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_flows_to_who_is_gone_are_forgotten(
    datapath: Rig, reaper: FlowReaper, world: World, change: object
) -> None:
    assert callable(change)
    datapath.services.upsert(exposed(world, UDP, "service", "one"))
    for dialled in ("service", "balancer"):
        begin(datapath, world, UDP, dialled)
    assert reaper.reap() == 0
    assert len(datapath.flows) == 4 * CLIENTS
    datapath.services.plan(change(world)).apply()
    assert reaper.reap() == 2 * CLIENTS
    assert len(datapath.flows) == 0


@FAMILIES
def test_an_address_that_another_service_has_takes_its_flows_along(
    datapath: Rig, reaper: FlowReaper, world: World
) -> None:
    """Those at the other address of the service stay, and so does its backend."""
    datapath.services.upsert(exposed(world, UDP, "service", "one"))
    for dialled in ("service", "balancer"):
        begin(datapath, world, UDP, dialled)
    datapath.services.plan(
        [exposed(world, UDP, "service", "one", has=False), exposed(world, UDP, "other", "two")]
    ).apply()
    assert reaper.reap() == CLIENTS
    assert {str(row.to.dst) for row in datapath.flows.values()} == {
        world.address("client"),
        world.address("one"),
    }
    assert len(datapath.flows) == 2 * CLIENTS


@FAMILIES
def test_connections_and_flows_to_a_backend_that_leaves_stay(
    datapath: Rig, reaper: FlowReaper, world: World
) -> None:
    datapath.services.upsert(exposed(world, TCP, "service", "one"), exposed(world, UDP, "service", "one"))
    begin(datapath, world, TCP)
    begin(datapath, world, UDP)
    datapath.services.upsert(
        exposed(world, TCP, "service", "two"), world.service("service", UDP, ["one", "two"], leaving=("one",))
    )
    assert reaper.reap() == 0
    assert len(datapath.flows) == 4 * CLIENTS


@FAMILIES
@pytest.mark.parametrize("lost", ["original", "reply"])
def test_half_a_flow_is_forgotten_too(datapath: Rig, reaper: FlowReaper, world: World, lost: str) -> None:
    datapath.services.upsert(exposed(world, UDP, "service", "one"))
    begin(datapath, world, UDP)
    for key, row in list(datapath.flows.items()):
        if (row.flags & 1) == (lost == "reply"):
            del datapath.flows[key]
    datapath.services.remove(exposed(world, UDP, "service", "one").frontend)
    assert reaper.reap() == CLIENTS
    assert len(datapath.flows) == 0


def test_many_are_gone_in_one_walk(datapath: Rig, reaper: FlowReaper) -> None:
    datapath.services.upsert(V4.service("service", UDP, ["one"]))
    frames = [
        World("", V4.places | {"client": (V4.address("client"), port)}).frame("client", "service", UDP)
        for port in range(2000, 22000)
    ]
    datapath.loaded.programs["from_uplink"].run_many(frames)
    assert len(datapath.flows) == 40_000
    datapath.services.upsert(V4.service("service", UDP, ["two"]))
    assert reaper.reap() == 20_000
    assert len(datapath.flows) == 0


def test_the_table_says_when_there_is_something_to_forget(datapath: Rig) -> None:
    told: list[str] = []
    services = datapath.services
    services.on_leave = lambda: told.append("now")
    one, both = V4.service("service", UDP, ["one"]), V4.service("service", UDP, ["one", "two"])
    services.upsert(one, V4.service("service", TCP, ["one"]))
    services.upsert(both, V4.service("service", TCP, ["two"]))
    services.upsert(evolve(both, affinity_timeout=10, exposed=exposed(V4, UDP, "service").exposed))
    services.remove(V4.service("service", TCP, []).frontend)
    assert told == []
    services.upsert(evolve(both, affinity_timeout=10))
    assert len(told) == 1  # an address less
    services.upsert(one)
    assert len(told) == 2  # a backend less
    services.remove(one.frontend)
    assert len(told) == 3


def test_a_source_without_flows_is_refused() -> None:
    with pytest.raises(ContractError, match=r"a flow reaper needs .*kd_conntrack"):
        FlowReaper.bind({})
