"""The program at XDP: what it continues comes out as from the one at tc, bit by bit. The rest it leaves."""

from __future__ import annotations

import os
import random
import struct
from collections.abc import Iterator
from contextlib import ExitStack
from ipaddress import ip_address, ip_interface, ip_network

import pytest
from attrs import frozen

from k8sdatapath import maps
from k8sdatapath.datapath.explainer import Device, Explainer
from k8sdatapath.datapath.explanation import Place
from k8sdatapath.datapath.service_table import ServiceTable
from k8sdatapath.layout import addr
from k8sdatapath.model import Protocol
from k8sdatapath.net.netlink import Netlink, set_sysctl
from k8sdatapath.net.netns import NetNs
from k8sdatapath.net.packet import fragment, parse, udp
from k8sdatapath.objects import Object, ObjectSpec
from k8sdatapath.programs import TC, XDP, RunResult, TcAction, XdpAction
from k8sdatapath.programs.base import device_index
from k8sdatapath.tables.counters import CounterRow, outcomes, read_counters
from k8sdatapath.tables.endpoints import EndpointRow
from tests.packets.world import PROTOCOLS, TCP, UDP, V4, V6, WORLDS, World

pytestmark = pytest.mark.packets

OURS, NEXT_HOP = "02:00:00:00:02:01", "02:00:00:00:02:02"
FAMILIES = pytest.mark.parametrize("world", WORLDS, ids=lambda world: world.name)
TRANSPORTS = pytest.mark.parametrize("protocol", PROTOCOLS, ids=lambda protocol: protocol.name)


@frozen
class Uplink:
    """A device that clients and backends are behind, and both programs that it has."""

    netns: NetNs
    index: int
    host: Object
    early: Object
    services: ServiceTable

    def tc(self, frame: bytes) -> RunResult:
        ctx = bytearray(192)
        struct.pack_into("=I", ctx, 40, self.index)
        program = self.host.program("from_uplink", TC)
        return self.netns.call(program.run, frame, ctx=bytes(ctx))

    def xdp(self, frame: bytes) -> RunResult:
        ctx = struct.pack("=6I", 0, len(frame), 0, self.index, 0, 0)
        program = self.early.program("xdp_in", XDP)
        return self.netns.call(program.run, frame, ctx=ctx)

    def begin(self, world: World, protocol: Protocol) -> None:
        """A flow from the client through the service, which has its answer."""
        first = self.tc(frame(world, "client", "service", protocol))
        assert first.retval == TcAction.REDIRECT
        answered = self.tc(frame(world, "one", "uplink", protocol, "SA"))
        assert str(parse(answered.data).src) == world.address("service")

    def leaves_alone(self, sent: bytes) -> bool:
        done = self.xdp(sent)
        return done.retval == XdpAction.PASS and done.data == sent

    def counted(self) -> int:
        """Packets that were sent through a device, by either program."""
        rows = self.host.map("kd_counters", maps.PerCpuArray[CounterRow])
        counter = read_counters(rows, outcomes(self.host.spec.btf)).get("TO_DEVICE")
        return counter.packets if counter else 0


def frame(world: World, src: str, dst: str, protocol: Protocol, flags: str = "S", **more: object) -> bytes:
    return world.frame(src, dst, protocol, flags, **{"src_mac": NEXT_HOP, "dst_mac": OURS, **more})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def node() -> Iterator[tuple[NetNs, int]]:
    """A namespace with an uplink, behind which all places are; the next hop to ``two`` is not known."""

    def wire() -> int:
        for name in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
            set_sysctl(name, 1)
        with Netlink() as net:
            net.set_up("lo")
            net.create_veth("up0", "far", mac=OURS)
            net.set_up("far")
            for world, interface, router, unknown, places in (
                (V4, "192.0.2.1/24", "192.0.2.2", "192.0.2.3", "10.244.0.0/16"),
                (V6, "2001:db8:1::1/64", "2001:db8:1::2", "2001:db8:1::3", "fd00:244::/32"),
            ):
                net.add_address("up0", ip_interface(interface))
                net.add_neighbour("up0", ip_address(router), NEXT_HOP)
                net.add_route(ip_network(places), via=ip_address(router))
                net.add_route(ip_network(world.address("two")), via=ip_address(unknown))
            net.wait_up("up0")
        return device_index("up0")

    with NetNs.create(f"kdxdp-{os.getpid()}") as made:
        yield made, made.call(wire)


@pytest.fixture
def uplink(node: tuple[NetNs, int]) -> Iterator[Uplink]:
    netns, index = node
    with ExitStack() as own:
        spec = ObjectSpec.from_file("host").with_maps(kd_conntrack=4096)
        host = own.enter_context(spec.load())
        early = own.enter_context(ObjectSpec.from_file("xdp").load(reuse=host.maps))
        services = own.enter_context(ServiceTable.bind(host))
        services.upsert(*(w.service("service", p, ["one"]) for w in WORLDS for p in PROTOCOLS))
        own.enter_context(early.program("xdp_in", XDP).attach("up0", netns=netns))
        yield Uplink(netns, index, host, early, services)


@FAMILIES
@TRANSPORTS
def test_new_flows_are_left_to_tc(uplink: Uplink, world: World, protocol: Protocol) -> None:
    assert uplink.leaves_alone(frame(world, "client", "service", protocol))
    assert uplink.leaves_alone(frame(world, "client", "stranger", protocol))
    assert len(uplink.host.maps["kd_conntrack"]) == 0


@FAMILIES
@TRANSPORTS
@pytest.mark.parametrize("way", [("client", "service"), ("one", "uplink")], ids=["request", "reply"])
def test_flows_are_continued_as_tc_would(
    uplink: Uplink, world: World, protocol: Protocol, way: tuple[str, str]
) -> None:
    uplink.begin(world, protocol)
    sent = frame(world, *way, protocol, "PA", payload=b"some words", ttl=9)
    before = uplink.counted()
    early, late = uplink.xdp(sent), uplink.tc(sent)
    assert (early.retval, late.retval) == (XdpAction.TX, TcAction.REDIRECT)
    assert uplink.counted() == before + 2
    assert early.data == late.data
    became = parse(early.data)
    assert became.checksums_ok
    assert (became.src_mac, became.dst_mac, became.ttl) == (OURS, NEXT_HOP, 8)
    assert str(became.dst) == world.address("one" if way[0] == "client" else "client")


def test_a_datagram_without_checksum_stays_without(uplink: Uplink) -> None:
    uplink.begin(V4, UDP)
    sent = frame(V4, "client", "service", UDP, payload=b"x", checksum=0)
    assert parse(uplink.xdp(sent).data).checksum == 0


def test_a_checksum_of_zero_is_written_as_its_other_form(uplink: Uplink) -> None:
    uplink.begin(V4, UDP)
    for value in range(1 << 16):
        sent = frame(V4, "client", "service", UDP, payload=value.to_bytes(2, "big"))
        became = udp(*(V4.address(n) for n in ("uplink", "one")), V4["client"][1], V4["one"][1], sent[42:])
        if parse(became).checksum == 0xFFFF:
            break
    else:
        pytest.fail("no payload has a sum of zero")
    assert parse(uplink.xdp(sent).data).checksum == 0xFFFF


def test_a_wrong_checksum_stays_wrong(uplink: Uplink) -> None:
    uplink.begin(V4, TCP)
    became = parse(uplink.xdp(frame(V4, "client", "service", TCP, "A", checksum=0x1234)).data)
    assert str(became.dst) == V4.address("one")
    assert not became.checksums_ok


@FAMILIES
def test_the_end_of_a_flow_is_noticed(uplink: Uplink, world: World) -> None:
    uplink.begin(world, TCP)
    assert uplink.xdp(frame(world, "client", "service", TCP, "FA")).retval == XdpAction.TX
    assert uplink.leaves_alone(frame(world, "client", "service", TCP, "S")), "a new flow from the same port"


@FAMILIES
def test_pods_of_this_node_are_for_tc(uplink: Uplink, world: World) -> None:
    uplink.begin(world, TCP)
    pods = uplink.host.map("kd_endpoints", maps.Hash[addr, EndpointRow])
    pods[ip_address(world.address("one"))] = EndpointRow(1, 0, OURS, OURS)
    assert uplink.leaves_alone(frame(world, "client", "service", TCP, "A"))


@FAMILIES
def test_what_is_odd_is_for_tc(uplink: Uplink, world: World) -> None:
    uplink.begin(world, UDP)
    plain = frame(world, "client", "service", UDP, payload=bytes(64))
    assert uplink.xdp(plain).retval == XdpAction.TX
    assert uplink.leaves_alone(frame(world, "client", "service", UDP, ttl=1)), "the end of its life"
    assert uplink.leaves_alone(frame(world, "client", "service", UDP, dst_mac=NEXT_HOP)), (
        "not for this device"
    )
    assert uplink.leaves_alone(frame(world, "client", "service", UDP, payload=bytes(1600))), "too long"
    assert uplink.leaves_alone(plain[:12] + bytes.fromhex("81000007") + plain[12:]), "of a VLAN"
    for part in fragment(frame(world, "client", "service", UDP, payload=bytes(1400)), 600):
        assert uplink.leaves_alone(part), "a fragment"
    for length in range(14, len(plain)):
        assert uplink.leaves_alone(plain[:length]), "cut short"


def test_options_are_for_tc(uplink: Uplink) -> None:
    uplink.begin(V4, TCP)
    assert uplink.leaves_alone(frame(V4, "client", "service", TCP, "A", options=b"\x01" * 4))


@FAMILIES
def test_a_next_hop_that_has_to_be_asked_for_is_for_tc(uplink: Uplink, world: World) -> None:
    uplink.services.upsert(world.service("other", TCP, ["two"]))
    assert uplink.tc(frame(world, "client", "other", TCP)).retval == TcAction.REDIRECT
    assert uplink.leaves_alone(frame(world, "client", "other", TCP, "A"))


def test_no_damaged_packet_is_sent_out_worse(uplink: Uplink) -> None:
    """Bytes changed by chance: it is left alone, or what leaves is as right or wrong as what came."""
    chance = random.Random(3)
    for world in WORLDS:
        for protocol in PROTOCOLS:
            uplink.begin(world, protocol)
            whole = frame(world, "client", "service", protocol, "A", payload=b"words")
            for _ in range(1500):
                damaged = bytearray(whole)
                for _ in range(chance.randint(1, 3)):
                    damaged[chance.randrange(len(damaged))] = chance.randrange(256)
                done = uplink.xdp(bytes(damaged))
                if done.retval == XdpAction.PASS:
                    assert done.data == damaged
                else:
                    assert done.retval == XdpAction.TX
                    assert parse(done.data).checksums_ok == parse(bytes(damaged)).checksums_ok


@FAMILIES
def test_what_is_explained_is_what_becomes_of_it(uplink: Uplink, world: World) -> None:
    uplink.begin(world, TCP)
    device = Device(uplink.index, OURS)
    pods = uplink.host.map("kd_endpoints", maps.Hash[addr, EndpointRow])
    with Explainer.bind(uplink.host, netns=uplink.netns) as explainer:

        def told(sent: bytes) -> list[str]:
            """The steps, of which the last says the same as the program does."""
            said = explainer.explain(sent, Place.XDP, device=device)
            done = uplink.xdp(sent)
            assert (said.outcome.name == "PASS") == (done.retval == XdpAction.PASS)
            assert said.answer == parse(done.data)
            return [step.name for step in said.steps]

        request = frame(world, "client", "service", TCP, "A")
        assert told(request) == ["packet", "flow", "rewrite"]
        assert told(frame(world, "client", "stranger", TCP, "A")) == ["packet", "no_flow"]
        assert told(frame(world, "client", "service", TCP, "A", ttl=1)) == ["left"]
        pods[ip_address(world.address("one"))] = EndpointRow(1, 0, OURS, OURS)
        assert told(request) == ["packet", "flow", "pod"]
