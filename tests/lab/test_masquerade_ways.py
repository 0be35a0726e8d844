"""Long ways and long transfers of pods that leave under the node's address.

``KD_TRANSFER_BYTES`` says how much is transferred at least; the default is for every day.
"""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import os
import random
import socket
import struct
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from ipaddress import ip_address
from threading import Event
from typing import Any

import pytest

from k8sdatapath.lab import Lab
from k8sdatapath.lab.addressing import pod_networks
from k8sdatapath.lab.host import Host
from k8sdatapath.model import Frontend, Masquerade
from k8sdatapath.net.netns import NetNs
from k8sdatapath.net.packet import checksum, tcp
from k8sdatapath.node import Capacity

BYTES = int(os.environ.get("KD_TRANSFER_BYTES", str(64 << 20)))
CHUNK = 1 << 20

SMALL = Capacity(services=64, backends=256, slots=1024, flows=65536, pods=16)
INSIDE = [str(each) for each in pod_networks(1)]
FAMILIES = pytest.mark.parametrize("family", [4, 6], ids=["IPv4", "IPv6"])
FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}
LEVEL = {4: socket.IPPROTO_IP, 6: socket.IPPROTO_IPV6}
RECVERR = {4: 11, 6: 25}
TTL = {4: socket.IP_TTL, 6: socket.IPV6_UNICAST_HOPS}
MTU_DISCOVER, MTU = {4: 10, 6: 23}, {4: 14, 6: 24}
SOL_PACKET, PACKET_VNET_HDR = 263, 15
ECHO = {4: (socket.IPPROTO_ICMP, 8), 6: (socket.IPPROTO_ICMPV6, 128)}
FAR = {4: "203.0.113.2", 6: "2001:db8:77::2"}
FAR_NETS = {4: "203.0.113.0/24", 6: "2001:db8:77::/64"}
NARROW = 1300


class Way:
    """Two pods on a node, a router outside, and behind it, over a narrow link, somebody far away."""

    def __init__(self, lab: Lab, far: NetNs) -> None:
        self.node, self.far = lab.node, far
        self.pod, self.other = lab.pod("pod"), lab.pod("other")
        self.router, self.world = lab.external("router"), lab.external("world")
        self.world.serve_http(8080, "world")
        for host in (self.pod, self.other):
            host.exec(["sh", "-c", "echo 0 2147483647 > /proc/sys/net/ipv4/ping_group_range"], check=True)
        make = f"link add far0 mtu {NARROW} type veth peer name eth0 mtu {NARROW} netns {far.name}"
        self.ip(self.router, make, "link set far0 up", "address add 203.0.113.1/24 dev far0")
        self.ip(self.router, "address add 2001:db8:77::1/64 dev far0 nodad")
        forwarding = "echo 1 > ipv4/ip_forward; echo 1 > ipv6/conf/all/forwarding"
        self.router.exec(["sh", "-c", f"cd /proc/sys/net; {forwarding}"], check=True)
        self.ip(
            self.router,
            f"-n {far.name} link set eth0 up",
            f"-n {far.name} address add 203.0.113.2/24 dev eth0",
            f"-n {far.name} address add 2001:db8:77::2/64 dev eth0 nodad",
            f"-n {far.name} route add default via 203.0.113.1",
            f"-n {far.name} route add default via 2001:db8:77::1",
        )
        for net, via in zip(FAR_NETS.values(), self.router.addresses, strict=True):
            self.ip(self.node, f"route add {net} via {via}")

    def ip(self, host: Host, *commands: str) -> None:
        """As if typed on a host."""
        for command in commands:
            host.exec(["ip", *command.split()], check=True)

    @property
    def gateway_mac(self) -> bytes:
        """Of the node, as the pod knows it."""
        known = json.loads(self.pod.exec(["ip", "-j", "neigh"], check=True).stdout)
        return bytes.fromhex(next(each["lladdr"] for each in known if "lladdr" in each).replace(":", ""))

    def serve(self, family: int, kind: int) -> socket.socket:
        """A socket far away, at some port."""
        sock = self.far.call(socket.socket, FAMILY[family], kind)
        sock.settimeout(10)
        sock.bind((FAR[family], 0))
        if kind == socket.SOCK_STREAM:
            sock.listen()
        return sock


@pytest.fixture(scope="module")
def way() -> Iterator[Way]:
    with (
        NetNs.create(f"kddp-far-{os.getpid()}") as far,
        Lab.start(capacity=SMALL, socket_lb=False, masquerade=Masquerade(exclude=INSIDE)) as lab,
    ):
        yield Way(lab, far)


def own(host: Host, family: int) -> str:
    return str(host.addresses[family == 6])


@FAMILIES
def test_the_mtu_of_the_way_is_found(way: Way, family: int) -> None:
    """The router tells the node that a datagram was too big; the pod that sent it learns of it."""
    with (
        way.serve(family, socket.SOCK_DGRAM) as far,
        way.pod.socket(FAMILY[family], socket.SOCK_DGRAM) as sock,
    ):
        sock.setsockopt(LEVEL[family], MTU_DISCOVER[family], 2)
        sock.connect(far.getsockname()[:2])
        deadline = time.monotonic() + 10
        while known_mtu(sock, family) != NARROW and time.monotonic() < deadline:
            with suppress(OSError):  # of the packet before
                sock.send(bytes(1400))
            time.sleep(0.01)
        assert known_mtu(sock, family) == NARROW
        assert refusal(sock, bytes(1400)) == errno.EMSGSIZE
        fits = bytes(NARROW - (28 if family == 4 else 48))
        while refusal(sock, fits) is not None:  # a packet of before is told of late
            assert time.monotonic() < deadline
        assert far.recvfrom(2000)[0] == fits


def test_a_datagram_in_fragments_is_cut_as_the_way_asks(way: Way) -> None:
    """Of IPv6, where nobody on the way does it: the router's error quotes a fragment."""
    unheard_of = "2001:db8:77::3"  # nobody knows yet what fits there
    way.ip(way.router, f"-n {way.far.name} address add {unheard_of}/64 dev eth0 nodad")
    with (
        way.far.call(socket.socket, socket.AF_INET6, socket.SOCK_DGRAM) as far,
        way.pod.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock,
    ):
        far.setblocking(False)
        far.bind((unheard_of, 0))
        sock.connect(far.getsockname()[:2])
        data, deadline = random.Random(6).randbytes(4000), time.monotonic() + 10
        received = b""
        while not received:
            assert time.monotonic() < deadline
            with suppress(OSError):  # of the packet before, or nothing has come
                sock.send(data)
                time.sleep(0.05)
                received = far.recv(5000)
        assert received == data


def known_mtu(sock: socket.socket, family: int) -> int:
    return sock.getsockopt(LEVEL[family], MTU[family])


def refusal(sock: socket.socket, data: bytes) -> int | None:
    """Why a datagram cannot be sent; what is still to be told of one before is not meant."""
    sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    try:
        sock.send(data)
    except OSError as error:
        return error.errno
    return None


@pytest.fixture(params=["a link behind a router", "the uplink", "the node's route"])
def narrowest(way: Way, family: int, request: pytest.FixtureRequest) -> Iterator[int]:
    """What fits all the way: a link far away is narrow, or less than that fits at the node."""
    net, via = FAR_NETS[family], str(way.router.addresses[family == 6])
    narrow, wide = {
        "a link behind a router": ([], []),
        "the uplink": ([f"link set eth0 mtu {NARROW - 20}"], ["link set eth0 mtu 1500"]),
        "the node's route": (
            [f"route change {net} via {via} mtu lock {NARROW - 20}"],
            [f"route change {net} via {via}"],
        ),
    }[request.param]
    way.ip(way.node, *narrow)
    yield NARROW - 20 if narrow else NARROW
    way.ip(way.node, *wide)


@FAMILIES
def test_a_transfer_over_a_narrow_link_arrives(way: Way, family: int, narrowest: int) -> None:
    """In segments that fit: a veth would take longer ones, what is behind it need not."""
    data = random.Random(family).randbytes(2 << 20)
    with way.serve(family, socket.SOCK_STREAM) as far, ThreadPoolExecutor(1) as receiving:

        def receive() -> tuple[str, bytes]:
            connection, peer = far.accept()
            with connection:
                connection.settimeout(10)
                return str(peer[0]), b"".join(iter(lambda: connection.recv(CHUNK), b""))

        received = receiving.submit(receive)
        with way.pod.tcp(FAR[family], far.getsockname()[1]) as sock:
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
            assert received.result() == (own(way.node, family), data)
            headers = 40 if family == 4 else 60
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG) <= narrowest - headers


@FAMILIES
def test_what_a_device_is_to_cut_into_segments_is_held_against_the_way(
    way: Way, family: int, narrowest: int
) -> None:
    """A packet of several segments, which the device does not cut: each is longer than fits."""
    protocol, offset = ECHO[family][0], 34 if family == 4 else 54
    with (
        way.serve(family, socket.SOCK_STREAM) as far,
        way.pod.tcp(FAR[family], far.getsockname()[1]) as sock,
        way.pod.socket(FAMILY[family], socket.SOCK_RAW, protocol) as told,
        way.pod.socket(socket.AF_PACKET, socket.SOCK_RAW) as wire,
    ):
        _, port, *_ = sock.getsockname()
        to = sock.getpeername()[1]
        frame = tcp(own(way.pod, family), FAR[family], port, to, "A", payload=bytes(4 * 1400))
        if family == 4:  # which nobody may cut otherwise, and has another checksum then
            header = frame[14:20] + b"\x40\0" + frame[22:24] + bytes(2) + frame[26:34]
            header = header[:10] + checksum(header).to_bytes(2) + header[12:]
            frame = frame[:14] + header + frame[34:]
        before = struct.pack("=BB4H", 1, 1 if family == 4 else 4, offset + 20, 1400, offset, 16)
        wire.bind(("eth0", 0))
        wire.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
        told.settimeout(10)
        wire.send(before + way.gateway_mac + frame[6:])
        assert told_mtu(told, family) == narrowest


def told_mtu(sock: socket.socket, family: int) -> int:
    """What fits, by the next error that says so."""
    while True:
        data = sock.recv(2000)
        kind, _, _, _, mtu = struct.unpack_from("!BBHHH", data, 20 if family == 4 else 0)
        if kind == (3 if family == 4 else 2):
            return mtu


def of_datagrams(way: Way, family: int, limit: int) -> str:
    """Who answers a datagram to a port where nobody is, that may go so far."""
    with way.pod.socket(FAMILY[family], socket.SOCK_DGRAM) as sock:
        return offender(sock, family, limit, (FAR[family], 33434), b"probe")


def of_echoes(way: Way, family: int, limit: int) -> str:
    """Who answers an echo request that may go so far."""
    protocol, kind = ECHO[family]
    with way.pod.socket(FAMILY[family], socket.SOCK_DGRAM, protocol) as sock:
        return offender(sock, family, limit, (FAR[family], 0), struct.pack("!BBHHH", kind, 0, 0, 0, 7))


def offender(sock: socket.socket, family: int, limit: int, target: tuple[str, int], data: bytes) -> str:
    """Who answers, be it with an error."""
    sock.settimeout(10)
    sock.setsockopt(LEVEL[family], RECVERR[family], 1)
    sock.setsockopt(LEVEL[family], TTL[family], limit)
    sock.connect(target)
    sock.send(data)
    with suppress(OSError):
        sock.recv(2000)
        return target[0]
    _, ancillary, _, _ = sock.recvmsg(2000, 2000, socket.MSG_ERRQUEUE)
    ((_, _, told),) = [each for each in ancillary if each[:2] == (LEVEL[family], RECVERR[family])]
    return str(ip_address(told[20:24] if family == 4 else told[24:40]))


@FAMILIES
@pytest.mark.parametrize("probe", [of_datagrams, of_echoes], ids=["UDP", "ICMP"])
def test_the_way_is_traced(way: Way, family: int, probe: Callable[[Way, int, int], str]) -> None:
    first, *rest = (probe(way, family, limit) for limit in (1, 2, 3))
    addresses = way.node.exec(["ip", "-o", "address"], check=True).stdout
    assert f" {first}/" in addresses
    assert rest == [own(way.router, family), FAR[family]]


@FAMILIES
def test_a_long_transfer_while_mappings_come_and_go(way: Way, family: int) -> None:
    """There and back, of what no cache repeats; the other pod's mappings are made, flushed and collected."""
    masquerade = way.node.datapath.masquerade
    assert masquerade is not None
    stop, made, rounds = Event(), [], []

    def churn() -> None:
        address = own(way.world, family)
        url = f"http://{address}:8080/" if family == 4 else f"http://[{address}]:8080/"
        while not stop.is_set():
            with suppress(ConnectionError, TimeoutError):  # whose mapping was flushed
                made.append(way.other.get(url, timeout=1).text)

    def collect() -> None:
        while not stop.wait(0.05):
            way.node.datapath.flows.collect()
            rounds.append(masquerade.flush(way.other.addresses[family == 6]))

    def echo(listener: socket.socket) -> str:
        connection, peer = listener.accept()
        with connection:
            connection.settimeout(30)
            buffer = memoryview(bytearray(CHUNK))
            while count := connection.recv_into(buffer):
                connection.sendall(buffer[:count])
        return str(peer[0])

    with way.serve(family, socket.SOCK_STREAM) as far, ThreadPoolExecutor(5) as running:
        try:
            echoing = running.submit(echo, far)
            churning = running.submit(churn)
            collecting = running.submit(collect)
            with way.pod.tcp(FAR[family], far.getsockname()[1], timeout=30) as sock:
                sent = running.submit(send, sock, lambda: len(made) >= 10 and sum(map(bool, rounds)) >= 5)
                assert receive(sock) == sent.result()
        finally:
            stop.set()
        assert echoing.result() == own(way.node, family)
        collecting.result()
        churning.result()


def send(sock: socket.socket, enough: Callable[[], bool]) -> str:
    """Send so much, and on until it is enough, and end with it; returns the digest of what was sent."""
    chance, digest = random.Random(BYTES), hashlib.sha256()
    base = bytearray(chance.randbytes(CHUNK))
    for number in itertools.takewhile(lambda sent: sent < BYTES // CHUNK or not enough(), itertools.count()):
        struct.pack_into("=Q", base, 8 * (number % (CHUNK // 8)), chance.getrandbits(64))
        digest.update(base)
        sock.sendall(base)
    sock.shutdown(socket.SHUT_WR)
    return digest.hexdigest()


def receive(sock: socket.socket) -> str:
    """The digest of what comes until the end."""
    digest, buffer = hashlib.sha256(), memoryview(bytearray(CHUNK))
    while count := sock.recv_into(buffer):
        digest.update(buffer[:count])
    return digest.hexdigest()


@FAMILIES
def test_a_port_left_to_netfilter(way: Way, family: int) -> None:
    """With a rule of iptables the flow is netfilter's; without, nothing leaves. Other ports stay ours."""
    masquerade = way.node.datapath.masquerade
    assert masquerade is not None
    wanted: dict[str, Any] = {"devices": "eth0", "exclude": INSIDE}
    iptables = "iptables" if family == 4 else "ip6tables"
    rule = "POSTROUTING -p tcp --dport 2121 -o eth0 -j MASQUERADE".split()  # noqa: SIM905 - as it is typed
    with way.serve(family, socket.SOCK_STREAM) as other, way.far.call(socket.socket, FAMILY[family]) as far:
        far.bind((FAR[family], 2121))
        far.listen()
        far.settimeout(10)
        masquerade.plan(Masquerade(**wanted, netfilter=["2121/TCP"])).apply()
        try:
            with pytest.raises(TimeoutError):
                way.pod.tcp(FAR[family], 2121, timeout=0.5)
            assert way.node.datapath.counters()["DROP_LEFT_ALONE"].packets
            way.node.exec([iptables, "-t", "nat", "-A", *rule], check=True)
            with way.pod.tcp(FAR[family], 2121, timeout=10) as sock:
                connection, peer = far.accept()
                with connection:
                    assert peer[0] == own(way.node, family)
                    connection.sendall(b"220 ready")
                    assert sock.recv(99) == b"220 ready"
                    assert not [each for each in masquerade.mappings() if each.remote.port == 2121]
            with way.pod.tcp(FAR[family], other.getsockname()[1], timeout=10):
                connection, peer = other.accept()
                connection.close()
                assert peer[0] == own(way.node, family)
            ports = {each.remote.port for each in masquerade.mappings()}
            assert other.getsockname()[1] in ports
        finally:
            way.node.exec([iptables, "-t", "nat", "-F"], check=True)
            masquerade.plan(Masquerade(**wanted)).apply()


@FAMILIES
def test_what_needs_a_helper_is_told(way: Way, family: int) -> None:
    masquerade = way.node.datapath.masquerade
    assert masquerade is not None
    with way.far.call(socket.socket, FAMILY[family]) as far:
        far.bind((FAR[family], 21))
        far.listen()
        with way.pod.tcp(FAR[family], 21):
            ends = (f"{FAR[family]}:21", f"[{FAR[family]}]:21")
            (mapping,) = (each for each in masquerade.mappings() if str(each.remote) in ends)
            assert mapping.unsupported == "FTP in active mode"
    explained = way.node.datapath.explain(
        Frontend(ip_address(FAR[family]), 21), way.pod.addresses[family == 6]
    )
    told = [step.text for step in explained.steps if step.name == "unsupported"]
    assert ["FTP in active mode needs a helper" in each for each in told] == [True]
    plain = way.node.datapath.explain(Frontend(ip_address(FAR[family]), 80), way.pod.addresses[family == 6])
    assert "unsupported" not in [step.name for step in plain.steps]
