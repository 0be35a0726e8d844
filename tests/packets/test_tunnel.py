"""Both ends of a tunnel by test run: no device is needed, be it one for VXLAN or for Geneve."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from k8sdatapath import features, maps, programs
from k8sdatapath.compiler import compile
from k8sdatapath.layout import addr, struct, u8, u32
from k8sdatapath.net.packet import tcp, udp
from k8sdatapath.objects import Object, ObjectSpec
from k8sdatapath.tables.endpoints import EndpointRow
from k8sdatapath.tables.peers import PeerKey, PeerRow
from tests.packets.rig import HOST_MAC, POD_MAC, rig

pytestmark = pytest.mark.packets

PODS = {4: ("10.244.1.2", "10.244.2.2"), 6: ("fd00:10:244:1::2", "fd00:10:244:2::2")}
NODES = {4: "192.0.2.12", 6: "2001:db8::12"}
UNDERLAYS = pytest.mark.parametrize("underlay", [4, 6], ids=["IPv4 between nodes", "IPv6 between nodes"])
FAMILIES = pytest.mark.parametrize("family", [4, 6], ids=["IPv4 pods", "IPv6 pods"])
NO_PEER, UNKNOWN_PEER = 20, 21


@struct
class Key:
    identity: u32
    node: addr


class Ends:
    """The two programs, and the tables that they read."""

    def __init__(self, loaded: Object) -> None:
        self.loaded = loaded
        self.key = loaded.map("key", maps.Array[Key])
        self.pods = loaded.map("kd_endpoints", maps.Hash[addr, EndpointRow])
        self.peers = loaded.map("kd_peers", maps.LPMTrie[PeerKey, PeerRow])
        self.nodes = loaded.map("kd_peer_nodes", maps.Hash[addr, u8])

    def run(self, name: str, frame: bytes) -> int:
        return self.loaded.program(name, programs.TC).run(frame).retval


@contextmanager
def ends(underlay: int) -> Iterator[Ends]:
    spec = compile(Path(__file__).parents[1] / "data" / "tunnel_key.bpf.c")
    with spec.with_config(tunnel_ipv6=underlay == 6).load() as loaded:
        yield Ends(loaded)


@UNDERLAYS
@FAMILIES
@pytest.mark.parametrize("identity", [1, 0x123456, 0xFFFFFF])
def test_the_key_has_the_node_of_the_pod_and_whose_it_is(underlay: int, family: int, identity: int) -> None:
    one, two = PODS[family]
    with ends(underlay) as made:
        made.pods[ip_address(one)] = EndpointRow(1, identity, POD_MAC, HOST_MAC)
        assert made.run("sent", tcp(one, two, 40000, 80)) == NO_PEER
        made.peers[PeerKey.of(ip_network(two))] = PeerRow(ip_address(NODES[underlay]))
        assert made.run("sent", tcp(one, two, 40000, 80)) == 0
        assert (made.key[0].identity, made.key[0].node) == (identity, ip_address(NODES[underlay]))


@UNDERLAYS
@FAMILIES
def test_what_came_is_believed_if_a_node_of_the_cluster_sent_it(underlay: int, family: int) -> None:
    one, two = PODS[family]
    frame = udp(one, two, 40000, 53, b"?")
    with ends(underlay) as made:
        made.key[0] = Key(0x123456, ip_address(NODES[underlay]))
        assert made.run("received", frame) == UNKNOWN_PEER
        made.nodes[ip_address(NODES[underlay])] = 1
        assert made.run("received", frame) == 0
        made.key[0] = Key(0x123456, ip_address(NODES[underlay]) + 1)
        assert made.run("received", frame) == UNKNOWN_PEER


def test_programs_are_the_same_for_both_kinds() -> None:
    """What they are told of a tunnel is its device, its port and the family of nodes, but not its kind."""
    told = {name for which in ("pod", "host", "overlay") for name in ObjectSpec.from_file(which).config}
    assert {name for name in told if "tunnel" in name} == {"tunnel_device", "tunnel_port", "tunnel_ipv6"}
    assert {"geneve", "vxlan"} <= set(features.known())


@pytest.mark.parametrize("underlay", [4, 6])
@pytest.mark.parametrize("extensions", [0, 6, 7, 20])
def test_a_pod_does_not_get_to_a_nodes_end_however_it_hides(underlay: int, extensions: int) -> None:
    padding = [(60, bytes([1, 4, 0, 0, 0, 0]))] * (extensions if underlay == 6 else 0)
    pod, node = PODS[underlay][0], NODES[underlay]
    with rig(tunnel_port=8472, tunnel_device=1, tunnel_ipv6=underlay == 6) as datapath:
        nodes = datapath.loaded.map("kd_peer_nodes", maps.Hash[addr, u8])
        nodes[ip_address(node)] = 1
        assert datapath.send(udp(pod, node, 40000, 8472, b"?", extensions=padding)).outcome == "DROP_MEDDLING"
        assert datapath.send(udp(pod, node, 40000, 8473, b"?")).outcome == "PASS"
        assert datapath.send(tcp(pod, node, 40000, 8472)).outcome == "PASS"
