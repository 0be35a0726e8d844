"""Ports of a service's address that no service has, and what is told there: real packets."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Iterator
from ipaddress import ip_interface
from typing import Any

import pytest

from k8sdatapath.lab import Lab
from k8sdatapath.lab.host import Host
from k8sdatapath.model import Exposure, Service
from k8sdatapath.net.netlink import Netlink
from k8sdatapath.net.packet import checksum
from k8sdatapath.node import Capacity

SMALL = Capacity(services=256, backends=1024, slots=8192, flows=16384, pods=64)
CLUSTER_IP = {4: "10.96.0.10", 6: "fd00:10:96::10"}
UNUSED = {4: "10.96.7.7", 6: "fd00:10:96::77"}
BALANCED = "203.0.113.1"

FAMILIES = pytest.mark.parametrize("family", [4, 6])


@pytest.fixture(scope="module", params=["networks", "rows"])
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """A service, known by its network or by a row of its own; clients that meet it by packets."""
    options: dict[str, Any] = {} if request.param == "networks" else {"service_networks": ()}
    with Lab.start(capacity=SMALL, socket_lb=False, **options) as lab:
        web = lab.pod("web")
        web.serve_http(8080, "web")
        lab.pod("client")
        lab.external("outside")
        for family, address in CLUSTER_IP.items():
            lab.node.services.upsert(Service(address, 80, backends=[web.at(8080, family)]))
        yield lab


def clients(lab: Lab) -> tuple[Host, Host]:
    """A pod, and a host of the world outside: externals reach all else through the first node."""
    return lab.node.pods[1], lab.externals[0]


def refused(host: Host, address: str, port: int = 81) -> None:
    began = time.monotonic()
    with pytest.raises(ConnectionRefusedError):
        host.tcp(address, port, timeout=10)
    with pytest.raises(ConnectionRefusedError):
        host.udp(address, port, "anybody?", connected=True, timeout=10)
    assert time.monotonic() - began < 5


@FAMILIES
def test_a_port_that_no_service_has_is_refused_at_once(lab: Lab, family: int) -> None:
    for host in clients(lab):
        refused(host, CLUSTER_IP[family])


@FAMILIES
def test_a_cluster_ip_answers_echo_requests(lab: Lab, family: int) -> None:
    for host in clients(lab):
        assert ping(host, CLUSTER_IP[family], family) == b"are you there?"


def ping(host: Host, address: str, family: int) -> bytes:
    """What an echo request is answered with."""
    afs, protocol, types = {
        4: (socket.AF_INET, socket.IPPROTO_ICMP, (8, 0)),
        6: (socket.AF_INET6, socket.IPPROTO_ICMPV6, (128, 129)),
    }[family]
    body = struct.pack("!HH", 77, 1) + b"are you there?"
    check = checksum(bytes([types[0], 0, 0, 0]) + body)  # of ICMPv6 the kernel makes it
    with host.socket(afs, socket.SOCK_RAW, protocol) as raw:
        raw.settimeout(10)
        raw.sendto(bytes([types[0], 0]) + struct.pack("!H", check) + body, (address, 0))
        while True:
            answer, sender = raw.recvfrom(2048)
            packet = answer[20:] if family == 4 else answer
            if sender[0] == address and packet[0] == types[1]:
                return packet[8:]


def test_the_service_still_answers(lab: Lab) -> None:
    for host in clients(lab):
        assert host.get("http://10.96.0.10/").text == "web"


@FAMILIES
def test_a_cluster_ip_that_no_service_has_is_refused_at_once(family: int) -> None:
    with Lab.start(capacity=SMALL, socket_lb=False) as lab:
        for host in (lab.pod("client"), lab.external("outside")):
            refused(host, UNUSED[family])


@FAMILIES
def test_sockets_are_refused_too(family: int) -> None:
    with Lab.start(capacity=SMALL) as lab:
        client = lab.pod("client")
        lab.node.services.upsert(Service(CLUSTER_IP[family], 80, backends=[client.at(1, family)]))
        for host in (client, lab.node):
            refused(host, CLUSTER_IP[family])
            refused(host, UNUSED[family])
            with pytest.raises(ConnectionRefusedError):
                host.udp(CLUSTER_IP[family], 81, "anybody?")
        assert lab.node.datapath.counters()["REJECT_NO_SERVICE"].packets == 10


def test_a_service_at_an_address_of_the_node_leaves_it_its_other_ports() -> None:
    with Lab.start(capacity=SMALL) as lab:
        node, web, outside = lab.node, lab.pod("web"), lab.external("outside")
        web.serve_http(8080, "web")
        node.serve_http(2222, "the node itself")
        balanced = [Exposure("load_balancer", str(node.address), 80), Exposure("load_balancer", BALANCED, 80)]
        node.services.upsert(Service("10.96.0.10", 80, backends=[web.at(8080)], exposed=balanced))
        assert outside.get(f"http://{node.address}/").text == "web"
        assert outside.get(f"http://{node.address}:2222/").text == "the node itself"

        assert outside.get(f"http://{BALANCED}/").text == "web"
        with pytest.raises(TimeoutError):
            outside.tcp(BALANCED, 2222, timeout=0.5)
        node.netns.call(give, BALANCED)
        node.datapath.update_addresses()
        assert outside.get(f"http://{BALANCED}:2222/").text == "the node itself"
        node.exec(["ip", "address", "del", f"{BALANCED}/32", "dev", "lo"], check=True)
        node.datapath.update_addresses()
        with pytest.raises(TimeoutError):
            outside.tcp(BALANCED, 2222, timeout=0.5)
        assert outside.get(f"http://{BALANCED}/").text == "web"


def give(address: str) -> None:
    with Netlink() as net:
        net.add_address("lo", ip_interface(address))
