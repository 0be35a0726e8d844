"""What is explained is what happens, and explaining changes nothing."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from attrs import evolve

from k8sdatapath import maps
from k8sdatapath.datapath.explainer import Explainer
from k8sdatapath.datapath.explanation import Explanation, Place
from k8sdatapath.model import Backend, Exposure, Frontend, Selection, Service
from k8sdatapath.net.packet import Packet, icmp_echo, icmp_error, tcp, udp
from k8sdatapath.objects import ObjectSpec
from k8sdatapath.tables.affinity import AffinityKey, AffinityRow
from k8sdatapath.tables.conntrack import Tuple
from tests.packets.oracle import maglev_slot
from tests.packets.rig import Rig, rig
from tests.packets.world import PROTOCOLS, TCP, UDP, V4, WORLDS, World

FAMILIES = pytest.mark.parametrize("world", WORLDS, ids=lambda world: world.name)
ENTRIES = {"from_pod": Place.POD, "from_uplink": Place.UPLINK}
CONFIG: dict[str, Any] = {"redirect": False, "service_ipv4": ip_network("10.96.0.0/12")}


@contextmanager
def explained(entry: str = "from_pod") -> Iterator[tuple[Rig, Explainer]]:
    with rig(entry, **CONFIG) as datapath, Explainer.bind(datapath.loaded, config=CONFIG) as explainer:
        yield datapath, explainer


def service(world: World, protocol: int = TCP, **options: Any) -> Service:
    backends = [Backend(*world["one"], local=True), Backend(*world["two"])]
    exposed = [Exposure("node_port", *world["node"]), Exposure("load_balancer", *world["balancer"])]
    return Service(*world["service"], protocol, backends=backends, exposed=exposed, **options)


def state(datapath: Rig) -> object:
    """All that packets change."""
    loaded = datapath.loaded
    return (
        datapath.read_counters(),
        dict(datapath.flows),
        dict(loaded.map("kd_affinity", maps.LRUHash[AffinityKey, AffinityRow])),
        dict(loaded.map("kd_frontends", maps.Hash)),
        list(loaded.map("kd_backends", maps.Array)),
    )


def equal(explanation: Explanation, datapath: Rig, frame: bytes) -> None:
    """It happens."""
    sent = datapath.send(frame)
    assert explanation.outcome.name == sent.outcome, str(explanation)
    if explanation.answer is not None:
        assert known(explanation.answer, explanation) == known(sent.packet, explanation), str(explanation)


def known(packet: Packet, explanation: Explanation) -> Packet:
    """What chance does not decide: another port is found by chance."""
    answer = explanation.answer
    kept = answer is None or explanation.packet.sport in (answer.sport, answer.dport)
    return packet if kept else evolve(packet, sport=None, checksum=None)


def test_each_decision_is_told() -> None:
    with explained() as (datapath, explainer):
        datapath.services.upsert(service(V4, selection="maglev"))
        explanation = explainer.explain(V4.frame("client", "service", TCP))
        steps = ["packet", "no_flow", "frontend", "scope", "slot", "backend", "new_flow", "rewrite"]
        assert [step.name for step in explanation.steps] == steps
        text = str(explanation)
        assert "TCP S, 10.244.1.2:40000 -> 10.96.0.10:80." in text
        assert "10.96.0.10:80/TCP is a cluster IP of service number 0, selection maglev." in text
        assert " of 251 is chosen." in text
        assert text.endswith("TO_STACK: translated, then left to the node's stack.")
        assert str(explanation.backend) in ("10.244.1.3:8080", "10.244.1.4:8080")
        assert explanation.answer is not None
        assert str(explanation.answer.dst) == str(explanation.backend).split(":")[0]
        assert json.loads(json.dumps(explanation.as_dict()))["outcome"] == "TO_STACK"
        assert "<li>The backend is" in explanation._repr_html_()


@FAMILIES
@pytest.mark.parametrize("entry", ENTRIES)
def test_random_packets_become_what_is_explained(world: World, entry: str) -> None:
    chance = random.Random(7)
    near = "10.244.0.0/16" if world is V4 else "fd00:244::/32"
    with explained(entry) as (datapath, explainer):
        datapath.services.upsert(
            service(world, selection=Selection.MAGLEV, external_local=True, source_ranges=[near]),
            service(world, UDP, selection=Selection.ROUND_ROBIN, affinity_timeout=100),
            Service(*world["other"], backends=()),
        )
        for _ in range(60):
            dialled, port = world[chance.choice(["service", "node", "balancer", "other", "one", "stranger"])]
            port = chance.choice([port, port, 81])
            client = world.address(chance.choice(["client", "stranger", "one"]))
            sport = chance.randrange(1024, 1030)
            frame = chance.choice(
                [
                    tcp(client, dialled, sport, port, chance.choice(["S", "A", "FA", "R", "SA"])),
                    udp(client, dialled, sport, port, b"?"),
                    icmp_echo(client, dialled),
                ]
            )
            equal(explainer.explain(frame, ENTRIES[entry]), datapath, frame)
            if chance.random() < 0.1:
                selection = chance.choice([Selection.MAGLEV, Selection.ROUND_ROBIN])
                datapath.services.upsert(service(world, UDP, selection=selection))


@FAMILIES
def test_the_oracle_says_the_same_slot(world: World) -> None:
    with explained() as (datapath, explainer):
        datapath.services.upsert(service(world, selection="maglev"))
        for sport in range(1, 40):
            (source, _), (dialled, port) = world["client"], world["service"]
            flow = Tuple(ip_address(source), ip_address(dialled), sport, port, TCP)
            explanation = explainer.explain(tcp(source, dialled, sport, port))
            assert f"Slot {maglev_slot(flow, 251)} of 251 is chosen." in str(explanation)


@FAMILIES
@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("selection", Selection, ids=lambda selection: selection.name)
def test_resolve_names_those_that_the_programs_choose_from(
    world: World, entry: str, selection: Selection
) -> None:
    with explained(entry) as (datapath, explainer):
        one, two = Backend(*world["one"], local=True, weight=3), Backend(*world["two"])
        exposed = [Exposure("node_port", *world["node"])]
        datapath.services.upsert(
            Service(
                *world["service"],
                backends=[one, two],
                exposed=exposed,
                selection=selection,
                external_local=True,
            )
        )
        for dialled in "service", "node":
            address, port = world[dialled]
            resolution = datapath.services.resolve(
                Frontend(address, port, TCP), outside=entry == "from_uplink"
            )
            frames = [tcp(world.address("client"), address, sport, port) for sport in range(1024, 1624)]
            counted = Counter(str(explainer.explain(f, ENTRIES[entry]).backend) for f in frames)
            shares = {str(backend): share for backend, share in resolution.shares.items()}
            if selection is Selection.ROUND_ROBIN:  # explaining takes no turn: it is always the same one's
                assert len(counted) == 1
                assert counted.keys() <= shares.keys()
                continue
            assert counted.keys() == shares.keys()
            for backend, share in shares.items():  # 6.2 sigma: chance fails it once in 10^9
                sigma = (share * (1 - share) / len(frames)) ** 0.5
                assert abs(counted[backend] / len(frames) - share) < 6.2 * sigma + 0.01


@FAMILIES
@pytest.mark.parametrize("protocol", PROTOCOLS, ids=lambda protocol: protocol.name)
def test_flows_that_are_known_are_explained_from_the_live_table(world: World, protocol: int) -> None:
    with explained() as (datapath, explainer):
        datapath.services.upsert(service(world, protocol))
        asked = datapath.send(world.frame("client", "service", protocol))
        backend = "one" if str(asked.packet.dst) == world.address("one") else "two"
        again = world.frame("client", "service", protocol, "A")
        answer = world.frame(backend, "client", protocol, "SA")
        kind = (3, 1) if world is V4 else (1, 0)
        error = icmp_error(world.address("stranger"), world.address("client"), asked.frame, kind)
        for frame in (again, answer, error):
            before = state(datapath)
            explanation = explainer.explain(frame)
            assert state(datapath) == before
            equal(explanation, datapath, frame)
        assert "answers a flow that is known" in str(explainer.explain(answer))
        datapath.services.plan([]).apply()
        if protocol == UDP:  # its backend is gone
            assert "is over" in str(explainer.explain(again))


def test_a_tuple_that_is_taken_is_explained() -> None:
    with explained() as (datapath, explainer):
        one = [Backend(*V4["one"])]
        datapath.services.upsert(Service(*V4["service"], backends=one), Service(*V4["other"], backends=one))
        datapath.send(V4.frame("client", "service", TCP))
        second = V4.frame("client", "other", TCP)
        equal(explainer.explain(second), datapath, second)


def test_affinity_is_explained_from_the_live_table() -> None:
    with explained() as (datapath, explainer):
        datapath.services.upsert(service(V4, affinity_timeout=100))
        frames = [tcp(V4.address("client"), V4.address("service"), sport, 80) for sport in range(1, 30)]
        assert "has no backend to stay with" in str(explainer.explain(frames[0]))
        stays = datapath.send(frames[0]).packet.dst
        for frame in frames:
            explanation = explainer.explain(frame)
            assert explanation.backend is not None
            assert explanation.backend.address == stays


def test_a_hundred_explanations_change_nothing() -> None:
    with explained() as (datapath, explainer):
        datapath.services.upsert(service(V4, selection="round_robin"), service(V4, UDP, affinity_timeout=9))
        datapath.send(V4.frame("client", "service", TCP))
        before, turns = state(datapath), set()
        for at in Place:
            for sport in range(1, 20):
                for make in (tcp, udp):
                    frame = make(V4.address("client"), V4.address("service"), sport, 80)
                    explanation = explainer.explain(frame, at)
                    if make is tcp and at in (Place.POD, Place.UPLINK, Place.SOCKET):
                        turns.add(explanation.backend)
        assert state(datapath) == before
        assert len(turns) == 1  # it remains the turn of the same one


def test_sockets_choose_as_they_do() -> None:
    with explained() as (datapath, explainer):
        datapath.services.upsert(
            service(V4, source_ranges=["10.0.0.0/8"]), Service(*V4["other"], backends=())
        )
        said = explainer.explain(V4.frame("client", "service", TCP), Place.SOCKET)
        assert said.outcome.name == "AT_SOCKET"
        assert "A process dials 10.96.0.10:80/TCP." in str(said)
        assert str(said.backend) in ("10.244.1.3:8080", "10.244.1.4:8080")
        refused = explainer.explain(V4.frame("client", "other", TCP), Place.SOCKET)
        assert (refused.outcome.name, refused.backend) == ("REJECT_NO_BACKEND", None)
        unknown = explainer.explain(tcp(V4.address("client"), "10.96.0.10", 1, 81), Place.SOCKET)
        assert unknown.outcome.name == "REJECT_NO_SERVICE"
        left = explainer.explain(V4.frame("client", "balancer", TCP), Place.SOCKET)
        assert left.outcome.name == "PASS"  # packets settle it


@FAMILIES
def test_what_the_stack_sends_to_a_pod_is_explained(world: World) -> None:
    """An answer of a backend on the node itself, and packets that are nobody's business."""
    with rig("to_pod", **CONFIG) as datapath, Explainer.bind(datapath.loaded, config=CONFIG) as explainer:
        datapath.services.upsert(world.service("service", TCP, ["one"]))
        datapath.send(world.frame("client", "service", TCP), via="from_pod")
        answer, other = world.frame("one", "client", TCP, "SA"), world.frame("two", "client", TCP, "SA")
        for frame, steps in (
            (answer, ["packet", "flow", "rewrite"]),
            (other, ["packet", "no_flow"]),
        ):
            before = state(datapath)
            explanation = explainer.explain(frame, Place.TO_POD)
            assert state(datapath) == before
            assert [step.name for step in explanation.steps] == steps
            equal(explanation, datapath, frame)
        assert "A packet goes to a pod, from the node's stack: TCP SA" in str(explanation)


@pytest.mark.parametrize("name", ["pod", "host", "socket", "xdp", "overlay"])
def test_programs_that_handle_packets_know_nothing_of_explaining(name: str) -> None:
    spec = ObjectSpec.from_file(name)
    assert not [each for each in (*spec.maps, *spec.config) if "trace" in each]
