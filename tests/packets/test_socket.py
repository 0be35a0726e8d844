"""Services at the socket: what a process dials, whom it reaches, and who it is told it reached.

A process in a cgroup and a namespace of its own runs a few lines; what it says with ``show`` is compared.
There is no route to the services' addresses: what arrives was translated before there was a packet.
"""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import textwrap
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from ipaddress import ip_address, ip_interface
from typing import Any

import pytest
from attrs import evolve, frozen

from k8sdatapath import maps, programs
from k8sdatapath.datapath.service_table import ServiceTable
from k8sdatapath.model import Backend, Exposure, Frontend, Protocol, Selection, Service
from k8sdatapath.net.cgroup import Cgroup
from k8sdatapath.net.netlink import Netlink
from k8sdatapath.net.netns import NetNs
from k8sdatapath.objects import Object, ObjectSpec
from k8sdatapath.tables.counters import CounterRow, outcomes, read_counters
from tests.packets.chance import is_even
from tests.packets.rig import SIZES, let_clients_wait
from tests.packets.world import TCP, UDP, V4, V6, World

PRELUDE = """
import json, sys, threading
from socket import *

procs, places, family = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3])
with open(procs, "w") as file:
    file.write("0")
service, other, one, two = (tuple(places[name]) for name in ("service", "other", "one", "two"))

def show(*what):
    print(json.dumps(what), flush=True)

def pause():
    show("pause")
    sys.stdin.readline()

def client(kind):
    made = socket(family, kind)
    made.settimeout(5)
    return made

def serve(kind, place, name):
    bound = socket(family, kind)
    bound.bind(place)
    def answer():
        while True:
            if kind == SOCK_STREAM:
                with bound.accept()[0] as connection:
                    connection.sendall(name)
            else:
                question, peer = bound.recvfrom(100)
                bound.sendto(name + b" " + question, peer)
    if kind == SOCK_STREAM:
        bound.listen(1000)
    threading.Thread(target=answer, daemon=True).start()

for kind in (SOCK_STREAM, SOCK_DGRAM):
    serve(kind, one, b"one")
    serve(kind, two, b"two")
"""


@frozen
class Dialect:
    """A way to write addresses into sockets."""

    name: str
    world: World
    family: int
    prefix: str = ""

    def place(self, name: str) -> tuple[str, int]:
        address, port = self.world[name]
        return self.prefix + address, port


DIALECTS = [
    Dialect("IPv4", V4, 2),
    Dialect("IPv6", V6, 10),
    Dialect("IPv4 in an IPv6 socket", V4, 10, "::ffff:"),
]


class Host:
    """A namespace and a cgroup with the socket programs, and the service table behind them."""

    def __init__(
        self, dialect: Dialect, cgroup: Cgroup, netns: NetNs, loaded: Object, services: ServiceTable
    ) -> None:
        self.dialect = dialect
        self.cgroup = cgroup
        self.netns = netns
        self.services = services
        self.loaded = loaded
        self._counters = loaded.map("kd_counters", maps.PerCpuArray[CounterRow])
        self._known = outcomes(loaded.spec.btf)

    def place(self, name: str) -> list[Any]:
        """A place as a process is told of it: what getpeername() says of IPv6 has two more fields."""
        return [*self.dialect.place(name), *([0, 0] if self.dialect.family == 10 else [])]

    def serve(self, name: str, protocol: Protocol, backends: list[str]) -> None:
        self.services.upsert(self.dialect.world.service(name, protocol, backends))

    def flows(self, name: str, protocol: Protocol) -> dict[str, int]:
        """How many flows each backend has been given."""
        world = self.dialect.world
        counts = self.services.flows(Frontend(*world[name], protocol))
        names = {Backend(*world[name]): name for name in ("one", "two")}
        return {names[backend]: count for backend, count in counts.items()}

    def outcomes(self) -> dict[str, int]:
        counters = read_counters(self._counters, self._known)
        return {name: counter.packets for name, counter in counters.items()}

    @contextmanager
    def process(self, code: str) -> Iterator[Process]:
        places = json.dumps({name: self.dialect.place(name) for name in ("service", "other", "one", "two")})
        command = [
            "nsenter",
            f"--net={self.netns.path}",
            sys.executable,
            "-c",
            PRELUDE + textwrap.dedent(code),
        ]
        arguments = [str(self.cgroup.path / "cgroup.procs"), places, str(self.dialect.family)]
        with subprocess.Popen(
            [*command, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as started:
            try:
                yield Process(started)
            finally:
                started.kill()

    def shown_by(self, code: str) -> list[Any]:
        """What a process says that runs to its end."""
        with self.process(code) as process:
            return process.shown()


class Process:
    def __init__(self, popen: subprocess.Popen[str]) -> None:
        self._popen = popen

    def shown(self) -> list[Any]:
        """What it says until it pauses or ends."""
        assert self._popen.stdout is not None
        said = []
        for line in self._popen.stdout:
            what = json.loads(line)
            if what == ["pause"]:
                return said
            said += what
        assert self._popen.wait(10) == 0
        return said

    def go_on(self) -> None:
        assert self._popen.stdin is not None
        print(file=self._popen.stdin, flush=True)


@pytest.fixture(params=DIALECTS, ids=lambda dialect: dialect.name)
def host(request: pytest.FixtureRequest) -> Iterator[Host]:
    dialect: Dialect = request.param

    def wire() -> None:
        with Netlink() as net:
            net.set_up("lo")
            for name in ("one", "two"):
                net.add_address("lo", ip_interface(dialect.world.address(name)))

    with ExitStack() as own:
        netns = own.enter_context(NetNs.create(f"kddp-{os.getpid()}"))
        netns.call(wire)
        cgroup = own.enter_context(Cgroup.create(f"kddp-{os.getpid()}"))
        own.callback(cgroup.kill)
        spec = ObjectSpec.from_file("socket")
        loaded = own.enter_context(
            spec.with_maps(**{name: size for name, size in SIZES.items() if name in spec.maps}).load()
        )
        for name in loaded.program_fds:
            own.enter_context(loaded.program(name, programs.CgroupSockAddr).attach(cgroup.path))
        services = own.enter_context(ServiceTable.bind(loaded))
        yield Host(dialect, cgroup, netns, loaded, services)


def test_a_connection_reaches_a_backend_and_its_peer_is_the_service(host: Host) -> None:
    host.serve("service", TCP, ["one"])
    assert host.shown_by("""
        s = client(SOCK_STREAM)
        s.connect(service)
        show(s.getpeername(), s.recv(100).decode())
    """) == [host.place("service"), "one"]
    assert host.flows("service", TCP) == {"one": 1}


def test_a_connected_udp_socket_hears_from_the_service(host: Host) -> None:
    host.serve("service", UDP, ["one"])
    assert host.shown_by("""
        s = client(SOCK_DGRAM)
        s.connect(service)
        s.send(b"?")
        answer, peer = s.recvfrom(100)
        show(s.getpeername(), answer.decode(), peer)
    """) == [host.place("service"), "one ?", host.place("service")]


def test_an_unconnected_udp_socket_hears_from_the_service_and_stays_with_its_backend(host: Host) -> None:
    host.serve("service", UDP, ["one", "two"])
    shown = host.shown_by("""
        s = client(SOCK_DGRAM)
        for n in range(20):
            s.sendto(b"%d" % n, service)
            answer, peer = s.recvfrom(100)
            show(answer.decode(), peer)
    """)
    who = shown[0].split()[0]
    assert shown == [what for n in range(20) for what in (f"{who} {n}", host.place("service"))]
    assert sum(host.flows("service", UDP).values()) == 1


def test_late_answers_of_several_services_come_each_from_its_own(host: Host) -> None:
    host.serve("service", UDP, ["one"])
    host.serve("other", UDP, ["two"])
    shown = host.shown_by("""
        s = client(SOCK_DGRAM)
        for n in range(5):
            s.sendto(b"?", service)
            s.sendto(b"?", other)
        for n in range(10):
            answer, peer = s.recvfrom(100)
            show((answer.decode(), peer))
    """)
    came = Counter((answer, peer[0]) for answer, peer in shown)
    assert came == {("one ?", host.place("service")[0]): 5, ("two ?", host.place("other")[0]): 5}


def test_a_service_without_backends_refuses_at_once(host: Host) -> None:
    host.serve("service", TCP, [])
    host.serve("service", UDP, [])
    assert (
        host.shown_by("""
        show(client(SOCK_STREAM).connect_ex(service), client(SOCK_DGRAM).connect_ex(service))
        try:
            client(SOCK_DGRAM).sendto(b"?", service)
        except OSError as error:
            show(error.errno)
    """)
        == [errno.ECONNREFUSED] * 3
    )
    assert host.outcomes()["REJECT_NO_BACKEND"] == 3


def test_an_unconnected_udp_socket_leaves_a_backend_that_is_gone(host: Host) -> None:
    host.serve("service", UDP, ["one"])
    with host.process("""
        s = client(SOCK_DGRAM)
        for _ in range(2):
            s.sendto(b"?", service)
            answer, peer = s.recvfrom(100)
            show(answer.decode(), peer)
            pause()
    """) as process:
        assert process.shown() == ["one ?", host.place("service")]
        host.serve("service", UDP, ["two"])
        process.go_on()
        assert process.shown() == ["two ?", host.place("service")]


def test_an_unconnected_udp_socket_follows_an_address_to_another_service(host: Host) -> None:
    world = host.dialect.world

    def owned_by(name: str) -> None:
        host.services.plan(
            Service(*world[main], UDP, backends=[Backend(*world[backend])], exposed=exposed)
            for main, backend in (("other", "one"), ("mirror", "two"))
            for exposed in [[Exposure("external_ip", *world["service"])] if main == name else []]
        ).apply()

    owned_by("other")
    with host.process("""
        s = client(SOCK_DGRAM)
        for _ in range(2):
            s.sendto(b"?", service)
            answer, peer = s.recvfrom(100)
            show(answer.decode(), peer)
            pause()
    """) as process:
        assert process.shown() == ["one ?", host.place("service")]
        owned_by("mirror")
        process.go_on()
        assert process.shown() == ["two ?", host.place("service")]


def test_an_answer_that_was_still_under_way_comes_from_the_service(host: Host) -> None:
    host.serve("service", UDP, ["one"])
    with host.process("""
        s = client(SOCK_DGRAM)
        s.sendto(b"first", service)
        pause()
        s.sendto(b"second", service)
        for _ in range(2):
            answer, peer = s.recvfrom(100)
            show([answer.decode(), peer])
    """) as process:
        assert process.shown() == []
        host.serve("service", UDP, ["two"])
        process.go_on()
        shown = sorted(process.shown())  # two servers: either may be the faster
        assert shown == [["one first", host.place("service")], ["two second", host.place("service")]]


def test_a_connection_outlives_its_backends_membership(host: Host) -> None:
    host.serve("service", TCP, ["one"])
    with host.process("""
        s = client(SOCK_STREAM)
        s.connect(service)
        pause()
        show(s.recv(100).decode(), s.getpeername())
    """) as process:
        assert process.shown() == []
        host.serve("service", TCP, ["two"])
        process.go_on()
        assert process.shown() == ["one", host.place("service")]


def test_who_dials_a_backend_itself_is_told_so(host: Host) -> None:
    host.serve("service", TCP, ["one"])
    host.serve("service", UDP, ["one"])
    assert host.shown_by("""
        s = client(SOCK_STREAM)
        s.connect(one)
        show(s.getpeername())
        s = client(SOCK_DGRAM)
        s.sendto(b"?", one)
        show(s.recvfrom(100)[1])
    """) == [host.place("one"), host.place("one")]
    assert "AT_SOCKET" not in host.outcomes()


def test_a_socket_that_changes_from_the_service_to_its_backend_is_told_so(host: Host) -> None:
    host.serve("service", UDP, ["one"])
    assert host.shown_by("""
        s = client(SOCK_DGRAM)
        s.connect(service)
        show(s.getpeername())
        s.connect(one)
        s.send(b"?")
        show(s.getpeername(), s.recvfrom(100)[1])
    """) == [host.place("service"), host.place("one"), host.place("one")]


def test_another_port_or_protocol_of_the_service_is_refused(host: Host) -> None:
    host.serve("service", UDP, ["one"])
    assert (
        host.shown_by("""
        show(client(SOCK_STREAM).connect_ex(service), client(SOCK_DGRAM).connect_ex((service[0], 81)))
        try:
            client(SOCK_DGRAM).sendto(b"?", (service[0], 81))
        except OSError as error:
            show(error.errno)
    """)
        == [errno.ECONNREFUSED] * 3
    )
    host.services.set_node_addresses([ip_address(host.dialect.world.address("service"))])
    assert host.shown_by("show(client(SOCK_STREAM).connect_ex(service))") == [errno.ENETUNREACH]


def test_connections_spread_evenly(host: Host) -> None:
    host.serve("service", TCP, ["one", "two"])
    shown = host.shown_by("""
        for n in range(400):
            with client(SOCK_STREAM) as s:
                s.connect(service)
                show(s.recv(100).decode())
    """)
    came = Counter(shown)
    assert came == host.flows("service", TCP)
    assert is_even(came.values())
    assert host.outcomes()["AT_SOCKET"] == 400


def test_in_round_robin_sockets_take_turns(host: Host) -> None:
    world = host.dialect.world
    for protocol in (TCP, UDP):
        host.services.upsert(
            world.service("service", protocol, ["one", "two"], selection=Selection.ROUND_ROBIN)
        )
    shown = host.shown_by("""
        for n in range(50):
            with client(SOCK_STREAM) as s:
                s.connect(service)
                show(s.recv(100).decode())
        for n in range(20):
            with client(SOCK_DGRAM) as s:
                for again in range(2):
                    s.sendto(b"?", service)
                    show(s.recv(100).decode())
    """)
    assert shown == ["one", "two"] * 25 + ["one ?", "one ?", "two ?", "two ?"] * 10


def test_with_affinity_a_namespace_reaches_one_backend(host: Host) -> None:
    world = host.dialect.world
    stays = evolve(world.service("service", TCP, ["one", "two"]), affinity_timeout=100)
    host.services.upsert(stays)
    shown = host.shown_by("""
        for n in range(30):
            with client(SOCK_STREAM) as s:
                s.connect(service)
                show(s.recv(100).decode())
    """)
    assert len(shown) == 30
    assert len(set(shown)) == 1


def test_with_affinity_all_processes_of_a_namespace_share_a_backend(host: Host) -> None:
    """Until their stay ends, whoever of them renews it."""
    world = host.dialect.world
    host.services.upsert(evolve(world.service("service", TCP, ["one", "two"]), affinity_timeout=100))
    with host.process("""
        import os
        for again in range(36):
            for n in range(2):
                if not os.fork():
                    with client(SOCK_STREAM) as s:
                        s.connect(service)
                        show(s.recv(100).decode())
                    os._exit(0)
                os.wait()
            if again < 35:
                pause()
    """) as process:
        told = [process.shown()]
        for _ in range(35):
            let_clients_wait(host.loaded, 110)
            process.go_on()
            told.append(process.shown())
    assert all(first == second for first, second in told)
    assert {first for first, _ in told} == {"one", "two"}


def test_a_frontend_for_some_sources_is_left_to_the_packets(host: Host) -> None:
    world = host.dialect.world
    exposed = [Exposure("load_balancer", *world["other"])]
    ranges = ["10.0.0.0/8" if world is V4 else "fd00::/16"]
    host.services.upsert(
        evolve(world.service("service", TCP, ["one"]), exposed=exposed, source_ranges=ranges)
    )
    assert host.shown_by("""
        show(client(SOCK_STREAM).connect_ex(service), client(SOCK_STREAM).connect_ex(other))
    """) == [0, errno.ENETUNREACH]


def test_local_traffic_without_a_local_backend_fails_at_once(host: Host) -> None:
    world = host.dialect.world
    host.services.upsert(evolve(world.service("service", TCP, ["one"]), internal_local=True))
    assert host.shown_by("show(client(SOCK_STREAM).connect_ex(service))") == [errno.EHOSTUNREACH]
