"""ICMP: errors about packets of translated flows, echo requests to addresses of services."""

from __future__ import annotations

import os
from collections.abc import Iterator
from ipaddress import ip_address, ip_interface, ip_network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from k8sdatapath.errors import KernelError, ModelError
from k8sdatapath.net.netlink import Netlink, set_sysctl
from k8sdatapath.net.netns import NetNs
from k8sdatapath.net.packet import checksum, icmp_echo, icmp_error, parse, quoted
from tests.packets.rig import Rig, rig
from tests.packets.world import PROTOCOLS, TCP, UDP, V4, V6, WORLDS, World

FAMILIES = pytest.mark.parametrize("world", WORLDS, ids=lambda world: world.name)
TRANSPORTS = pytest.mark.parametrize("protocol", PROTOCOLS, ids=lambda protocol: protocol.name)
KINDS = {
    V4.name: [(3, 1), (3, 3), (3, 4), (11, 0), (12, 0)],
    V6.name: [(1, 0), (1, 4), (2, 0), (3, 0), (4, 1)],
}
ERRORS = [pytest.param(w, kind, id=f"{w.name} {kind}") for w in WORLDS for kind in KINDS[w.name]]
ROUTER = {V4.name: "192.0.2.99", V6.name: "2001:db8:1::99"}
MTU = 1300


@pytest.fixture
def datapath() -> Iterator[Rig]:
    with rig(redirect=False) as made:
        made.services.upsert(*(w.service("service", p, ["one"]) for w in WORLDS for p in PROTOCOLS))
        yield made


def told(datapath: Rig, world: World, frame: bytes, *, via: str = "") -> None:
    """An error is passed on whole, and the IP header in it is still right."""
    sent, before = datapath.send(frame, via=via), parse(frame)
    assert sent.outcome == "TO_STACK"
    after = sent.packet
    assert after.checksums_ok
    assert (after.icmp, after.ttl) == (before.icmp, before.ttl)
    assert (
        sent.frame[len(sent.frame) - len(before.payload) - 4 :][:4] == frame[-len(before.payload) - 4 :][:4]
    )
    if world is V4:
        assert checksum(after.payload[:20]) == 0
    assert len(after.payload) == len(before.payload)


@pytest.mark.parametrize(("world", "kind"), ERRORS)
@TRANSPORTS
@pytest.mark.parametrize("via", ["", "to_pod"])
def test_an_error_on_the_way_to_the_backend_is_about_the_service(
    datapath: Rig, world: World, kind: tuple[int, int], protocol: int, via: str
) -> None:
    asked = datapath.send(world.frame("client", "service", protocol, "A", bytes(1400))).frame
    error = icmp_error(ROUTER[world.name], world.address("client"), asked, kind, MTU)
    told(datapath, world, error, via=via)
    after = datapath.send(error, via=via).packet
    assert (str(after.src), str(after.dst)) == (ROUTER[world.name], world.address("client"))
    about = quoted(after)
    assert (str(about.src), about.sport) == world["client"]
    assert (str(about.dst), about.dport) == world["service"]


@pytest.mark.parametrize(("world", "kind"), ERRORS)
@TRANSPORTS
def test_an_error_on_the_way_to_the_client_is_about_the_backend(
    datapath: Rig, world: World, kind: tuple[int, int], protocol: int
) -> None:
    datapath.send(world.frame("client", "service", protocol))
    answered = datapath.send(world.frame("one", "client", protocol, "A", bytes(1400))).frame
    error = icmp_error(ROUTER[world.name], world.address("service"), answered, kind, MTU)
    told(datapath, world, error)
    after = datapath.send(error).packet
    assert (str(after.src), str(after.dst)) == (ROUTER[world.name], world.address("one"))
    about = quoted(after)
    assert (str(about.src), about.sport) == world["one"]
    assert (str(about.dst), about.dport) == world["client"]


@FAMILIES
def test_an_error_of_the_backend_itself_comes_from_the_service(datapath: Rig, world: World) -> None:
    asked = datapath.send(world.frame("client", "service", UDP)).frame
    error = icmp_error(world.address("one"), world.address("client"), asked, KINDS[world.name][1])
    told(datapath, world, error)
    assert str(datapath.send(error).packet.src) == world.address("service")


@FAMILIES
def test_an_error_goes_straight_into_the_pod(world: World) -> None:
    with rig() as datapath:
        datapath.add_pod(world.address("client"))
        datapath.services.upsert(world.service("service", TCP, ["one"]))
        asked = datapath.send(world.frame("client", "service", TCP)).frame
        error = icmp_error(ROUTER[world.name], world.address("client"), asked, KINDS[world.name][0])
        assert datapath.send(error).outcome == "TO_POD"


@FAMILIES
def test_an_error_about_a_flow_under_the_nodes_address_reaches_the_client(world: World) -> None:
    def wire() -> None:
        for name in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
            set_sysctl(name, 1)
        with Netlink() as net:
            net.set_up("lo")
            net.create_veth("out", "far")
            net.set_up("far")
            router, interface = ROUTER[world.name], "/24" if world is V4 else "/64"
            net.add_address("out", ip_interface(world.address("uplink") + interface))
            net.wait_up("out")
            net.add_route(ip_network(world.address("one")), via=ip_address(router))
            net.add_route(ip_network(world.address("stranger")), via=ip_address(router))

    with NetNs.create(f"kddp-icmp-{os.getpid()}") as node, rig("from_uplink") as datapath:
        node.call(wire)
        datapath.services.upsert(world.service("service", TCP, ["one"]))
        asked = datapath.send(world.frame("stranger", "service", TCP), netns=node)
        assert str(asked.packet.src) == world.address("uplink")
        error = icmp_error(
            ROUTER[world.name], world.address("uplink"), asked.frame, KINDS[world.name][2], MTU
        )
        sent = datapath.send(error, netns=node)
        assert sent.outcome == "TO_DEVICE"
        assert sent.packet.checksums_ok
        assert str(sent.packet.dst) == world.address("stranger")
        assert (str(quoted(sent.packet).src), quoted(sent.packet).sport) == world["stranger"]
        assert (str(quoted(sent.packet).dst), quoted(sent.packet).dport) == world["service"]


@FAMILIES
def test_what_is_about_no_flow_of_ours_is_left_alone(datapath: Rig, world: World) -> None:
    client = world.address("client")
    strange = world.frame("client", "stranger", TCP)
    for about in (strange, strange[:20], icmp_echo(client, world.address("stranger")), strange[:14]):
        error = icmp_error(ROUTER[world.name], client, about, KINDS[world.name][0])
        sent = datapath.send(error)
        assert (sent.outcome, sent.frame) == ("PASS", error)


@FAMILIES
def test_an_address_of_services_answers_echo_requests(datapath: Rig, world: World) -> None:
    vip, client = world.address("service"), world.address("client")
    request = icmp_echo(client, vip, 7, b"payload!")
    sent = datapath.send(request)
    assert sent.outcome == "ECHO"
    assert sent.packet.icmp == ((0, 0) if world is V4 else (129, 0))
    assert (str(sent.packet.src), str(sent.packet.dst)) == (vip, client)
    assert sent.packet.payload == b"payload!"
    assert sent.packet.checksums_ok
    datapath.services.set_node_addresses([ip_address(vip)])
    assert datapath.send(request).outcome == "PASS"
    datapath.services.set_node_addresses([])
    assert datapath.send(request).outcome == "ECHO"
    datapath.services.plan([]).apply()
    assert datapath.send(request).outcome == "PASS"


@settings(max_examples=300)
@given(
    world=st.sampled_from(WORLDS),
    protocol=st.sampled_from(PROTOCOLS),
    changes=st.lists(st.tuples(st.integers(0, 119), st.integers(0, 255)), max_size=4),
    cut=st.integers(20, 200),
)
def test_noise_in_an_error_never_comes_out_looking_right(
    datapath: Rig, world: World, protocol: int, changes: list[tuple[int, int]], cut: int
) -> None:
    asked = datapath.send(world.frame("client", "service", protocol, "A", b"noise below" * 9)).frame
    frame = bytearray(
        icmp_error(ROUTER[world.name], world.address("client"), asked, KINDS[world.name][2], MTU)
    )
    for at, value in changes:
        frame[14 + at % (len(frame) - 14)] = value
    frame = frame[: 14 + cut]
    try:
        before = parse(bytes(frame))
    except ModelError:
        before = None
    try:
        sent = datapath.send(bytes(frame))
    except KernelError:  # the test run of newer kernels refuses frames without a whole IP header
        return
    if sent.outcome != "TO_STACK":
        assert sent.frame == frame
    else:
        assert before is not None
        assert sent.packet.checksums_ok == before.checksums_ok


@FAMILIES
def test_an_error_is_not_read_past_its_end(datapath: Rig, world: World) -> None:
    """The link has padded it, by chance with what would have been quoted."""
    asked = datapath.send(world.frame("client", "service", TCP)).frame
    inner = 20 if world is V4 else 40
    error = icmp_error(
        ROUTER[world.name], world.address("client"), asked[: 14 + inner + 2], KINDS[world.name][0]
    )
    error += asked[14 + inner + 2 :]
    sent = datapath.send(error)
    assert (sent.outcome, sent.frame) == ("PASS", error)


@FAMILIES
def test_an_error_for_somebody_else_than_it_is_about_is_left_alone(datapath: Rig, world: World) -> None:
    asked = datapath.send(world.frame("client", "service", TCP)).frame
    error = icmp_error(ROUTER[world.name], world.address("stranger"), asked, KINDS[world.name][0])
    sent = datapath.send(error)
    assert (sent.outcome, sent.frame) == ("PASS", error)
