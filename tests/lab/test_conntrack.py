"""Flows and sockets when things change, on real traffic."""

from __future__ import annotations

import errno
import json
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from typer.testing import CliRunner

from k8sdatapath.cli.app import app
from k8sdatapath.datapath.conntrack_table import ConntrackTable
from k8sdatapath.datapath.flow import FlowState, Timeouts
from k8sdatapath.lab import Lab
from k8sdatapath.lab.host import Host
from k8sdatapath.model import Backend, BackendState, Service
from k8sdatapath.node import Capacity
from k8sdatapath.pins import BPFFS, PinDir
from tests.api.graph import ROOT

VIP = {4: "10.96.0.10", 6: "fd00:10:96::10"}
SMALL = Capacity(services=1024, backends=4096, slots=65536, flows=65536, pods=64)


def test_the_page_is_true() -> None:
    page = (ROOT / "docs" / "how-to" / "conntrack.md").read_text()
    snippets = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(snippets) == 3
    names: dict[str, object] = {}
    for snippet in snippets:
        exec(snippet, names)


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab.start(capacity=SMALL) as lab:
        for name in ("client", "other", "one", "two"):
            pod = lab.pod(name)
            pod.serve_http(8080, name)
            pod.serve_udp(5353, name)
        yield lab


@pytest.fixture
def client(lab: Lab) -> Host:
    return lab.node.pods[0]


@pytest.fixture
def pins() -> Iterator[PinDir]:
    made = PinDir(BPFFS / f"kdct-{os.getpid()}")
    yield made
    made.remove()


def serve(lab: Lab, *names: str, leaving: str = "") -> None:
    """Both services in both families, by the pods of these names."""
    pods = {pod.name: pod for pod in lab.node.pods}
    for family in (4, 6):
        for port, target, protocol in ((80, 8080, "TCP"), (53, 5353, "UDP")):
            backends = [
                Backend(
                    pods[name].addresses[family == 6],
                    target,
                    state=BackendState.TERMINATING if name == leaving else BackendState.ACTIVE,
                )
                for name in names
            ]
            lab.node.services.upsert(Service(VIP[family], port, protocol, backends=backends))


DIALECTS = {
    "IPv4": (socket.AF_INET, VIP[4]),
    "IPv6": (socket.AF_INET6, VIP[6]),
    "IPv4 in an IPv6 socket": (socket.AF_INET6, f"::ffff:{VIP[4]}"),
}


@pytest.fixture(params=DIALECTS.values(), ids=DIALECTS)
def dialect(request: pytest.FixtureRequest) -> tuple[socket.AddressFamily, str]:
    made: tuple[socket.AddressFamily, str] = request.param
    return made


def udp(client: Host, family: socket.AddressFamily) -> socket.socket:
    made = client.socket(family, socket.SOCK_DGRAM)
    made.settimeout(5)
    return made


def asked(sock: socket.socket) -> str:
    sock.send(b"who")
    return sock.recv(100).decode()


def test_a_connected_udp_socket_is_told_and_reaches_another(
    lab: Lab, client: Host, dialect: tuple[socket.AddressFamily, str]
) -> None:
    family, vip = dialect
    serve(lab, "one")
    with udp(client, family) as sock:
        sock.connect((vip, 53))
        assert asked(sock) == "one"
        serve(lab, "one", "two")
        assert lab.node.datapath.reap_sockets() == ()
        assert asked(sock) == "one"
        serve(lab, "two")
        (gone,) = lab.node.datapath.reap_sockets()
        assert gone.frontend.port == 53
        assert gone.backend == (lab.node.pods[2].addresses[gone.frontend.address.version == 6], 5353)
        with pytest.raises(OSError) as error:  # noqa: PT011 - of the kinds below
            asked(sock)
        assert error.value.errno in (errno.ECONNABORTED, errno.EDESTADDRREQ)
        sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)  # told once more to who does not ask
        sock.connect((vip, 53))
        assert asked(sock) == "two"
        assert lab.node.datapath.reap_sockets() == ()


def test_an_unconnected_udp_socket_goes_on(
    lab: Lab, client: Host, dialect: tuple[socket.AddressFamily, str]
) -> None:
    family, vip = dialect
    with udp(client, family) as sock:
        for name in ("one", "two"):
            serve(lab, name)
            assert lab.node.datapath.reap_sockets(tcp=True) == ()
            sock.sendto(b"who", (vip, 53))
            data, source = sock.recvfrom(100)
            assert (data.decode(), source[:2]) == (name, (vip, 53))


def test_tcp_ends_only_if_asked(lab: Lab, client: Host, dialect: tuple[socket.AddressFamily, str]) -> None:
    family, vip = dialect
    serve(lab, "one")
    with client.socket(family) as sock:
        sock.settimeout(5)
        sock.connect((vip, 80))
        serve(lab, "two")
        assert lab.node.datapath.reap_sockets() == ()
        sock.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert sock.recv(4096).endswith(b"one")
        (gone,) = lab.node.datapath.reap_sockets(tcp=True)
        assert gone.backend == (lab.node.pods[2].addresses[gone.frontend.address.version == 6], 8080)
        with pytest.raises(ConnectionAbortedError):
            sock.recv(100)


def test_sockets_that_have_lost_nothing_stay(lab: Lab, client: Host) -> None:
    """Of a terminating backend, of no service, and connected past the service since."""
    serve(lab, "one")
    one = lab.node.pods[2]
    with udp(client, socket.AF_INET) as leaving, udp(client, socket.AF_INET) as direct:
        leaving.connect((VIP[4], 53))
        direct.connect((VIP[4], 53))
        direct.connect((str(one.address), 5353))
        serve(lab, "one", "two", leaving="one")
        assert lab.node.datapath.reap_sockets(tcp=True) == ()
        assert asked(leaving) == "one"
        serve(lab, "two")
        assert len(lab.node.datapath.reap_sockets(tcp=True)) == 1
        assert asked(direct) == "one"


def test_gone_with_its_whole_service_is_gone_too(lab: Lab, client: Host) -> None:
    serve(lab, "one")
    with ExitStack() as opened:
        socks = [
            opened.enter_context(udp(pod, socket.AF_INET)) for pod in lab.node.pods[:2] for _ in range(50)
        ]
        for sock in socks:
            sock.connect((VIP[4], 53))
        lab.node.services.plan([]).apply()
        assert len(lab.node.datapath.reap_sockets()) == 100


class Talk:
    """Traffic of one kind until the ``with`` is left, remembering what went wrong."""

    def __init__(self, *steps: object) -> None:
        self.failures: list[str] = []
        self.rounds = 0
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(step,)) for step in steps]

    def _run(self, step: object) -> None:
        assert callable(step)
        while not self._stop.is_set():
            try:
                step()
                self.rounds += 1
            except OSError as error:
                self.failures.append(f"{step}: {error!r}")
            time.sleep(0.002)

    def __enter__(self) -> Talk:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


def test_collecting_under_traffic_harms_nothing() -> None:
    with Lab.start(capacity=SMALL, socket_lb=False) as lab, ExitStack() as opened:
        client, web = lab.pod("client"), lab.pod("web")
        web.serve_http(8080, "web")
        web.serve_udp(5353, "web")
        lab.node.services.upsert(
            Service(VIP[4], 80, backends=[web.at(8080)]), Service(VIP[4], 53, "UDP", backends=[web.at(5353)])
        )
        kept = opened.enter_context(client.tcp(VIP[4], 80))
        flow = opened.enter_context(udp(client, socket.AF_INET))
        flow.connect((VIP[4], 53))

        def short() -> None:
            assert client.get(f"http://{VIP[4]}").text == "web"

        def long() -> None:
            kept.sendall(b"GET / HTTP/1.1\r\n\r\n")
            assert kept.recv(4096).endswith(b"web")

        def datagrams() -> None:
            assert asked(flow) == "web"

        impatient = Timeouts(opening=1, established=1, closed=1, one_way=1, answered=1)
        table = opened.enter_context(
            ConntrackTable.bind(lab.node.datapath._objects["pod"], timeouts=impatient)
        )
        collected = 0
        with Talk(short, long, datagrams) as talk:
            until = time.monotonic() + 6
            while time.monotonic() < until:
                collected += table.collect()
                time.sleep(0.01)
            states = table.stats().states
        assert talk.failures == []
        assert talk.rounds > 100
        assert collected > 20
        assert states[FlowState.ESTABLISHED] >= 1
        assert states[FlowState.ANSWERED] == 1
        time.sleep(3)
        table.collect()
        assert table.stats().entries == 0


MANIFEST = """
apiVersion: v1
kind: Service
metadata: {{name: dns, namespace: default}}
spec: {{clusterIP: 10.96.0.10, ports: [{{port: 53, protocol: UDP}}]}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: dns-1, namespace: default, labels: {{kubernetes.io/service-name: dns}}}}
addressType: IPv4
ports: [{{port: 5353, protocol: UDP}}]
endpoints: [{{addresses: [{backend}]}}]
"""


def test_apply_ends_sockets_of_backends_that_the_manifests_no_longer_name(
    tmp_path: Path, pins: PinDir
) -> None:
    manifest = tmp_path / "dns.yaml"
    with Lab.start(datapath=False) as lab:
        client, one, two = (lab.pod(name) for name in ("client", "one", "two"))

        def apply(backend: Host) -> None:
            backend.serve_udp(5353, backend.name)
            manifest.write_text(MANIFEST.format(backend=backend.address))
            options = [
                "--filename",
                str(manifest),
                "--pins",
                str(pins),
                "--cgroup",
                str(client.cgroup.path),
            ]
            result = CliRunner().invoke(app, ["apply", *options])
            assert result.exit_code == 0, result.output

        apply(one)
        with udp(client, socket.AF_INET) as connected, udp(client, socket.AF_INET) as loose:
            connected.connect((VIP[4], 53))
            assert asked(connected) == "one"
            apply(two)
            with pytest.raises(ConnectionAbortedError):
                connected.recv(100)
            loose.sendto(b"who", (VIP[4], 53))
            assert loose.recvfrom(100) == (b"two", (VIP[4], 53))


def test_the_command_line_lists_counts_and_flushes(pins: PinDir) -> None:
    with Lab.start(capacity=SMALL, socket_lb=False, pins=pins) as lab:
        client, web = lab.pod("client"), lab.pod("web")
        web.serve_udp(5353)
        web.serve_http(8080, "web")
        lab.node.services.upsert(
            Service(VIP[6], 53, "UDP", backends=[web.at(5353, 6)]),
            Service(VIP[6], 80, backends=[web.at(8080, 6)]),
        )
        client.udp(VIP[6], 53, b"x")
        with client.tcp(VIP[6], 80):
            flows = run(pins, "list", "--protocol", "udp")
            assert [(f["backend"], f["state"]) for f in flows] == [(f"[{web.address6}]:5353", "answered")]
            assert [f["protocol"] for f in run(pins, "list", "--frontend", f"[{VIP[6]}]:80")] == ["TCP"]
            (stats,) = run(pins, "stats")
            assert (stats["entries"], stats["established"], stats["answered"]) == (4, 1, 1)
            assert stats["capacity"] == SMALL.flows
            assert (stats["lost_halves"], stats["lost_flows"]) == (0, 0)
        assert run(pins, "flush", "--client", str(web.address6)) == [{"flushed": 0}]
        assert run(pins, "flush", "--backend", str(web.address6), "--state", "answered") == [{"flushed": 1}]
        assert run(pins, "flush", "--all") == [{"flushed": 1}]
        assert run(pins, "list") == []


def until(condition: Callable[[], object], seconds: float = 10.0) -> None:
    """What a node does by itself, it does soon."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def listed_until(pins: PinDir, *expected: str) -> None:
    """``ct list`` shows flows to these backends and to no others, soon."""
    deadline = time.monotonic() + 10
    while True:
        found = sorted(str(flow["backend"]) for flow in run(pins, "list", "--protocol", "UDP"))
        if found == sorted(expected):
            return
        assert time.monotonic() < deadline, found
        time.sleep(0.02)


def test_flows_of_silent_clients_are_gone_when_their_backend_is(pins: PinDir) -> None:
    """For a backend that is exchanged, for the last one, and for the whole service; no client sends again."""
    with Lab.start(capacity=SMALL, socket_lb=False, pins=pins) as lab:
        client, one, two = (lab.pod(name) for name in ("client", "one", "two"))
        table = lab.node.services

        def served(*backends: Host) -> None:
            for port in (53, 123):
                there = [pod.at(5353) for pod in backends]
                table.upsert(Service(VIP[4], port, "UDP", backends=there))

        def begun() -> None:
            for port in (53, 123):
                client.udp(VIP[4], port, b"x")

        one.serve_udp(5353)
        two.serve_udp(5353)
        one.serve_http(8080, "one")
        table.upsert(Service(VIP[4], 80, backends=[one.at(8080)]))
        served(one)
        begun()
        with client.tcp(VIP[4], 80):
            listed_until(pins, f"{one.address}:5353", f"{one.address}:5353")
            served(two)
            listed_until(pins)
            begun()
            table.upsert(Service(VIP[4], 53, "UDP"))
            listed_until(pins, f"{two.address}:5353")
            table.remove(Service(VIP[4], 123, "UDP").frontend)
            listed_until(pins)
            assert len(run(pins, "list", "--protocol", "TCP")) == 1
        upkeep = lab.node.datapath.upkeep
        assert upkeep is not None
        until(lambda: upkeep.reaped >= 4)  # counted after they are gone
        assert upkeep.reaped == 4


CHANGES = {"another": ["two"], "nobody": [], "deleted": None}


@pytest.mark.parametrize("family", [4, 6])
def test_answers_of_a_backend_that_has_left_still_come_from_the_service(family: int) -> None:
    """A client that asked before the change takes an answer from nobody else, even if it asks again."""
    kind = socket.AF_INET if family == 4 else socket.AF_INET6
    with Lab.start(capacity=SMALL, socket_lb=False) as lab, ExitStack() as stack:
        client, slow, two = (lab.pod(name) for name in ("client", "slow", "two"))
        two.serve_udp(53, "two")
        server = stack.enter_context(slow.socket(kind, socket.SOCK_DGRAM))
        server.bind((str(slow.at(53, family).address), 53))
        server.settimeout(5)
        frontend = Service(VIP[family], 53, "UDP").frontend
        for change in CHANGES.values():
            lab.node.services.upsert(Service(VIP[family], 53, "UDP", backends=[slow.at(53, family)]))
            asker = stack.enter_context(client.socket(kind, socket.SOCK_DGRAM))
            asker.connect((VIP[family], 53))
            asker.settimeout(5)
            asker.send(b"?")
            _, peer = server.recvfrom(100)
            if change is None:
                lab.node.services.remove(frontend)
            else:
                there = [two.at(53, family) for _ in change]
                lab.node.services.upsert(Service(VIP[family], 53, "UDP", backends=there))
            until(lambda: not any(lab.node.datapath.flows.flows()))  # what the change asks for
            if change:
                asker.send(b"?")
                assert asker.recv(100) == b"two"
            server.sendto(b"slow", peer)
            assert asker.recv(100) == b"slow"


def test_a_change_just_before_a_node_is_closed_leaves_nothing_behind(pins: PinDir) -> None:
    """As ``apply`` does: open, change, close."""
    with Lab.start(capacity=SMALL, socket_lb=False, pins=pins) as lab:
        client, one = lab.pod("client"), lab.pod("one")
        one.serve_udp(5353)
        lab.node.services.upsert(Service(VIP[4], 53, "UDP", backends=[one.at(5353)]))
        client.udp(VIP[4], 53, b"x")
        node = lab.node.datapath
        node.services.plan([]).apply()
        node.close()
        assert run(pins, "list") == []


def run(pins: PinDir, *arguments: str) -> list[dict[str, object]]:
    result = CliRunner().invoke(app, ["ct", *arguments, "--pins", str(pins), "-o", "json"])
    assert result.exit_code == 0, result.output
    told: list[dict[str, object]] = json.loads(result.stdout)
    return told


def test_flush_wants_to_be_told_what() -> None:
    for arguments in ((), ("--all", "--protocol", "TCP")):
        result = CliRunner().invoke(app, ["ct", "flush", *arguments])
        assert result.exit_code == 2
        assert "say which flows, or --all" in result.stderr


def test_a_node_collects_its_flows_by_itself_and_tells_how_full_it_is() -> None:
    timeouts = Timeouts(closed=1, one_way=1, answered=1, opening=1)
    others = set(threading.enumerate())
    with Lab.start(socket_lb=False, capacity=SMALL, timeouts=timeouts) as lab:
        client, web = lab.pod("client"), lab.pod("web")
        web.serve_http(8080, "web")
        lab.node.services.upsert(Service(VIP[4], 80, backends=[web.at(8080)], affinity_timeout=60))
        held, *passing = [client.tcp(VIP[4], 80) for _ in range(21)]
        node = lab.node.datapath
        pressure = node.pressure()
        assert str(pressure["kd_conntrack"]) == "42/65536"
        assert pressure["kd_frontends"].used == len(node.services) == pressure["kd_backends"].used
        assert (pressure["kd_affinity"].used, pressure["kd_endpoints"].used) == (1, 4)
        assert pressure["kd_sets"].capacity == SMALL.services
        upkeep = node.upkeep
        assert upkeep is not None
        for sock in passing:
            sock.close()
        until(lambda: upkeep.collected >= 20, seconds=30)
        assert [flow.state for flow in node.flows.flows()] == [FlowState.ESTABLISHED]
        assert node.pressure()["kd_conntrack"].used == 2
        held.close()
    assert "upkeep of a node" not in {thread.name for thread in threading.enumerate() if thread not in others}


def test_services_and_flows_are_tables_in_a_notebook(lab: Lab, client: Host) -> None:
    lab.node.services.plan([]).apply()
    serve(lab, "one")
    (row,) = (line for line in lab.node.services._repr_html_().split("<tr>") if f"{VIP[4]}:53/UDP" in line)
    assert f"<td>{lab.node.pods[2].address}:5353</td>" in row
    flows = lab.node.datapath.flows
    assert flows._repr_html_().count("<tr>") == 1 + len([*flows.flows()])
