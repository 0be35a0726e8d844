"""Client and backend behind a node's uplink: the node continues their connections in the driver, or at tc."""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import threading
from array import array
from collections.abc import Iterator
from contextlib import ExitStack
from ipaddress import ip_address, ip_interface, ip_network

import pytest
from attrs import evolve, frozen

from k8sdatapath.model import Backend, Exposure, Service
from k8sdatapath.net.netlink import Netlink, set_sysctl
from k8sdatapath.net.netns import NetNs
from k8sdatapath.node import Capacity, Node, NodeConfig
from k8sdatapath.objects import ObjectSpec
from k8sdatapath.programs import XDP

pytestmark = pytest.mark.lab

SMALL = Capacity(services=64, backends=256, slots=1024, flows=4096, pods=16)
NODE_PORT = 30080
WORDS = os.urandom(64) * 16384  # a megabyte: many segments each way


@frozen
class Family:
    """Addresses of a family on the one network that all are on."""

    network: str
    node: str
    client: str
    backend: str
    vip: str


V4 = Family("192.0.2.0/24", "192.0.2.1", "192.0.2.2", "192.0.2.3", "10.96.0.10")
V6 = Family("2001:db8::/64", "2001:db8::1", "2001:db8::2", "2001:db8::3", "fd00:96::10")
FAMILIES = pytest.mark.parametrize("family", [V4, V6], ids=["IPv4", "IPv6"])


def whole_checksums(device: str) -> None:
    """Let the stack write checksums, as whoever is on a wire has to."""
    value = array("I", [0x17, 0])  # ETHTOOL_STXCSUM
    request = struct.pack("16sP", device.encode(), value.buffer_info()[0])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, 0x8946, request)  # SIOCETHTOOL


@pytest.fixture(scope="module")
def machines() -> Iterator[dict[str, NetNs]]:
    """Node, client and backend on a bridge. The backend could answer the client directly, but must not."""
    with ExitStack() as own:
        names = ("switch", "node", "client", "backend")
        made = {name: own.enter_context(NetNs.create(f"kdxdp-{os.getpid()}-{name}")) for name in names}

        def wire_switch() -> None:
            with Netlink() as net:
                net.create_bridge("br0")
                for name in names[1:]:
                    net.create_veth(name, "eth0", peer_netns=made[name])
                    net.set_master(name, "br0")

        def wire(name: str) -> None:
            set_sysctl("ipv4/conf/all/send_redirects", 0)
            whole_checksums("eth0")
            with Netlink() as net:
                net.set_up("lo")
                net.set_up("eth0")
                for family in (V4, V6):
                    length = ip_network(family.network).prefixlen
                    net.add_address("eth0", ip_interface(f"{getattr(family, name)}/{length}"))
                net.wait_up("eth0")
                for family in (V4, V6) if name == "client" else ():
                    net.add_route(ip_network(family.vip), via=ip_address(family.node))

        made["switch"].call(wire_switch)
        for name in names[1:]:
            made[name].call(wire, name)
        for setting in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
            made["node"].call(set_sysctl, setting, 1)
        # What a veth's end sends from XDP, its other end takes only if it has a program as well.
        passes = own.enter_context(ObjectSpec.from_file("xdp").with_maps(kd_conntrack=16).load())
        own.enter_context(passes.program("xdp_in", XDP).attach("node", netns=made["switch"]))
        yield made


def config(machines: dict[str, NetNs], *, xdp: bool) -> NodeConfig:
    return NodeConfig(name="xdp", netns=machines["node"], uplinks=["eth0"], capacity=SMALL, xdp=xdp)


def talk(machines: dict[str, NetNs], family: Family, frontend: tuple[str, int] | None = None) -> bool:
    """Send through the service and get it back; true if all came back as it was."""
    dialled = frontend or (family.vip, 80)

    def serve() -> socket.socket:
        return socket.create_server(
            (family.backend, 8080), family=socket.AF_INET6 if ":" in family.backend else socket.AF_INET
        )

    def echo(listener: socket.socket) -> None:
        peer, _ = listener.accept()
        with peer:
            while words := peer.recv(1 << 16):
                peer.sendall(words)

    def ask() -> bytes:
        with socket.create_connection(dialled, timeout=20) as peer:
            threading.Thread(target=lambda: (peer.sendall(WORDS), peer.shutdown(socket.SHUT_WR))).start()
            return b"".join(iter(lambda: peer.recv(1 << 16), b""))

    with machines["backend"].call(serve) as listener:
        server = threading.Thread(target=echo, args=(listener,))
        server.start()
        answer = machines["client"].call(ask)
        server.join()
    return answer == WORDS


def listen_in() -> socket.socket:
    """A socket for all that reaches the node's stack."""
    every = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.htons(3))
    every.bind(("eth0", 3))
    return every


def received(every: socket.socket) -> int | None:
    try:
        return len(every.recv(64))
    except BlockingIOError:
        return None


def service(family: Family) -> Service:
    ports = [Exposure("node_port", family.node, NODE_PORT), Exposure("load_balancer", family.vip, 443)]
    return Service(family.vip, 80, backends=[Backend(family.backend, 8080)], exposed=ports)


@FAMILIES
@pytest.mark.parametrize("kind", ["ClusterIP", "NodePort", "LoadBalancer"])
@pytest.mark.parametrize("xdp", [False, True], ids=["tc", "xdp"])
def test_a_connection_passes_through(
    machines: dict[str, NetNs], family: Family, kind: str, xdp: bool
) -> None:
    port = {"ClusterIP": 80, "NodePort": NODE_PORT, "LoadBalancer": 443}[kind]
    address = family.node if kind == "NodePort" else family.vip
    with Node.open(config(machines, xdp=xdp)) as node, machines["node"].call(listen_in) as stack:
        assert node.xdp_uplinks == (("eth0",) if xdp else ())
        node.services.upsert(service(family))
        assert talk(machines, family, (address, port))
        assert node.counters()["TO_DEVICE"].packets > 500
        reached = sum(1 for _ in iter(lambda: received(stack), None))
        assert reached < 50 if xdp else reached > 50, "what is continued in the driver, the stack never sees"


def test_a_device_that_has_a_program_already_stays_with_tc(machines: dict[str, NetNs]) -> None:
    with ObjectSpec.from_file("xdp").with_maps(kd_conntrack=16).load() as other:
        program = other.program("xdp_in", XDP)
        with program.attach("eth0", netns=machines["node"]), Node.open(config(machines, xdp=True)) as node:
            assert node.xdp_uplinks == ()
            node.services.upsert(service(V4))
            assert talk(machines, V4)


def test_resized_tables_are_used_at_xdp_too(machines: dict[str, NetNs]) -> None:
    with Node.open(config(machines, xdp=True)) as node:
        node.services.upsert(service(V4))
        node.resize(evolve(SMALL, services=128))
        assert node.xdp_uplinks == ("eth0",)
        assert talk(machines, V4)
