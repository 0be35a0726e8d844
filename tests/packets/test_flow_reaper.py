"""Flows of datagrams are forgotten when a change has ended them, though no datagram comes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from attrs import evolve

from k8sdatapath.datapath.conntrack_table import ConntrackTable
from k8sdatapath.datapath.flow import FlowLosses, FlowState
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


def assert_none(datapath: Rig, reaper: FlowReaper) -> None:
    """There are no flows; and soon nothing at all, as nobody waits for answers any more."""
    table = ConntrackTable.bind({"kd_conntrack": datapath.flows})
    assert list(table.flows()) == []
    assert table.stats().states == {}
    datapath.let_time_pass()
    assert reaper.reap() == 0
    assert len(datapath.flows) == 0


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
    assert_none(datapath, reaper)


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
    left = list(ConntrackTable.bind({"kd_conntrack": datapath.flows}).flows())
    assert {(str(flow.frontend.address), flow.frontend.port) for flow in left} == {world["service"]}
    assert len(left) == CLIENTS
    datapath.let_time_pass()
    assert reaper.reap() == 0
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
    assert_none(datapath, reaper)


def came_from(datapath: Rig, world: World, pod: str) -> tuple[str, int]:
    """Whom an answer of a pod seems to be from."""
    answer = datapath.send(world.frame(pod, "client", UDP)).packet
    return str(answer.src), answer.sport


def reap(datapath: Rig, reaper: FlowReaper, world: World) -> None:
    assert reaper.reap() == 1


def ask_again(datapath: Rig, reaper: FlowReaper, world: World) -> None:
    datapath.send(world.frame("client", "service", UDP))


@FAMILIES
@pytest.mark.parametrize("then", [reap, ask_again])
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_an_answer_on_its_way_comes_from_the_service_though_its_backend_is_gone(
    datapath: Rig, reaper: FlowReaper, world: World, change: object, then: object
) -> None:
    assert callable(change)
    assert callable(then)
    datapath.services.upsert(exposed(world, UDP, "service", "one"))
    datapath.send(world.frame("client", "service", UDP))
    datapath.services.plan(change(world)).apply()
    if then is ask_again and not change(world):  # what was dialled is asked for once a second
        datapath.flows.update_many(
            {key: evolve(row, last_seen=max(row.last_seen - 1, 0)) for key, row in datapath.flows.items()}
        )
    then(datapath, reaper, world)
    for _ in range(2):
        assert came_from(datapath, world, "one") == world["service"]
        reaper.reap()
    datapath.let_time_pass()
    assert came_from(datapath, world, "one") == world["one"]


@FAMILIES
def test_a_backend_that_never_stops_to_answer_is_not_the_service_for_ever(
    datapath: Rig, reaper: FlowReaper, world: World
) -> None:
    datapath.services.upsert(exposed(world, UDP, "service", "one"))
    datapath.send(world.frame("client", "service", UDP))
    datapath.services.upsert(exposed(world, UDP, "service", "two"))
    assert reaper.reap() == 1
    for seconds in range(6):
        expected = world["service"] if seconds < 2 else world["one"]
        if seconds not in (2, 3):  # it may take part of a second longer
            assert came_from(datapath, world, "one") == expected
        datapath.flows.update_many(
            {key: evolve(row, last_seen=max(row.last_seen - 1, 0)) for key, row in datapath.flows.items()}
        )
    assert_none(datapath, reaper)


@FAMILIES
def test_a_backend_that_is_back_at_once_has_its_flow_again(
    datapath: Rig, reaper: FlowReaper, world: World
) -> None:
    for _ in range(3):
        datapath.services.upsert(exposed(world, UDP, "service", "one"))
        datapath.send(world.frame("client", "service", UDP))
        assert came_from(datapath, world, "one") == world["service"]
        (flow,) = ConntrackTable.bind({"kd_conntrack": datapath.flows}).flows()
        assert flow.state is FlowState.ANSWERED
        assert reaper.reap() == 0
        datapath.services.upsert(exposed(world, UDP, "service"))
        assert reaper.reap() == 1
    assert ConntrackTable.bind(datapath.loaded).losses() == FlowLosses()


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
    assert_none(datapath, reaper)


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
