"""The flows that the programs make, as the conntrack table tells them, ages them and takes them away."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator
from contextlib import suppress

import pytest
from attrs import evolve

from k8sdatapath import maps
from k8sdatapath.datapath.conntrack_table import ConntrackTable
from k8sdatapath.datapath.flow import FlowLosses, FlowState
from k8sdatapath.datapath.flow_collector import FlowCollector
from k8sdatapath.datapath.service_table import ServiceTable
from k8sdatapath.errors import KeyNotFoundError
from k8sdatapath.model import Protocol
from k8sdatapath.net.packet import tcp
from k8sdatapath.objects import ObjectSpec
from k8sdatapath.programs import TC
from k8sdatapath.tables.conntrack import ConntrackRow, FlowFlags, Tuple
from k8sdatapath.tables.halves import Pair
from tests.packets.rig import SIZES, Rig, rig
from tests.packets.world import TCP, UDP, V4, WORLDS, World

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
    begun = int(time.monotonic())
    tell(pod, world, protocol, story)
    with ConntrackTable.bind(pod.loaded) as table:
        (flow,) = table.flows()
        ends = [(str(end.address), end.port) for end in (flow.client, flow.frontend, flow.backend)]
        assert ends == [world["client"], world["service"], world["one"]]
        assert (flow.protocol, flow.state, flow.packets) == (protocol, state, len(story))
        assert flow.age <= time.monotonic() - begun + 1
        assert table.collect(begun + table.timeouts.of(state) - 1) == 0
        assert len(pod.flows) == 2
        assert table.collect(int(time.monotonic()) + table.timeouts.of(state) + 1) == 1
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


@pytest.mark.parametrize("protocol", [TCP, UDP], ids=lambda protocol: protocol.name)
def test_a_flow_that_keeps_its_entries_has_lost_nothing(pod: Rig, world: World, protocol: Protocol) -> None:
    for _ in range(2):  # the second is begun anew on purpose
        tell(pod, world, protocol, [(TO, "S"), (BACK, "SA"), (TO, "A"), (TO, "FA"), (BACK, "FA")])
        pod.let_time_pass()
    with ConntrackTable.bind(pod.loaded) as table:
        assert table.losses() == table.stats().losses == FlowLosses()


@pytest.mark.parametrize("protocol", [TCP, UDP], ids=lambda protocol: protocol.name)
@pytest.mark.parametrize("lost", [FlowFlags.REPLY, FlowFlags(0)], ids=["reply", "original"])
def test_a_half_that_is_made_again_is_counted(
    pod: Rig, world: World, protocol: Protocol, lost: FlowFlags
) -> None:
    tell(pod, world, protocol, [(TO, "S"), (BACK, "SA")])
    forget(pod, lost)
    pod.let_time_pass()
    tell(pod, world, protocol, [(TO, "A") if lost else (BACK, "A")] * 3)
    with ConntrackTable.bind(pod.loaded) as table:
        assert table.losses() == FlowLosses(halves=1)


@pytest.mark.parametrize(("protocol", "whole"), [(TCP, True), (TCP, False), (UDP, False)])
def test_a_flow_that_has_to_begin_anew_is_counted(
    pod: Rig, world: World, protocol: Protocol, whole: bool
) -> None:
    tell(pod, world, protocol, [(TO, "S"), (BACK, "SA")])
    if whole:
        pod.flows.clear()
    else:
        forget(pod, FlowFlags(0))
    tell(pod, world, protocol, [(TO, "A")] * 3)
    with ConntrackTable.bind(pod.loaded) as table:
        assert table.losses() == FlowLosses(flows=1)


def forget(pod: Rig, half: FlowFlags) -> None:
    """As the kernel does when it makes room."""
    for key, row in list(pod.flows.items()):
        if row.flags & FlowFlags.REPLY == half:
            del pod.flows[key]


def test_a_table_that_is_too_small_says_so() -> None:
    """Ten connections that go on, and thousands of new ones through a table for a few hundred."""
    spec = ObjectSpec.from_file("pod").with_maps(**{**SIZES, "kd_conntrack": 512})
    with spec.load() as loaded, ConntrackTable.bind(loaded) as table:
        with ServiceTable.bind(loaded) as services:
            services.upsert(V4.service("service", TCP, ["one"]))
        program = loaded.program("from_pod", TC)
        flows = loaded.map("kd_conntrack", maps.LRUHash[Tuple, ConntrackRow])

        def send(ports: range, flags: str) -> None:
            ends = V4.address("client"), V4.address("service")
            program.run_many([tcp(*ends, port, 80, flags) for port in ports])

        kept = range(1000, 1010)
        send(kept, "S")
        for start in range(2000, 62000, 2000):  # whom the kernel forgets is not ours to say, nor when
            send(range(start, start + 2000), "S")
            if len({key for key in flows if {key.sport, key.dport} & set(kept)}) < 2 * len(kept):
                break
        for key in set(flows):
            with suppress(KeyNotFoundError):
                flows.replace(key, evolve(flows[key], last_seen=1))
        there = {key.sport for key in flows if key.sport in kept}
        answered = {key.dport for key in flows if key.dport in kept}
        send(kept, "A")
        assert table.stats().entries <= 512
        assert table.losses() == FlowLosses(halves=len(there - answered), flows=len(kept) - len(there))
        assert len(there & answered) < len(kept)


AGAIN = {
    "with the same backend": (["one"], "one"),
    "with another backend": (["two"], "two"),
}


@pytest.mark.parametrize("protocol", [TCP, UDP])
@pytest.mark.parametrize(("backends", "answering"), AGAIN.values(), ids=AGAIN)
def test_ports_that_are_used_again_while_their_flow_is_collected_keep_the_new_one(
    pod: Rig,
    world: World,
    monkeypatch: pytest.MonkeyPatch,
    protocol: Protocol,
    backends: list[str],
    answering: str,
) -> None:
    remove = FlowCollector.remove

    def begin_and_remove(self: FlowCollector, flows: Collection[Pair]) -> int:
        """The flow was looked at, and found to be over; now its client begins another."""
        assert len(flows) == 1
        pod.services.upsert(world.service("service", protocol, backends))
        pod.send(world.frame("client", "service", protocol, "S"))
        return remove(self, flows)

    monkeypatch.setattr(FlowCollector, "remove", begin_and_remove)
    tell(pod, world, protocol, [(TO, "S"), (BACK, "SA"), (TO, "FA"), (BACK, "FA")])
    pod.let_time_pass()
    with ConntrackTable.bind(pod.loaded) as table:
        assert table.collect() == 0
        answer = pod.send(world.frame(answering, "client", protocol, "SA")).packet
        assert (str(answer.src), answer.sport) == world["service"]
        (flow,) = table.flows()
    assert str(flow.backend.address) == world.address(answering)
    assert len([row for row in pod.flows.values() if not row.flags & FlowFlags.ENDED]) == 2


def test_a_half_that_was_lost_and_is_back_stays(
    pod: Rig, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    remove = FlowCollector.remove
    tell(pod, world, UDP, [(TO, ""), (BACK, "")])
    pod.let_time_pass()
    rows = dict(pod.flows.items())
    (lost,) = (key for key, row in rows.items() if not row.flags & FlowFlags.REPLY)
    del pod.flows[lost]

    def find_and_remove(self: FlowCollector, flows: Collection[Pair]) -> int:
        pod.flows[lost] = rows[lost]
        return remove(self, flows)

    monkeypatch.setattr(FlowCollector, "remove", find_and_remove)
    with ConntrackTable.bind(pod.loaded) as table:
        assert table.collect() == 0
        assert dict(pod.flows.items()) == rows
        monkeypatch.undo()
        assert table.collect() == 1
