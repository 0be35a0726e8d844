"""Pods talk to the world under the node's address: real sockets, and no netfilter."""

from __future__ import annotations

import errno
import json
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack, suppress

import pytest
from typer.testing import CliRunner

from k8sdatapath.cli.app import app
from k8sdatapath.lab import Lab, Pod
from k8sdatapath.lab.addressing import pod_networks
from k8sdatapath.lab.host import Host
from k8sdatapath.model import Backend, Exposure, FrontendKind, Masquerade, Service
from k8sdatapath.node import Capacity
from k8sdatapath.pins import BPFFS, PinDir
from tests.support.connections import sent_again

SMALL = Capacity(services=64, backends=256, slots=1024, flows=16384, pods=16)
EXCLUDED = [str(each) for number in (1, 2) for each in pod_networks(number)]
FAMILIES = pytest.mark.parametrize("family", [4, 6], ids=["IPv4", "IPv6"])
BIG = bytes(range(256)) * 20
PING = {
    4: (socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP),
    6: (socket.AF_INET6, socket.SOCK_DGRAM, socket.IPPROTO_ICMPV6),
}
RAW = {family: (kind[0], socket.SOCK_RAW, kind[2]) for family, kind in PING.items()}


class Site:
    """Two nodes of which the first masquerades, a pod on each, a server in the world."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.node, self.far_node = lab.nodes
        self.pod, self.other = lab.pod("pod"), lab.pod("other")
        self.far = lab.pod("far", self.far_node)
        self.world = lab.external("world")
        for pod in (self.pod, self.other):
            pod.exec(["sh", "-c", "echo 0 2147483647 > /proc/sys/net/ipv4/ping_group_range"], check=True)
        for host in (self.pod, self.far, self.world):
            host.serve_http(8080, host.name)
            host.serve_udp(5353)

    def sees(self, client: Host, server: Host, family: int, port: int = 8080) -> str:
        """As whom a server sees a client."""
        address = server.addresses[family == 6]
        answer = client.get(f"http://{address}:{port}/" if family == 4 else f"http://[{address}]:{port}/")
        assert answer.text == server.name
        return answer.headers["x-peer"].rpartition(":")[0].strip("[]")

    def plan(self, **options: object) -> None:
        wanted = Masquerade(devices="eth0", **({"exclude": EXCLUDED} | options))  # type: ignore[arg-type]
        assert self.node.datapath.masquerade is not None
        self.node.datapath.masquerade.plan(wanted).apply()


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    masquerade = Masquerade(exclude=EXCLUDED)
    with Lab.start(nodes=2, capacity=SMALL, socket_lb=False, masquerade=masquerade) as lab:
        yield Site(lab)


@pytest.fixture(autouse=True)
def as_at_first(site: Site) -> Iterator[None]:
    yield
    site.plan()
    site.node.services.plan([]).apply()


def own(host: Host, family: int) -> str:
    return str(host.addresses[family == 6])


@FAMILIES
def test_the_world_sees_the_node(site: Site, family: int) -> None:
    for _ in range(5):
        assert site.sees(site.pod, site.world, family) == own(site.node, family)


@FAMILIES
def test_pods_elsewhere_see_the_pod(site: Site, family: int) -> None:
    assert site.sees(site.pod, site.far, family) == own(site.pod, family)


@FAMILIES
@pytest.mark.parametrize("protocol", ["TCP", "UDP"])
def test_who_dials_the_pod_itself_is_answered_by_the_pod_itself(
    site: Site, family: int, protocol: str
) -> None:
    if protocol == "TCP":
        assert site.sees(site.world, site.pod, family) == own(site.world, family)
    else:
        answer = site.world.udp(own(site.pod, family), 5353, "hello")
        assert answer.source == (own(site.pod, family), 5353)


@FAMILIES
def test_datagrams_short_and_long_with_and_without_checksums(site: Site, family: int) -> None:
    kind = socket.AF_INET if family == 4 else socket.AF_INET6
    with site.pod.socket(kind, socket.SOCK_DGRAM) as sock:
        sock.settimeout(5)
        sock.connect((own(site.world, family), 5353))
        for payload in (b"short", BIG, b"again"):
            sock.send(payload)
            assert sock.recv(65536) == payload
        if family == 4:
            sock.setsockopt(socket.SOL_SOCKET, 11, 1)  # SO_NO_CHECK
            for payload in (b"unsummed", BIG):
                sock.send(payload)
                assert sock.recv(65536) == payload


@FAMILIES
@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM], ids=["TCP", "UDP"])
def test_two_pods_with_one_port_and_the_node_with_it_too(site: Site, family: int, kind: int) -> None:
    target = (own(site.world, family), 8080 if kind == socket.SOCK_STREAM else 5353)
    with ExitStack() as held:
        socks = []
        for host in (site.pod, site.other, site.node):
            sock = held.enter_context(host.socket(socket.AF_INET if family == 4 else socket.AF_INET6, kind))
            sock.settimeout(5)
            sock.bind((own(host, family), 41999))
            sock.connect(target)
            assert kind == socket.SOCK_DGRAM or not sent_again(sock)
            socks.append(sock)
        for number, sock in enumerate(socks):
            sock.send(b"GET / HTTP/1.0\r\n\r\n" if kind == socket.SOCK_STREAM else b"%d" % number)
        for number, sock in enumerate(socks):
            answer = sock.recv(4096)
            assert answer.startswith(b"HTTP") if kind == socket.SOCK_STREAM else answer == b"%d" % number
        assert site.node.datapath.masquerade is not None
        ends = (own(site.world, family), target[1])
        told = [
            mapping
            for mapping in site.node.datapath.masquerade.mappings()
            if mapping.pod.port == 41999 and (str(mapping.remote.address), mapping.remote.port) == ends
        ]
        assert len({mapping.leaves_as for mapping in told}) == len(told) >= 2  # the node's own may need none
        assert {str(mapping.leaves_as.address) for mapping in told} == {own(site.node, family)}


@FAMILIES
@pytest.mark.parametrize("size", [56, 4000], ids=["short", "in fragments"])
def test_pings_of_two_pods_are_answered_and_the_world_sees_the_node(
    site: Site, family: int, size: int
) -> None:
    with site.world.socket(*RAW[family]) as listening:
        listening.settimeout(5)
        for host in (site.pod, site.other):
            with host.socket(*PING[family]) as sock:
                sock.settimeout(5)
                sock.bind((own(host, family), 4242))  # the number of the echo
                for sequence in range(3):
                    request = struct.pack("!BBHHH", (8, 128)[family == 6], 0, 0, 0, sequence) + bytes(size)
                    sock.sendto(request, (own(site.world, family), 0))
                    answer, source = sock.recvfrom(65536)
                    assert source[0] == own(site.world, family)
                    assert (answer[6:8], answer[8:]) == (struct.pack("!H", sequence), bytes(size))
        heard = [listening.recvfrom(65536)]
        listening.setblocking(False)
        with suppress(BlockingIOError):
            while True:
                heard.append(listening.recvfrom(65536))
    requests = [
        source[0] for data, source in heard if data[20 if family == 4 else 0] == (8, 128)[family == 6]
    ]
    assert requests == [own(site.node, family)] * 6


@FAMILIES
@pytest.mark.parametrize("size", [56, 4000], ids=["short", "in fragments"])
@pytest.mark.parametrize("first", ["pod", "node"])
def test_the_node_and_a_pod_ping_with_one_number(site: Site, family: int, size: int, first: str) -> None:
    """Each gets its own answers, whoever was first."""
    number = {"pod": 4343, "node": 4444}[first] + size
    site.node.exec(["sh", "-c", "echo 0 2147483647 > /proc/sys/net/ipv4/ping_group_range"], check=True)
    with ExitStack() as held:
        socks = []
        for host in (site.pod, site.node) if first == "pod" else (site.node, site.pod):
            sock = held.enter_context(host.socket(*PING[family]))
            sock.settimeout(5)
            sock.bind((own(host, family), number))
            socks.append(sock)
        for sequence in range(6):
            sock, payload = socks[sequence % 2], bytes([sequence]) * size
            request = struct.pack("!BBHHH", (8, 128)[family == 6], 0, 0, 0, sequence) + payload
            sock.sendto(request, (own(site.world, family), 0))
            answer = sock.recv(65536)
            assert (answer[6:8], answer[8:]) == (struct.pack("!H", sequence), payload)


@FAMILIES
def test_the_way_to_the_world_can_be_traced(site: Site, family: int) -> None:
    """A packet that dies on the way is told of by the node itself, and by who is behind it."""
    hops = []
    level, option = (socket.IPPROTO_IP, 11) if family == 4 else (socket.IPPROTO_IPV6, 25)  # RECVERR
    ttl = socket.IP_TTL if family == 4 else socket.IPV6_UNICAST_HOPS
    kind = socket.AF_INET if family == 4 else socket.AF_INET6
    for limit in (1, 2):
        with site.pod.socket(kind, socket.SOCK_DGRAM) as sock:
            sock.settimeout(5)
            sock.setsockopt(level, option, 1)
            sock.setsockopt(level, ttl, limit)
            sock.connect((own(site.world, family), 33434))
            sock.send(b"probe")
            with pytest.raises(OSError) as told:  # noqa: PT011 - which one is asserted below
                sock.recv(1)
            hops.append(told.value.errno)
    assert hops == [errno.EHOSTUNREACH, errno.ECONNREFUSED]


@FAMILIES
def test_a_port_where_nobody_is_refuses_at_once(site: Site, family: int) -> None:
    kind = socket.AF_INET if family == 4 else socket.AF_INET6
    with pytest.raises(ConnectionRefusedError):
        site.pod.tcp(own(site.world, family), 1, timeout=5)
    with site.pod.socket(kind, socket.SOCK_DGRAM) as sock:
        sock.settimeout(5)
        sock.connect((own(site.world, family), 1))
        sock.send(b"?")
        with pytest.raises(ConnectionRefusedError):  # told by an ICMP error, translated back
            sock.recv(1)


@FAMILIES
def test_who_answers_a_socket_that_is_gone_is_told_so(site: Site, family: int) -> None:
    """By an ICMP error of the pod, seen as the node's; there was but one packet of the flow before."""
    kind = socket.AF_INET if family == 4 else socket.AF_INET6
    with site.world.socket(kind, socket.SOCK_DGRAM) as far:
        far.settimeout(5)
        far.bind((own(site.world, family), 0))
        with site.pod.socket(kind, socket.SOCK_DGRAM) as sock:
            sock.sendto(b"?", far.getsockname()[:2])
        seen = far.recvfrom(1)[1]
        assert seen[0] == own(site.node, family)
        far.connect(seen)
        far.send(b"!")
        with pytest.raises(ConnectionRefusedError):
            far.recv(1)


@FAMILIES
def test_through_a_service_whose_backend_is_in_the_world(site: Site, family: int) -> None:
    vip = "10.96.0.10" if family == 4 else "fd00:10:96::10"
    backend = Backend(site.world.addresses[family == 6], 8080, cluster=True)
    site.node.services.upsert(Service(vip, 80, backends=[backend]))
    for _ in range(3):
        answer = site.pod.get(f"http://{vip}/" if family == 4 else f"http://[{vip}]/")
        assert (answer.text, answer.peer) == ("world", (vip, 80))
        assert answer.headers["x-peer"].rpartition(":")[0].strip("[]") == own(site.node, family)


@FAMILIES
def test_from_the_world_through_a_node_port_to_a_pod(site: Site, family: int) -> None:
    vip = "10.96.0.10" if family == 4 else "fd00:10:96::10"
    exposed = [Exposure(FrontendKind.NODE_PORT, own(site.node, family), 30080)]
    for pod in (site.pod, site.far):
        backend = pod.at(8080, family)
        site.node.services.plan([Service(vip, 80, backends=[backend], exposed=exposed)]).apply()
        where = own(site.node, family)
        answer = site.world.get(f"http://{where}:30080/" if family == 4 else f"http://[{where}]:30080/")
        assert answer.text == pod.name


@FAMILIES
def test_what_is_excluded_and_what_is_not_changes_for_new_flows(site: Site, family: int) -> None:
    target = (own(site.world, family), 8080)
    with site.pod.tcp(*target) as old:
        site.plan(exclude=[*EXCLUDED, *[f"{each}/{each.max_prefixlen}" for each in site.world.addresses]])
        assert site.sees(site.pod, site.world, family) == own(site.pod, family)
        old.sendall(b"GET / HTTP/1.0\r\n\r\n")
        answer = b""
        while chunk := old.recv(4096):
            answer += chunk
        assert own(site.node, family).encode() in answer
    site.plan()
    assert site.sees(site.pod, site.world, family) == own(site.node, family)


@FAMILIES
def test_a_connection_to_what_was_excluded_goes_on(site: Site, family: int) -> None:
    """Nobody has noted it, and the pod is the first to speak again."""
    site.plan(exclude=[*EXCLUDED, *map(str, site.world.addresses)])
    with site.pod.tcp(own(site.world, family), 8080) as old:
        site.plan()
        assert site.sees(site.pod, site.world, family) == own(site.node, family)
        old.sendall(b"GET / HTTP/1.0\r\n\r\n")
        answer = b"".join(iter(lambda: old.recv(4096), b""))
        assert own(site.pod, family).encode() in answer


@FAMILIES
def test_pods_with_an_address_to_leave_under_and_pods_that_keep_theirs(site: Site, family: int) -> None:
    extra = "192.0.2.240" if family == 4 else "2001:db8::240"
    mask = "24" if family == 4 else "64"
    site.node.exec(["ip", "addr", "add", f"{extra}/{mask}", "dev", "eth0", *(["nodad"] * (family == 6))])
    try:
        site.plan(egress={own(site.pod, family): extra}, routable=[own(site.other, family)])
        assert site.sees(site.pod, site.world, family) == extra
        assert site.sees(site.other, site.world, family) == own(site.other, family)
        site.plan(sources={"eth0": [extra]})
        assert site.sees(site.other, site.world, family) == extra
    finally:
        site.node.exec(["ip", "addr", "del", f"{extra}/{mask}", "dev", "eth0"])


@FAMILIES
def test_an_address_that_the_device_gets_later_is_left_under_only_when_the_first_is_deprecated(
    site: Site, family: int
) -> None:
    later, mask = ("192.0.2.240", "24") if family == 4 else ("2001:db8::240", "64")

    def address(*words: str) -> None:
        site.node.exec(["ip", "address", *words, "dev", "eth0"], check=True)

    address("add", f"{later}/{mask}", *(["nodad"] * (family == 6)))
    try:
        site.plan()
        assert site.sees(site.pod, site.world, family) == own(site.node, family)
        address("change", f"{own(site.node, family)}/{mask}", "preferred_lft", "0")
        site.plan()
        assert site.sees(site.pod, site.world, family) == later
    finally:
        address("change", f"{own(site.node, family)}/{mask}", "preferred_lft", "forever")
        address("del", f"{later}/{mask}")


def test_a_pod_never_leaves_as_itself_for_want_of_an_address(site: Site) -> None:
    site.plan(sources={"eth0": [own(site.node, 4)]})  # and none of IPv6
    with pytest.raises(TimeoutError):
        site.pod.tcp(own(site.world, 6), 8080, timeout=0.5)
    assert site.node.datapath.counters()["DROP_NO_SOURCE"].packets
    assert site.sees(site.pod, site.world, 4) == own(site.node, 4)


def test_a_plan_says_what_it_does(site: Site) -> None:
    masquerade = site.node.datapath.masquerade
    assert masquerade is not None
    wanted = Masquerade(devices="eth0", exclude=[*EXCLUDED, "203.0.113.0/24"])
    plan = masquerade.plan(wanted)
    assert str(plan) == "to 203.0.113.0/24: as itself"
    assert str(plan.apply()).startswith("1 added, 0 changed, 0 removed")
    assert masquerade.plan(wanted).empty
    assert isinstance(site.pod, Pod)


def test_mappings_on_the_command_line() -> None:
    pins = PinDir(BPFFS / f"kdnat-{os.getpid()}")

    def run(*words: str) -> list[dict[str, object]]:
        answer = CliRunner().invoke(app, ["nat", *words, "--pins", str(pins), "--output", "json"])
        assert answer.exit_code == 0, answer.output
        return json.loads(answer.stdout)  # type: ignore[no-any-return]

    try:
        with Lab.start(capacity=SMALL, masquerade=Masquerade(exclude=EXCLUDED), pins=pins) as lab:
            pod, world = lab.pod("pod"), lab.external("world")
            world.serve_http(8080, "world")
            with pod.tcp(world.address, 8080):
                remote = f"{world.address}:8080"
                (row,) = run("list", "--pod", str(pod.address))
                assert (row["remote"], row["state"]) == (remote, "established")
                assert str(row["leaves_as"]).startswith(f"{lab.node.address}:")
                (told,) = run("stats")
                assert (told["remote"], told["mappings"], told["no_port"]) == (remote, 1, 0)
                assert told["protocol"] == "TCP"
                assert run("flush", "--pod", "10.244.1.99") == [{"flushed": 0}]
                assert run("flush", "--all") == [{"flushed": 1}]
                assert run("list") == []
            assert CliRunner().invoke(app, ["nat", "flush", "--pins", str(pins)]).exit_code == 2
    finally:
        pins.remove()
