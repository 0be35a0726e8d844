"""Who may use a service, which of its backends he may reach, and what he is told where nobody serves."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address, ip_network

import pytest
from attrs import evolve

from k8sdatapath import maps
from k8sdatapath.layout import u8
from k8sdatapath.model import Backend, Exposure, FrontendKind, Protocol, Service
from k8sdatapath.net.packet import ICMP, ICMPV6, fragment, icmp_echo, parse, quoted, tcp, udp
from k8sdatapath.tables.sources import SourceKey
from tests.packets.rig import Rig, one_cpu, rig
from tests.packets.world import PROTOCOLS, TCP, UDP, V4, V6, WORLDS, World

FAMILIES = pytest.mark.parametrize("world", WORLDS, ids=lambda world: world.name)
KINDS = {
    "cluster": FrontendKind.CLUSTER_IP,
    "node_port": FrontendKind.NODE_PORT,
    "load_balancer": FrontendKind.LOAD_BALANCER,
    "external_ip": FrontendKind.EXTERNAL_IP,
}
UNREACHABLE = {V4.name: (ICMP, (3, 3)), V6.name: (ICMPV6, (1, 4))}


def place(world: World, frontend: str) -> tuple[str, int]:
    """Where each kind of frontend is dialled."""
    at = {"cluster": "service", "node_port": "node", "load_balancer": "balancer", "external_ip": "external"}
    return world[at[frontend]]


def service(
    world: World,
    *,
    here: bool = True,
    there: bool = True,
    protocol: Protocol = TCP,
    internal_local: bool = False,
    external_local: bool = False,
    source_ranges: tuple[str, ...] = (),
) -> Service:
    backends = [Backend(*world["one"], local=True)] if here else []
    backends += [Backend(*world["two"])] if there else []
    return Service(
        *world["service"],
        protocol,
        backends=backends,
        exposed=[Exposure(KINDS[kind], *place(world, kind)) for kind in KINDS if kind != "cluster"],
        internal_local=internal_local,
        external_local=external_local,
        source_ranges=source_ranges,
    )


@contextmanager
def serving(entry: str, *services: Service) -> Iterator[Rig]:
    with rig(entry, redirect=False) as datapath:
        datapath.services.upsert(*services)
        yield datapath


def reached(datapath: Rig, world: World, frontend: str) -> set[str]:
    """Who answers forty clients, or what became of them instead."""
    found = set()
    address, port = place(world, frontend)
    for n in range(40):
        sent = datapath.send(tcp(world.address("client"), address, 10000 + n, port))
        found.add(str(sent.packet.dst) if sent.outcome == "TO_STACK" else sent.outcome)
    return found


@FAMILIES
@pytest.mark.parametrize("entry", ["from_pod", "from_uplink"])
@pytest.mark.parametrize("internal_local", [False, True])
@pytest.mark.parametrize("external_local", [False, True])
@pytest.mark.parametrize("frontend", KINDS)
def test_scope(world: World, frontend: str, entry: str, internal_local: bool, external_local: bool) -> None:
    wanted = service(world, internal_local=internal_local, external_local=external_local)
    local = internal_local if frontend == "cluster" else external_local and entry == "from_uplink"
    with serving(entry, wanted) as datapath:
        everybody = {world.address("one"), world.address("two")}
        assert reached(datapath, world, frontend) == ({world.address("one")} if local else everybody)


@FAMILIES
@pytest.mark.parametrize("frontend", ["node_port", "load_balancer", "external_ip"])
def test_local_traffic_without_a_local_backend_is_dropped(world: World, frontend: str) -> None:
    with serving("from_uplink", service(world, here=False, external_local=True)) as datapath:
        assert reached(datapath, world, frontend) == {"DROP_NOT_LOCAL"}
        assert reached(datapath, world, "cluster") == {world.address("two")}


@FAMILIES
@pytest.mark.parametrize("local", [False, True])
@pytest.mark.parametrize("protocol", PROTOCOLS, ids=lambda protocol: protocol.name)
@pytest.mark.parametrize("entry", ["from_pod", "from_uplink"])
def test_who_dials_a_service_without_backends_is_refused(
    world: World, protocol: Protocol, entry: str, local: bool
) -> None:
    nobody = service(world, here=False, there=False, protocol=protocol, external_local=local)
    with serving(entry, nobody) as datapath:
        for name in ("service", "node", "balancer", "external"):
            refused(datapath, world, world.frame("client", name, protocol, payload=bytes(100)))


def refused(datapath: Rig, world: World, frame: bytes, outcome: str = "REJECT_NO_BACKEND") -> None:
    """The frame comes back as a RST, or as an ICMP error that quotes it."""
    sent, before = datapath.send(frame), parse(frame)
    assert sent.outcome == outcome
    answer = sent.packet
    assert (answer.src, answer.dst, answer.ttl) == (before.dst, before.src, 64)
    assert answer.checksums_ok
    assert (answer.src_mac, answer.dst_mac) == (before.dst_mac, before.src_mac)
    if before.protocol == TCP and not before.options and not before.extensions:
        assert (answer.sport, answer.dport, answer.payload) == (before.dport, before.sport, b"")
        assert answer.flags == ("R" if "A" in before.flags else "RA")
        assert int.from_bytes(sent.frame[-12:-8]) == (1 if "S" in before.flags else 0)
        return
    assert (answer.protocol, answer.icmp) == UNREACHABLE[world.name]
    assert (quoted(answer).src, quoted(answer).dst) == (before.src, before.dst)
    assert frame[14:].startswith(answer.payload)
    assert len(answer.payload) >= (20 if world is V4 else 40) + 8


@pytest.mark.parametrize(
    ("world", "frame"),
    [
        (V4, V4.frame("client", "service", TCP, options=bytes([1] * 40))),
        (V6, V6.frame("client", "service", TCP, extensions=[(0, bytes(6)), (60, bytes(14))])),
        (V4, fragment(V4.frame("client", "service", UDP, payload=bytes(64)), 24)[0]),
        (V6, fragment(V6.frame("client", "service", UDP, payload=bytes(64)), 24)[0]),
        (V4, V4.frame("client", "service", TCP, "A", bytes(1400))),
        (V4, V4.frame("client", "service", UDP) + bytes(17)),
    ],
    ids=["options", "extensions", "fragment", "fragment v6", "long", "padded"],
)
def test_every_form_of_packet_is_refused(world: World, frame: bytes) -> None:
    nobody = [service(world, here=False, there=False, protocol=protocol) for protocol in PROTOCOLS]
    with serving("from_pod", *nobody) as datapath:
        refused(datapath, world, frame)


def test_more_headers_than_are_quoted_are_dropped() -> None:
    with serving("from_pod", service(V6, here=False, there=False)) as datapath:
        frame = V6.frame("client", "service", TCP, extensions=[(60, bytes(6 + 8 * 5))])
        assert datapath.send(frame).outcome == "DROP_REJECT"


def test_a_flood_is_not_answered_with_a_flood() -> None:
    with rig(redirect=False, reject_rate=1) as datapath:
        datapath.services.upsert(service(V4, here=False, there=False))
        with one_cpu():
            outcomes = [datapath.send(V4.frame("client", "service", TCP)).outcome for _ in range(300)]
        assert 50 <= outcomes.count("REJECT_NO_BACKEND") < 150
        assert set(outcomes) == {"REJECT_NO_BACKEND", "DROP_REJECT"}


@FAMILIES
@pytest.mark.parametrize("entry", ["from_pod", "from_uplink"])
def test_another_port_of_a_cluster_ip_is_refused_and_of_others_dropped(world: World, entry: str) -> None:
    with serving(entry, service(world)) as datapath:
        client = world.address("client")
        refused(datapath, world, tcp(client, world.address("service"), 1, 81), "REJECT_NO_SERVICE")
        refused(datapath, world, world.frame("client", "service", UDP), "REJECT_NO_SERVICE")
        for name in ("balancer", "external"):
            assert datapath.send(tcp(client, world.address(name), 1, 81)).outcome == "DROP_NO_SERVICE"
        for name in ("node", "stranger"):  # a node port leaves the rest to the node
            assert datapath.send(tcp(client, world.address(name), 1, 22)).outcome == "PASS"
        assert datapath.send(world.frame("client", "service", TCP)).outcome == "TO_STACK"
        datapath.services.plan([]).apply()
        for name in ("service", "balancer", "external"):
            assert datapath.send(tcp(client, world.address(name), 1, 81)).outcome == "PASS"


@FAMILIES
def test_an_address_of_the_node_keeps_its_other_ports(world: World) -> None:
    ssh = tcp(world.address("client"), world.address("balancer"), 1, 22)
    with serving("from_uplink", service(world)) as datapath:
        datapath.services.set_node_addresses([ip_address(world.address("balancer"))])
        assert datapath.send(ssh).outcome == "PASS"
        assert datapath.send(world.frame("client", "balancer", TCP)).outcome == "TO_STACK"
        datapath.services.set_node_addresses([])
        assert datapath.send(ssh).outcome == "DROP_NO_SERVICE"


@FAMILIES
@pytest.mark.parametrize("entry", ["from_pod", "from_uplink"])
def test_every_address_of_a_service_network_is_a_cluster_ip(world: World, entry: str) -> None:
    networks = {"service_ipv4": ip_network("10.96.0.0/12"), "service_ipv6": ip_network("fd00:96::/112")}
    client, vip = world.address("client"), ip_address(world.address("service"))
    with rig(entry, redirect=False, **networks) as datapath:
        datapath.services.upsert(service(world))
        assert datapath.send(world.frame("client", "service", TCP)).outcome == "TO_STACK"
        for address in (vip, vip + 100):  # in use or not
            for frame in (tcp(client, str(address), 1, 81), udp(client, str(address), 1, 81)):
                refused(datapath, world, frame, "REJECT_NO_SERVICE")
            assert datapath.send(icmp_echo(client, str(address))).outcome == "ECHO"
        inside, outside = (
            ("10.111.255.255", "10.112.0.0") if world is V4 else ("fd00:96::ffff", "fd00:96::1:0")
        )
        refused(datapath, world, tcp(client, inside, 1, 81), "REJECT_NO_SERVICE")
        assert datapath.send(tcp(client, outside, 1, 81)).outcome == "PASS"


@FAMILIES
@pytest.mark.parametrize("entry", ["from_pod", "from_uplink"])
def test_source_ranges_rule_the_load_balancers_address(world: World, entry: str) -> None:
    near, far = ("10.244.0.0/16", "203.0.113.0/24") if world is V4 else ("fd00:244::/32", "2001:db8:1::/48")
    with serving(entry, service(world, source_ranges=(far,))) as datapath:
        assert datapath.send(world.frame("client", "balancer", TCP)).outcome == "DROP_SOURCE"
        for name in ("service", "node", "external"):
            assert datapath.send(world.frame("client", name, TCP)).outcome == "TO_STACK"
            datapath.flows.clear()
        datapath.services.upsert(service(world, source_ranges=(far, near)))
        assert datapath.send(world.frame("client", "balancer", TCP)).outcome == "TO_STACK"
        datapath.services.upsert(service(world, source_ranges=(far,)))
        assert datapath.send(world.frame("stranger", "balancer", TCP)).outcome == "DROP_SOURCE"
        datapath.services.upsert(service(world))
        assert datapath.send(world.frame("stranger", "balancer", TCP)).outcome == "TO_STACK"


@FAMILIES
def test_a_frontend_at_loopback_is_for_no_packet(world: World) -> None:
    loopback = "127.0.0.1" if world is V4 else "::1"
    exposed = Exposure(FrontendKind.NODE_PORT, loopback, 30080)
    reached = Service(*world["service"], backends=[Backend(*world["one"])], exposed=[exposed])
    for entry in ("from_uplink", "from_pod"):
        with serving(entry, reached) as datapath:
            assert datapath.send(tcp(world.address("client"), loopback, 40000, 30080)).outcome == "PASS"


@FAMILIES
def test_a_service_that_is_made_anew_remembers_nobody(world: World) -> None:
    """Neither whom it let in nor who stayed with whom, though it may get the number that it had."""
    backends = [Backend(*world["one"]), Backend(*world["two"])]
    ranges = ["10.244.0.0/16"] if world is V4 else ["fd00:244::/32"]
    wanted = Service(*world["balancer"], kind="load_balancer", backends=backends, affinity_timeout=10000)
    with serving("from_uplink", evolve(wanted, source_ranges=ranges)) as datapath:
        sources = datapath.loaded.map("kd_sources", maps.LPMTrie[SourceKey, u8])
        seen = set()
        for _ in range(32):
            seen |= {frozenset(reached(datapath, world, "load_balancer"))}
            datapath.services.remove(wanted.frontend)
            assert not list(sources)
            assert reached(datapath, world, "load_balancer") == {"PASS"}
            datapath.flows.clear()
            datapath.services.upsert(wanted)
        assert seen == {frozenset({world.address("one")}), frozenset({world.address("two")})}


@FAMILIES
@pytest.mark.parametrize("protocol", PROTOCOLS, ids=lambda protocol: protocol.name)
def test_an_address_that_comes_and_goes_leaves_the_others_alone(world: World, protocol: Protocol) -> None:
    before = Service(
        *world["service"],
        protocol,
        backends=[Backend(*world["one"]), Backend(*world["two"])],
        exposed=[Exposure("node_port", *world["node"])],
    )
    after = evolve(before, exposed=[*before.exposed, Exposure("node_port", *world["external"])])
    with serving("from_uplink", before) as datapath:
        asked = world.frame("client", "node", protocol)
        first = datapath.send(asked).packet.dst
        fresh = world.frame("client", "external", protocol)
        assert datapath.send(fresh).outcome == "PASS"
        datapath.services.upsert(after)
        assert datapath.send(world.frame("stranger", "external", protocol)).outcome == "TO_STACK"
        assert [datapath.send(asked).packet.dst for _ in range(8)] == [first] * 8
        datapath.services.upsert(before)
        assert datapath.send(fresh).outcome == "PASS"
        assert [datapath.send(asked).packet.dst for _ in range(8)] == [first] * 8
