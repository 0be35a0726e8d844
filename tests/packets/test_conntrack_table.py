"""The flows that the programs make, as the conntrack table tells them, ages them and takes them away."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from k8sdatapath.datapath.conntrack_table import ConntrackTable
from k8sdatapath.datapath.flow import FlowState
from k8sdatapath.model import Protocol
from tests.packets.rig import Rig, rig
from tests.packets.world import TCP, UDP, WORLDS, World

TO, BACK = ("client", "service"), ("one", "client")

#: What is sent, each with its flags -> the state that the flow is in.
STORIES = {
    "a SYN": (TCP, [(TO, "S")], FlowState.OPENING),
    "a handshake": (TCP, [(TO, "S"), (BACK, "SA"), (TO, "A")], FlowState.ESTABLISHED),
    "one side ends": (TCP, [(TO, "S"), (BACK, "SA"), (TO, "FA"), (BACK, "A")], FlowState.ESTABLISHED),
    "both sides end": (TCP, [(TO, "S"), (BACK, "SA"), (TO, "FA"), (BACK, "FA")], FlowState.CLOSED),
    "the client breaks off": (TCP, [(TO, "S"), (BACK, "SA"), (TO, "RA")], FlowState.CLOSED),
    "the backend refuses": (TCP, [(TO, "S"), (BACK, "RA")], FlowState.CLOSED),
    "a datagram": (UDP, [(TO, "")], FlowState.ONE_WAY),
    "an answer": (UDP, [(TO, ""), (BACK, "")], FlowState.ANSWERED),
}


@pytest.fixture(params=WORLDS, ids=lambda world: world.name)
def world(request: pytest.FixtureRequest) -> World:
    made: World = request.param
    return made


@pytest.fixture
def pod() -> Iterator[Rig]:
    with rig() as made:
        yield made


def tell(pod: Rig, world: World, protocol: Protocol, story: list[tuple[tuple[str, str], str]]) -> None:
    pod.services.upsert(world.service("service", protocol, ["one"]))
    for (src, dst), flags in story:
        pod.send(world.frame(src, dst, protocol, flags))


@pytest.mark.parametrize(("protocol", "story", "state"), STORIES.values(), ids=STORIES)
def test_a_flow_is_told_and_forgotten_as_its_state_allows(
    pod: Rig,
    world: World,
    protocol: Protocol,
    story: list[tuple[tuple[str, str], str]],
    state: FlowState,
) -> None:
    tell(pod, world, protocol, story)
    with ConntrackTable.bind(pod.loaded) as table:
        (flow,) = table.flows()
        ends = [(str(end.address), end.port) for end in (flow.client, flow.frontend, flow.backend)]
        assert ends == [world["client"], world["service"], world["one"]]
        assert (flow.protocol, flow.state, flow.packets) == (protocol, state, len(story))
        assert flow.age <= 1
        now = int(time.monotonic()) + table.timeouts.of(state)
        assert table.collect(now - 2) == 0
        assert len(pod.flows) == 2
        assert table.collect(now + 1) == 1
        assert len(pod.flows) == 0


def test_the_next_packet_of_a_forgotten_flow_begins_a_new_one(pod: Rig, world: World) -> None:
    tell(pod, world, UDP, [(TO, ""), (BACK, "")])
    with ConntrackTable.bind(pod.loaded) as table:
        assert table.flush() == 1
        tell(pod, world, UDP, [(TO, ""), (BACK, "")])
        (flow,) = table.flows()
        assert flow.state is FlowState.ANSWERED


def test_many_flows_are_collected_but_for_the_live_ones(pod: Rig, world: World) -> None:
    pod.services.upsert(world.service("service", UDP, ["one"]))
    address = world.address("client")
    for port in range(2000, 4000):
        at = World("", world.places | {"client": (address, port)})
        pod.send(at.frame("client", "service", UDP))
    with ConntrackTable.bind(pod.loaded) as table:
        pod.let_time_pass()
        for port in range(2000, 2010):
            at = World("", world.places | {"client": (address, port)})
            pod.send(at.frame("client", "service", UDP))
        assert table.collect() == 1990
        assert sorted(flow.client.port for flow in table.flows()) == list(range(2000, 2010))
