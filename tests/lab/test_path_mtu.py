"""Ways that are narrower than who sends thinks: routed and through the tunnel, with and without a service."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from ipaddress import IPv4Address, IPv6Address

import pytest
from attrs import evolve, frozen

from k8sdatapath import Exposure, Lab, Service
from k8sdatapath.lab.addressing import pod_networks
from k8sdatapath.lab.host import Host
from k8sdatapath.lab.lab import Pod, Routing
from k8sdatapath.node import Capacity

pytestmark = pytest.mark.lab

SMALL = Capacity(services=1024, backends=4096, slots=65536, flows=65536, pods=64)
VIPS = {4: "10.96.0.10", 6: "fd00:10:96::10"}
#: Bytes that a tunnel adds.
OVERHEAD = {"native": 0, "vxlan": 50}
FAMILIES = pytest.mark.parametrize("family", [4, 6])
BODY = "0123456789abcdef" * 100_000

# linux/in.h, in6.h
_DISCOVER = {4: (socket.IPPROTO_IP, 10), 6: (socket.IPPROTO_IPV6, 23)}
_MTU = {4: (socket.IPPROTO_IP, 14), 6: (socket.IPPROTO_IPV6, 24)}
_PMTUDISC_DO = 2
_HEADERS = {4: 28, 6: 48}


@frozen
class Narrow:
    """Two nodes, and a way between them that is narrower than pods and the world outside believe."""

    lab: Lab
    fits: int

    @property
    def pods(self) -> tuple[Pod, Pod]:
        (client,), (server,) = (node.pods for node in self.lab.nodes)
        return client, server

    @property
    def outside(self) -> Host:
        return self.lab.externals[0]


@contextmanager
def narrow(routing: Routing) -> Iterator[Narrow]:
    with Lab.start(nodes=2, routing=routing, capacity=SMALL, socket_lb=False) as lab:
        client, server = (lab.pod(f"pod{node.number}", node) for node in lab.nodes)
        for pod in client, server:
            pod.exec(["ip", "link", "set", "eth0", "mtu", "1500"], check=True)
        server.serve_http(8080, BODY)
        server.serve_udp(5353)
        lab.external("outside")
        for family, vip in VIPS.items():
            for node in lab.nodes:
                for port, target, protocol in (80, 8080, "TCP"), (53, 5353, "UDP"):
                    exposed = [Exposure("node_port", of(family, node), 30000 + port)]
                    backends = [server.at(target, family)]
                    node.services.upsert(Service(vip, port, protocol, backends=backends, exposed=exposed))
        yield Narrow(lab, 1500 - OVERHEAD[routing])


@pytest.fixture(scope="module", params=["native", "native uplinks", "vxlan", "vxlan uplinks"])
def way(request: pytest.FixtureRequest) -> Iterator[Narrow]:
    """The tunnel is narrower than the uplinks by what it adds; without one, routes say how wide they are.

    Or the uplinks are narrow themselves, and with them the tunnel: nothing from outside is too big then.
    """
    routing, _, where = request.param.partition(" ")
    with narrow(routing) as made:
        for node, other in zip(made.lab.nodes, made.lab.nodes[::-1], strict=True):
            if where:
                node.exec(["ip", "link", "set", "eth0", "mtu", "1400"], check=True)
            if where and routing != "native":
                tunnel = str(1400 - OVERHEAD[routing])
                node.exec(["ip", "link", "set", "kdtunnel", "mtu", tunnel], check=True)
            elif routing == "native":
                for network, via in zip(pod_networks(other.number), other.addresses, strict=True):
                    route = ["ip", "route", "change", str(network), "via", str(via), "mtu", "lock", "1400"]
                    node.exec(route, check=True)
        yield evolve(made, fits=made.fits - 100) if where or routing == "native" else made


OUTSIDE = pytest.mark.parametrize("way", ["native", "vxlan"], indirect=True)


def of(family: int, host: Host) -> IPv4Address | IPv6Address:
    return host.address if family == 4 else host.address6


def learned(host: Host, family: int, address: object, port: int, expected: int) -> int:
    """What the kernel of a host believes to fit on its way, once it has sent more than fits."""
    with host.socket(socket.AF_INET if family == 4 else socket.AF_INET6, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(*_DISCOVER[family], _PMTUDISC_DO)  # nobody may cut it
        sock.settimeout(5)
        sock.connect((str(address), port))
        deadline = time.monotonic() + 10
        while (mtu := sock.getsockopt(*_MTU[family])) != expected and time.monotonic() < deadline:
            with suppress(OSError):  # too long: told by ICMP for the one before, or for this one
                sock.send(bytes(1490 - _HEADERS[family]))
            time.sleep(0.01)
        if mtu == expected:
            for _ in range(5):
                with suppress(OSError):  # an error that came late
                    sock.send(bytes(mtu - _HEADERS[family]))
                    assert len(sock.recv(2048)) == mtu - _HEADERS[family]
                    break
            else:
                pytest.fail("what is said to fit does not arrive")
            with pytest.raises(OSError, match=os.strerror(errno.EMSGSIZE)):
                sock.send(bytes(mtu - _HEADERS[family] + 1))
        return mtu


@FAMILIES
@pytest.mark.parametrize("dialled", ["pod", "service"])
def test_a_pod_learns_what_fits(way: Narrow, dialled: str, family: int) -> None:
    client, server = way.pods
    target = (of(family, server), 5353) if dialled == "pod" else (VIPS[family], 53)
    assert learned(client, family, *target, way.fits) == way.fits


@OUTSIDE
@FAMILIES
def test_a_client_outside_learns_what_fits_behind_a_node_port(way: Narrow, family: int) -> None:
    """Its packets go on under the node's own name, which is no reason to tell it nothing."""
    assert learned(way.outside, family, of(family, way.lab.node), 30053, way.fits) == way.fits
    assert way.lab.node.datapath.counters()["TOO_BIG"].packets > 0


@FAMILIES
@pytest.mark.parametrize("dialled", ["pod", "service"])
def test_long_transfers_of_pods_arrive(way: Narrow, family: int, dialled: str) -> None:
    client, server = way.pods
    transfer(client, *((of(family, server), 8080) if dialled == "pod" else (VIPS[family], 80)))


@OUTSIDE
@FAMILIES
def test_long_transfers_from_outside_arrive(way: Narrow, family: int) -> None:
    transfer(way.outside, of(family, way.lab.node), 30080)


def transfer(client: Host, address: object, port: int) -> None:
    """Both ways: an answer that is long, and a request that is."""
    host = f"[{address}]" if ":" in str(address) else str(address)
    assert client.get(f"http://{host}:{port}/", timeout=20).text == BODY
    with client.tcp(str(address), port, timeout=20) as sock:
        sock.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 200000\r\n\r\n" + bytes(200_000))
        deadline = time.monotonic() + 10
        while unacknowledged(sock):
            assert time.monotonic() < deadline, "what was sent is not acknowledged"
            time.sleep(0.01)


def unacknowledged(sock: socket.socket) -> int:
    """Bytes that the other end has not seen yet."""
    siocoutq = 0x5411
    (count,) = struct.unpack("i", fcntl.ioctl(sock, siocoutq, bytes(4)))
    return int(count)


@pytest.mark.parametrize("way", ["vxlan"], indirect=True)
def test_what_may_be_cut_is_cut(way: Narrow) -> None:
    """IPv4 without "do not fragment": to a node port, and so on under the node's name."""
    with way.outside.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(*_DISCOVER[4], 0)
        sock.settimeout(0.5)
        for _ in range(20):  # the backend learns first that answers are as long
            sock.sendto(bytes(1460), (str(way.lab.node.address), 30053))
            with suppress(TimeoutError):
                assert len(sock.recv(2048)) == 1460
                break
        else:
            pytest.fail("what may be cut does not arrive")


def test_what_the_tunnel_adds_may_be_too_much_for_the_network_below() -> None:
    """Nobody has told the tunnel of a network that narrow: its own packets are cut, not those of pods."""
    with narrow("vxlan") as way:
        for node in way.lab.nodes:
            node.exec(["ip", "link", "set", "eth0", "mtu", "1300"], check=True)
        client, server = way.pods
        for family in 4, 6:
            transfer(client, of(family, server), 8080)
            assert len(client.udp(of(family, server), 5353, bytes(1380)).data) == 1380
