"""Flows and clients move to other tables: what the programs do at each step, and between any two of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from attrs import evolve

from k8sdatapath import maps
from k8sdatapath.datapath.conntrack_table import ConntrackTable
from k8sdatapath.datapath.flow import Flow, FlowState
from k8sdatapath.datapath.flow_move import MOVED, FlowMove
from k8sdatapath.model import Backend, Service
from k8sdatapath.objects import Object, ObjectSpec
from k8sdatapath.tables.affinity import AffinityKey, AffinityRow
from k8sdatapath.tables.conntrack import FlowFlags
from k8sdatapath.tables.moving import Step
from tests.packets.rig import SIZES, Rig, Sent
from tests.packets.world import TCP, UDP, WORLDS, World

#: The programs before them, ``moving`` ones at each step, and the ones after them.
STAGES = ("old", *Step, "new")
TO, BACK = ("client", "service"), ("one", "client")
STORY = [(TO, "S"), (BACK, "SA"), (TO, "FA"), (BACK, "FA")]
PORTS = range(2000, 3500)  # more than are moved at once


class Moving:
    """A pod's programs whose flows are on their way from one table to another."""

    def __init__(self, own: ExitStack) -> None:
        spec = ObjectSpec.from_file("pod").with_maps(**SIZES)
        self.old = own.enter_context(spec.load())
        kept = {name: each for name, each in self.old.maps.items() if name not in (*MOVED, *MOVED.values())}
        del kept["kd_moving"]
        self.new = own.enter_context(spec.with_maps(kd_conntrack=4096, kd_affinity=512).load(reuse=kept))
        both = {name: self.old.maps[name] for name in MOVED}
        both |= {to: self.new.maps[name] for name, to in MOVED.items()}
        between = own.enter_context(spec.with_config(moving=True).load(reuse={**kept, **both}))
        self.move = own.enter_context(FlowMove.bind(between))
        self.rigs = {
            "old": self.rig(self.old, own),
            "new": self.rig(self.new, own),
            **dict.fromkeys(Step, self.rig(between, own)),
        }
        self.stage: str | Step = "old"

    @staticmethod
    def rig(loaded: Object, own: ExitStack) -> Rig:
        made = Rig(loaded, "from_pod")
        own.enter_context(made.services)
        return made

    def begin_anew(self) -> None:
        for loaded in (self.old, self.new):
            for name in MOVED:
                loaded.map(name, maps.LRUHash).clear()
        self.rigs["old"].services.plan([]).apply()
        self.move.go(Step.OLD)
        self.stage = "old"

    def serve(self, service: Service) -> None:
        self.rigs["old"].services.upsert(service)

    def send(self, frame: bytes) -> Sent:
        return self.rigs[self.stage].send(frame)

    def go(self, stage: str | Step) -> None:
        """As a node does: each step after the last, and all that belongs to it."""
        for at in STAGES[STAGES.index(self.stage) + 1 : STAGES.index(stage) + 1]:
            if at == Step.TAKING:
                self.move.go(Step.TAKING)
                self.move._take()
            elif at == Step.NEW:
                self.move.go(Step.NEW)
                self.move._clean()
            elif isinstance(at, Step):
                self.move.go(at)
            self.stage = at

    @property
    def flows(self) -> list[Flow]:
        """What has arrived."""
        self.go("new")
        with ConntrackTable.bind(self.new) as table:
            return list(table.flows())


@pytest.fixture(scope="module")
def made() -> Iterator[Moving]:
    with ExitStack() as own:
        yield Moving(own)


@pytest.fixture
def moving(made: Moving) -> Moving:
    made.begin_anew()
    return made


@pytest.fixture(params=WORLDS, ids=lambda world: world.name)
def world(request: pytest.FixtureRequest) -> World:
    made: World = request.param
    return made


@pytest.mark.parametrize("told", range(len(STORY) + 1))
@pytest.mark.parametrize("stage", STAGES, ids=str)
def test_a_flow_has_one_story_wherever_it_is_told(
    moving: Moving, world: World, stage: str | Step, told: int
) -> None:
    """Some packets at one stage, and the others at the next."""
    moving.serve(world.service("service", TCP, ["one"]))
    moving.go(stage)
    for number, ((src, dst), flags) in enumerate(STORY):
        if number == told and stage != "new":
            moving.go(STAGES[STAGES.index(stage) + 1])
        sent = moving.send(world.frame(src, dst, TCP, flags)).packet
        ends = [(str(sent.src), sent.sport), (str(sent.dst), sent.dport)]
        assert ends == [world[{"one": "service"}.get(src, src)], world[{"service": "one"}.get(dst, dst)]]
    (flow,) = moving.flows
    assert (flow.state, flow.packets) == (FlowState.CLOSED, len(STORY))


@pytest.mark.parametrize("ended", STAGES[:-1], ids=str)
@pytest.mark.parametrize("later", [0, 1])
def test_what_ends_while_it_moves_has_ended(
    moving: Moving, world: World, ended: str | Step, later: int
) -> None:
    """A client uses its ports again, and is led elsewhere: nothing is left of what was before."""
    for protocol in (TCP, UDP):
        moving.serve(world.service("service", protocol, ["one"]))
        for (src, dst), flags in STORY:
            moving.send(world.frame(src, dst, protocol, flags))
    moving.go(ended)
    for protocol in (TCP, UDP):
        moving.serve(world.service("service", protocol, ["two"]))
        moving.send(world.frame("client", "service", protocol, "S"))
    moving.go(STAGES[STAGES.index(ended) + later])
    for protocol in (TCP, UDP):
        answer = moving.send(world.frame("two", "client", protocol, "SA")).packet
        assert (str(answer.src), answer.sport) == world["service"]
        moving.send(world.frame("client", "service", protocol, "A"))
    flows = moving.flows
    assert {(str(flow.backend.address), flow.packets) for flow in flows} == {(world.address("two"), 3)}
    assert len(flows) == 2
    rows = [row for row in moving.rigs["new"].flows.values() if not row.flags & FlowFlags.ENDED]
    assert len(rows) == 4, "marks of what is gone"
    late = moving.send(world.frame("one", "client", UDP)).packet
    assert (str(late.src), late.sport) == world["service"]


@pytest.mark.parametrize("stage", STAGES[:-1], ids=str)
def test_what_is_gone_does_not_come_back(moving: Moving, world: World, stage: str | Step) -> None:
    """The half of the other direction is given to another flow; its flow's own half goes as well."""
    client, port = world["client"]
    moving.serve(world.service("service", TCP, ["one"]))
    moving.serve(world.service("other", TCP, ["one"]))
    for (src, dst), flags in STORY:
        moving.send(world.frame(src, dst, TCP, flags))
    moving.go(stage)
    moving.send(world.frame("client", "other", TCP, "S"))
    (flow,) = moving.flows
    assert (str(flow.client.address), flow.seen_as.port) == (client, port)
    assert (str(flow.frontend.address), flow.frontend.port) == world["other"]


def test_all_that_is_in_a_table_is_taken(moving: Moving, world: World) -> None:
    moving.serve(world.service("service", UDP, ["one"]))
    address = world.address("client")
    for port in PORTS:
        at = World("", world.places | {"client": (address, port)})
        moving.send(at.frame("client", "service", UDP))
    assert sorted(flow.client.port for flow in moving.flows) == list(PORTS)


def test_a_move_can_be_gone_on_with_from_any_step(moving: Moving, world: World) -> None:
    moving.serve(world.service("service", TCP, ["one"]))
    (src, dst), flags = STORY[0]
    moving.send(world.frame(src, dst, TCP, flags))
    for step in (Step.TAKING, Step.TAKEN, Step.NEW):
        moving.move.go(step)
        moving.move.finish(None)
        assert moving.move.step is Step.OVER
        assert len(moving.rigs["new"].flows) == 2


@pytest.mark.parametrize("stage", STAGES[:-1], ids=str)
def test_clients_keep_their_backends(moving: Moving, world: World, stage: str | Step) -> None:
    """Those that came before, and those that come at any stage; and it is remembered when they came last."""
    pins = {
        name: loaded.map("kd_affinity", maps.LRUHash[AffinityKey, AffinityRow])
        for name, loaded in (("old", moving.old), ("new", moving.new))
    }
    prefix = world.address("one")[:-1]
    many = [Backend(f"{prefix}{last}", 8080) for last in range(3, 9)]
    service = Service(*world["service"], TCP, backends=many, affinity_timeout=100)
    moving.serve(service)
    chosen: dict[str, set[str]] = {}

    def come(name: str, last: int, ports: range) -> None:
        for port in ports:
            at = World("", world.places | {"client": (f"{world.address('client')[:-1]}{last}", port)})
            chosen.setdefault(name, set()).add(
                str(moving.send(at.frame("client", "service", TCP)).packet.dst)
            )

    come("before", 20, range(1000, 1002))
    for key, row in pins["old"].items():
        pins["old"][key] = evolve(row, last_seen=row.last_seen - 50)
    moving.go(stage)
    come("meanwhile", 21, range(1000, 1002))
    come("before", 20, range(1002, 1004))
    moving.go(STAGES[STAGES.index(stage) + 1])
    come("meanwhile", 21, range(1002, 1006))
    moving.go("new")
    come("before", 20, range(1004, 1010))
    come("meanwhile", 21, range(1006, 1012))
    assert {name: len(backends) for name, backends in chosen.items()} == {"before": 1, "meanwhile": 1}
    seen = [row.last_seen for row in pins["new"].values()]
    assert len(seen) == 2
    assert max(seen) - min(seen) <= 1
