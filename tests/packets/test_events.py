"""What the programs tell of packets: who, what became of them, why, and how often."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from ipaddress import ip_address, ip_network

import pytest

from k8sdatapath import maps
from k8sdatapath.kube.policy import parse_policies
from k8sdatapath.model import IPAddress
from k8sdatapath.model.workload import Workload
from k8sdatapath.net.netns import NetNs
from k8sdatapath.net.packet import icmp_echo, icmp_error, tcp, udp
from k8sdatapath.tables.conntrack import Tuple
from k8sdatapath.tables.events import (
    ConnectionRow,
    EventFlags,
    EventRow,
    EventState,
    FilterRow,
    Level,
    Point,
    file_number,
    outcome_index,
    reason_of,
    source_files,
    source_line,
)
from tests.api.graph import ROOT
from tests.packets.checkpoint import Checkpoint
from tests.packets.listener import Listener
from tests.packets.rig import Rig, one_cpu, rig
from tests.packets.site import Site
from tests.packets.station import NEXT_HOP, OURS, UPLINK, XDP_IN, station
from tests.packets.world import TCP, V4, V6, WORLDS, World

pytestmark = pytest.mark.packets

NOBODY = ip_address("::")
BOTH = pytest.mark.parametrize("world", WORLDS, ids=lambda world: world.name)
POLICY_DENIED = -24


def ends(event: EventRow) -> tuple[str, int, str, int]:
    return str(event.source), event.source_port, str(event.destination), event.destination_port


def back(world: World, source: str, destination: str, flags: str) -> bytes:
    (server, port), (client, ephemeral) = world[source], world[destination]
    return tcp(server, client, port, ephemeral, flags)


@pytest.fixture
def datapath() -> Iterator[Rig]:
    with rig(events=True) as made:
        for world in WORLDS:
            made.services.upsert(world.service("service", TCP, ["one"]))
            for pod in ("client", "one"):
                made.add_pod(world.address(pod))
        yield made


@pytest.fixture
def listener(datapath: Rig) -> Listener:
    return Listener(datapath.loaded)


@BOTH
def test_a_request_and_its_answer_have_the_ends_of_their_connection(
    datapath: Rig, listener: Listener, world: World
) -> None:
    datapath.send(world.frame("client", "service", TCP, "S"))
    datapath.send(back(world, "one", "client", "SA"))
    request, answer = listener.heard()
    assert ends(request) == (*world["client"], *world["one"])
    assert (str(request.dialled), request.dialled_port) == world["service"]
    assert (request.seen_source, request.seen_source_port) == (NOBODY, 0)
    assert ends(answer) == (*world["one"], *world["client"])
    assert (str(answer.seen_source), answer.seen_source_port) == world["service"]
    assert answer.dialled == NOBODY
    assert [listener.outcome(each) for each in (request, answer)] == ["TO_POD", "TO_POD"]
    assert [EventState(each.state) for each in (request, answer)] == [EventState.NEW, EventState.REPLY]
    assert [each.tcp_flags for each in (request, answer)] == [0x02, 0x12]
    assert [each.point for each in (request, answer)] == [Point.FROM_POD] * 2
    assert bool(request.flags & EventFlags.IPV6) == (world is V6)
    assert (request.protocol, request.ttl, request.length) == (
        6,
        64,
        len(world.frame("client", "service", TCP)),
    )
    assert (request.source_device, request.destination_device) == (1, 1)
    now = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    assert request.time <= answer.time <= now < request.time + 60e9


@BOTH
def test_aggregated_are_connections(datapath: Rig, listener: Listener, world: World) -> None:
    listener.ask(Level.AGGREGATED, interval=3600)
    for flags in ("S", "S", "A", "PA", "PA", "FA", "FA"):
        datapath.send(world.frame("client", "service", TCP, flags))
        datapath.send(back(world, "one", "client", {"S": "SA"}.get(flags, flags)))
    heard = listener.heard()
    client = world.address("client")
    assert [(str(each.source) == client, each.tcp_flags) for each in heard] == [
        (True, 0x02),
        (False, 0x12),
        (True, 0x11),
        (False, 0x11),
    ]
    assert [each.packets for each in heard] == [1, 1, 6, 6]
    size = len(world.frame("client", "service", TCP, "A"))
    assert [each.bytes for each in heard] == [size, size, 6 * size, 6 * size]
    datapath.send(world.frame("client", "service", TCP, "S"))  # the next one between the same ports
    (event,) = listener.heard()
    assert event.state == EventState.NEW


@BOTH
def test_aggregated_are_connections_that_are_not_translated(
    datapath: Rig, listener: Listener, world: World
) -> None:
    listener.ask(Level.AGGREGATED, interval=3600)
    (client, port), (stranger, away) = world["client"], world["stranger"]
    for flags in ("S", "A", "PA", "FA", "FA"):
        datapath.send(tcp(client, stranger, port, away, flags))
        datapath.send(tcp(stranger, client, away, port, {"S": "SA"}.get(flags, flags)), via="to_pod")
    heard = listener.heard()
    assert [(str(each.source) == client, each.tcp_flags) for each in heard] == [
        (True, 0x02),
        (False, 0x12),
        (True, 0x11),
        (False, 0x11),
    ]
    assert [each.packets for each in heard] == [1, 1, 4, 4]
    connections = datapath.loaded.map("kd_connections", maps.LRUHash[Tuple, ConnectionRow])
    (row,) = (connections[key] for key in connections)
    assert row.packets == (5, 5)


def test_the_interval_passes(datapath: Rig, listener: Listener) -> None:
    listener.ask(Level.AGGREGATED, interval=0)
    for _ in range(3):
        datapath.send(V4.frame("client", "stranger", TCP, "A"))
    assert len(listener.heard()) == 3


def test_a_segment_of_an_unknown_connection_is_no_answer(datapath: Rig, listener: Listener) -> None:
    datapath.send(V4.frame("client", "stranger", TCP, "A"))
    (event,) = listener.heard()
    assert event.state == EventState.UNKNOWN


def test_levels(datapath: Rig, listener: Listener) -> None:
    malformed = V4.frame("client", "service", TCP)[:40]
    told = {}
    for level in Level:
        listener.ask(level)
        datapath.send(V4.frame("client", "service", TCP, "A"))
        datapath.send(malformed)
        told[level.name] = [listener.outcome(each) for each in listener.heard()]
    assert told == {
        "OFF": [],
        "DROPS": ["DROP_MALFORMED"],
        "AGGREGATED": ["TO_POD", "DROP_MALFORMED"],
        "ALL": ["TO_POD", "DROP_MALFORMED"],
    }


def test_programs_that_tell_nothing_have_nothing_to_tell() -> None:
    with rig() as made:
        listener = Listener(made.loaded)
        made.send(V4.frame("client", "service", TCP))
        assert listener.heard() == []


def network(text: str) -> tuple[IPAddress, IPAddress]:
    """An address and a mask as filters have them: IPv4 among IPv6."""
    found = ip_network(text)
    if found.version == 6:
        return found.network_address, found.netmask
    mask = (1 << 128) - (1 << 32 - found.prefixlen)
    return found.network_address, ip_address(mask.to_bytes(16, "big"))


@pytest.mark.parametrize(
    ("wanted", "told"),
    [
        (FilterRow(port=80), [True, False, False]),  # as it was dialled
        (FilterRow(port=8080), [True, False, False]),
        (FilterRow(protocol=17), [False, True, False]),
        (FilterRow(outcomes=1 << outcome_index(-1)), [False, False, True]),
        (FilterRow(outcomes=1 << outcome_index(3)), [True, False, False]),
        (FilterRow(points=1 << Point.FROM_UPLINK), [False, False, False]),
        (FilterRow(points=1 << Point.FROM_POD), [True, True, True]),
        (FilterRow(*network("198.51.100.0/24")), [False, True, False]),
        (FilterRow(*network("10.96.0.10/32")), [True, False, True]),
        (FilterRow(*network("10.244.1.3/32"), port=80), [True, False, False]),
        (FilterRow(*network("fd00::/8")), [False, False, False]),
        (FilterRow(identity=7), [True, False, False]),
        (FilterRow(identity=8), [False, False, False]),
    ],
    ids=lambda value: repr(value)[:60],
)
def test_filters(datapath: Rig, listener: Listener, wanted: FilterRow, told: list[bool]) -> None:
    pods = datapath.loaded.map("kd_endpoints", maps.Hash)
    one = layout_of_address(V4.address("one"))
    row = bytearray(pods[one])
    row[4:8] = (7).to_bytes(4, "little")
    pods[one] = bytes(row)
    listener.ask(Level.ALL, wanted)
    heard = []
    malformed = bytearray(V4.frame("client", "service", TCP))
    malformed[16:18] = (30).to_bytes(2, "big")  # IP ends before TCP does
    for frame in (
        V4.frame("client", "service", TCP),
        udp(V4.address("client"), V4.address("stranger"), 9, 53),
        bytes(malformed),
    ):
        datapath.send(frame)
        heard.append(bool(listener.heard()))
    assert heard == told


def test_one_of_several_filters_will_do(datapath: Rig, listener: Listener) -> None:
    listener.ask(Level.ALL, FilterRow(port=1), FilterRow(port=53))
    client, stranger = V4.address("client"), V4.address("stranger")
    for port in (1, 2, 53):
        datapath.send(udp(client, stranger, 9, port))
    assert [each.destination_port for each in listener.heard()] == [1, 53]


def layout_of_address(text: str) -> bytes:
    return socket.inet_pton(socket.AF_INET6, "::ffff:" + text)


def test_what_finds_no_room_is_counted(datapath: Rig, listener: Listener) -> None:
    frame = V4.frame("client", "service", TCP, "A")
    with one_cpu():
        for _ in range(1000):
            datapath.send(frame)
    assert (listener.told + listener.full, listener.limited) == (1000, 0)
    assert len(listener.heard()) == listener.told
    assert listener.full > 0
    datapath.send(frame)
    assert len(listener.heard()) == 1


def test_a_rate(datapath: Rig, listener: Listener) -> None:
    frame = V4.frame("client", "service", TCP, "A")
    with one_cpu():
        listener.ask(Level.ALL, rate=10)
        began = time.monotonic()
        for _ in range(300):
            datapath.send(frame)
        seconds = time.monotonic() - began
    told = len(listener.heard())
    assert 100 <= told <= 102 + 10 * seconds
    assert listener.limited == 300 - told


@BOTH
def test_an_error_is_related(datapath: Rig, listener: Listener, world: World) -> None:
    quoted = tcp(*(world.address(each) for each in ("stranger", "client")), 1, 2, "A")
    kind = {"IPv4": (3, 1), "IPv6": (1, 4)}[world.name]
    datapath.send(icmp_error(world.address("client"), world.address("stranger"), quoted, kind))
    datapath.send(icmp_echo(world.address("client"), world.address("stranger"), 7))
    error, echo = listener.heard()
    assert (error.state, (error.icmp_type, error.icmp_code)) == (EventState.RELATED, kind)
    assert (error.source_port, error.destination_port, error.dialled) == (0, 0, NOBODY)
    assert (echo.icmp_type, echo.icmp_code) == ({"IPv4": 8, "IPv6": 128}[world.name], 0)


WEB = Workload.pod("shop/web", {"app": "web"}, addresses=["10.244.1.2", "fd00:244:1::2"])
API = Workload.pod("shop/api", {"app": "api"}, addresses=["10.244.1.3", "fd00:244:1::3"])
ISOLATED = """
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: api, namespace: shop}
spec:
  podSelector: {matchLabels: {app: api}}
  ingress:
  - from: [{podSelector: {matchLabels: {app: web}}}]
    ports: [{port: 8080}]
"""


@BOTH
def test_who_denied_it_and_where(world: World) -> None:
    with rig(events=True, enforce=True, redirect=False) as datapath:
        listener, node = Listener(datapath.loaded), Checkpoint(datapath)
        with node.policy:
            node.attach(WEB, API)
            node.policy.upsert(*parse_policies(ISOLATED))
            datapath.services.upsert(world.service("service", TCP, ["one"]))
            datapath.services.upsert(world.service("mirror", TCP, ["two"]))
            web, api = world.address("client"), world.address("one")
            node.leave(tcp(web, api, 40000, 9000, "S"), web)
            node.leave(tcp(web, world.address("service"), 40000, 80, "S"), web)
            _, allowed = listener.heard()  # the first is let out, and denied where it is to go in
            assert node.enter(tcp(web, api, 40000, 9000, "S")).outcome == "DROP_POLICY_DENIED"
            (arrived,) = listener.heard()
    assert reason_of(arrived.result) == POLICY_DENIED
    assert str(source_line(arrived.result)).startswith("policy.h:")
    assert arrived.flags & EventFlags.DENIED_BY_DESTINATION
    assert arrived.flags & EventFlags.DESTINATION_ASKED
    assert (arrived.source_identity, arrived.destination_identity) == (
        node.identity(WEB),
        node.identity(API),
    )
    assert ends(allowed) == (*world["client"], *world["one"])
    assert allowed.flags & EventFlags.SOURCE_ASKED
    assert allowed.flags & EventFlags.DESTINATION_ASKED
    assert allowed.destination_rule
    assert (str(allowed.dialled), allowed.dialled_port) == world["service"]


@BOTH
def test_what_is_let_in_after_it_was_denied_is_news(world: World) -> None:
    with rig(events=True, enforce=True, redirect=False) as datapath:
        listener, node = Listener(datapath.loaded), Checkpoint(datapath)
        listener.ask(Level.AGGREGATED, interval=3600)
        with node.policy:
            node.attach(WEB, API)
            datapath.services.upsert(world.service("service", TCP, ["one"]))
            web, request = world.address("client"), world.frame("client", "service", TCP)
            (closed,) = parse_policies(ISOLATED.replace("8080", "9000"))
            node.policy.upsert(closed)
            assert node.leave(request, web).outcome == "DROP_POLICY_DENIED"
            node.policy.upsert(*parse_policies(ISOLATED))
            for _ in range(2):
                node.leave(request, web)
        denied, allowed = listener.heard()
    assert [listener.outcome(each) for each in (denied, allowed)] == ["DROP_POLICY_DENIED", "TO_STACK"]
    assert (allowed.state, allowed.packets) == (EventState.NEW, 2)
    assert allowed.flags & EventFlags.DESTINATION_ASKED


def test_every_file_has_a_number_of_its_own() -> None:
    names = source_files()
    assert {"policy.h", "pod.bpf.c", "socket.bpf.c"} <= set(names)
    assert len({file_number(name) for name in names}) == len(names)


def test_every_reason_says_where() -> None:
    text = (ROOT / "bpf/include/kd/verdict.h").read_text()
    listed = re.findall(r"X\((KD_DROP_\w+)", text)
    assert re.findall(r"#define (KD_DROP_\w+) KD_HERE\(\1\)", text) == listed


def test_reasons_are_compared_without_where() -> None:
    for path in (ROOT / "bpf").rglob("*.[ch]"):
        assert not re.search(r"[!=]= *KD_DROP_|case KD_DROP_", path.read_text()), f"{path.name}: use KD_IS()"


@BOTH
def test_the_driver_tells_of_what_it_continues(world: World) -> None:
    with station(events=True) as node:
        node.services.upsert(world.service("service", TCP, ["one"]))
        listener = Listener(node.host)
        macs = {"src_mac": NEXT_HOP, "dst_mac": OURS}
        node.run_many("from_uplink", [world.frame("client", "service", TCP, "S", **macs)])
        (first,) = listener.heard()
        node.run_many(XDP_IN, [world.frame("client", "service", TCP, "A", **macs)])
        (second,) = listener.heard()
    assert (first.point, second.point) == (Point.FROM_UPLINK, Point.DRIVER)
    assert (first.state, second.state) == (EventState.NEW, EventState.ESTABLISHED)
    assert ends(first) == ends(second) == (*world["client"], *world["one"])
    for event in (first, second):
        assert listener.outcome(event) == "TO_DEVICE"
        assert (str(event.dialled), event.dialled_port) == world["service"]
        assert str(event.seen_source) == UPLINK[4 if world is V4 else 6]
    assert (first.packets, second.packets) == (1, 2)


def test_who_leaves_under_another_address_is_told_with_both(empty_netns: NetNs) -> None:
    with ExitStack() as own:
        site = Site(own, empty_netns)
        site.masquerade(sources={"lo": ["192.0.2.1"]})
        site.send("to_uplink", V4.frame("client", "stranger", TCP))
        (event,) = site.listener.heard()
    assert ends(event) == (*V4["client"], *V4["stranger"])
    assert (str(event.seen_source), event.dialled) == ("192.0.2.1", NOBODY)
    assert event.source_identity == 300
    assert not event.flags & EventFlags.OWN


@pytest.mark.parametrize("begun", [1, 2])
def test_aggregated_are_connections_that_leave_under_another_address(empty_netns: NetNs, begun: int) -> None:
    with ExitStack() as own:
        site = Site(own, empty_netns)
        site.masquerade(sources={"lo": ["192.0.2.1"]})
        site.listener.ask(Level.AGGREGATED, interval=3600)
        (client, port), (stranger, away) = V4["client"], V4["stranger"]
        for flags in [*["S"] * begun, "SA", "A", "PA", "PA", "FA", "FA"]:
            if flags != "SA":
                site.send("to_uplink", tcp(client, stranger, port, away, flags))
            if flags != "S":
                site.send("from_uplink", tcp(stranger, "192.0.2.1", away, port, flags))
        heard = site.listener.heard()
    assert [(str(each.source) == client, each.tcp_flags, each.state) for each in heard] == [
        (True, 0x02, EventState.NEW),
        (False, 0x12, EventState.REPLY),
        (True, 0x11, EventState.ESTABLISHED),
        (False, 0x11, EventState.REPLY),
    ]


def test_what_the_node_sends_itself_is_its_own(empty_netns: NetNs) -> None:
    with ExitStack() as own:
        site = Site(own, empty_netns)
        site.load("host")
        site.send("to_uplink", V4.frame("uplink", "stranger", TCP), came_through=0)
        (event,) = site.listener.heard()
    assert event.flags & EventFlags.OWN
    assert event.point == Point.TO_UPLINK
