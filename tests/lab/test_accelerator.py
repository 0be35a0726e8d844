"""Sockets of one node that hand each other what they send: nobody sees a difference, except on the wire."""

from __future__ import annotations

import array
import fcntl
import json
import random
import secrets
import select
import socket
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from attrs import evolve
from typer.testing import CliRunner

from k8sdatapath import Accelerated, Lab, Service, maps
from k8sdatapath.cli.app import app
from k8sdatapath.datapath.flow import Timeouts
from k8sdatapath.datapath.socket_accelerator import AccelerationStats, SocketAccelerator, SocketPair
from k8sdatapath.errors import LabError, ModelError, StalePlanError
from k8sdatapath.kube.policy import parse_policies
from k8sdatapath.lab.lab import LabNode, Pod
from k8sdatapath.layout import u64
from k8sdatapath.model.workload import Workload
from k8sdatapath.node import Capacity, Node, NodeConfig
from k8sdatapath.pins import PinDir
from k8sdatapath.tables.policy import RuleKey, RuleRow
from tests.api.graph import ROOT
from tests.lab.test_docs import blocks, run, without_numbers
from tests.support.connections import Connection, connected, dial, listen, read
from tests.support.watching import wait

pytestmark = pytest.mark.lab

SMALL = Capacity(services=64, backends=256, slots=1024, flows=4096, pods=16)
VIPS = {4: "10.96.0.10", 6: "fd00:10:96::10"}
FAMILIES = pytest.mark.parametrize("family", [4, 6], ids=["IPv4", "IPv6"])
DENY = """
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web, namespace: default}
spec: {podSelector: {matchLabels: {app: web}}}
"""
ALLOW = """
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web, namespace: default}
spec:
  podSelector: {matchLabels: {app: web}}
  ingress: [{from: [{podSelector: {matchLabels: {app: client}}}]}]
"""


@pytest.fixture(scope="module", params=[True, False], ids=["at-the-socket", "by-packet"])
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """A node whose services are balanced in one way or the other, and a second node."""
    options = {"pod_sockets": request.param, "timeouts": Timeouts(established=1)}
    with Lab.start(nodes=2, capacity=SMALL, policy=True, accelerate=True, **options) as lab:
        for name, node in (
            ("client", lab.node),
            ("web", lab.node),
            ("other", lab.node),
            ("far", lab.nodes[1]),
        ):
            lab.pod(name, node, labels={"app": name})
        yield lab


@pytest.fixture
def node(lab: Lab) -> Iterator[LabNode]:
    """All connections to pods and services are chosen. What a test changes is undone."""
    choose(lab.node, Accelerated("10.0.0.0/8"), Accelerated("fd00::/8"), Accelerated("127.0.0.0/8"))
    yield lab.node
    wait(lambda: not list(lab.node.accelerator.pairs()))
    lab.node.services.plan([]).apply()
    lab.node.policy.remove(*lab.node.policy.policies)


def choose(node: LabNode, *wanted: Accelerated) -> None:
    node.accelerator.plan(wanted).apply()


def pod(node: LabNode, name: str) -> Pod:
    return next(each for each in node.pods if each.name == name)


def pair(node: LabNode) -> SocketPair:
    """The only one."""
    (found,) = node.accelerator.pairs()
    return found


def since(node: LabNode, before: AccelerationStats) -> dict[str, int]:
    """What has been counted meanwhile."""
    now = node.accelerator.stats()
    names = ("pairs", "refused", "handed", "alone", "policy", "behind", "full", "shut")
    return {name: n for name in names if (n := getattr(now, name) - getattr(before, name))}


@contextmanager
def sniffed(node: LabNode, *pods: Pod, into: Path) -> Iterator[None]:
    """All that the devices of pods carry meanwhile goes into a file."""
    command = ["tcpdump", "--immediate-mode", "-Uni", "any", "-w", str(into), "tcp"]
    with node.popen(command, stderr=subprocess.PIPE, text=True) as sniffer:
        assert sniffer.stderr is not None
        while "listening" not in sniffer.stderr.readline():
            pass
        try:
            yield
        finally:
            sniffer.terminate()
            sniffer.communicate()


@FAMILIES
@pytest.mark.parametrize("service", [False, True], ids=["direct", "service"])
def test_what_is_sent_is_not_on_the_wire(node: LabNode, tmp_path: Path, family: int, service: bool) -> None:
    client, web, secret = pod(node, "client"), pod(node, "web"), b"a-secret-nobody-hears"
    before = node.accelerator.stats()
    with listen(web) as listener:
        port = listener.getsockname()[1]
        address, dialled = web.address if family == 4 else web.address6, port
        if service:
            node.services.upsert(Service(VIPS[family], 80, backends=[web.at(port, family)]))
            address, dialled = VIPS[family], 80
        with sniffed(node, client, web, into=tmp_path / "wire"):
            made = dial(client, listener, address, dialled)
            with made:
                for _ in range(10):
                    made.say(secret)
                seen = pair(node)
                assert str(seen.dialled.address) == str(address)
                assert (seen.client.messages, seen.server.messages) == (10, 10)
                assert (seen.client.bytes, seen.client.others) == (10 * len(secret), 0)
                assert seen.client.peer.port == made.client.getsockname()[1]
                assert (seen.server.peer.port, seen.dialled.port) == (port, dialled)
                assert seen.client.netns == client.netns.cookie
                assert seen.server.netns == web.netns.cookie
            assert since(node, before) == {"pairs": 1, "handed": 20}
            choose(node)
            with dial(client, listener, address, dialled) as other:
                other.say(b"what-all-may-hear")
            wait(lambda: b"what-all-may-hear" in (tmp_path / "wire").read_bytes())
    assert secret not in (tmp_path / "wire").read_bytes()


def test_others_go_through_the_stack(node: LabNode, lab: Lab) -> None:
    """Who was not chosen, and who is elsewhere."""
    client, web = pod(node, "client"), pod(node, "web")
    before = node.accelerator.stats()
    with connected(client, pod(lab.nodes[1], "far")) as made:
        made.say(b"far")
        assert not list(node.accelerator.pairs())
    choose(node, Accelerated(web.address, 1))
    with connected(client, web) as made:
        made.say(b"here")
        assert not list(node.accelerator.pairs())
    assert since(node, before) == {}


def test_what_is_chosen_is_a_plan(node: LabNode) -> None:
    accelerator = node.accelerator
    wanted = [Accelerated("10.96.0.10", 80), Accelerated("fd00::/8"), Accelerated("10.244.0.0/16")]
    accelerator.plan(wanted).apply()
    assert accelerator.accelerated == set(wanted)
    plan = accelerator.plan([*wanted[:2], Accelerated("::/0", 443)])
    assert str(plan) == "+ ::/0 port 443\n- 10.244.0.0/16"
    assert str(plan.apply()).startswith("1 added, 0 changed, 1 removed")
    with pytest.raises(StalePlanError):
        plan.apply()
    assert accelerator.plan(accelerator.accelerated).empty
    web = Service("10.96.0.10", 80, backends=[])
    assert Accelerated.of(web, evolve(web, protocol="UDP")) == (Accelerated("10.96.0.10", 80),)


def test_all_of_ipv6_is_nothing_of_ipv4(node: LabNode) -> None:
    choose(node, Accelerated("::/0"))
    with connected(pod(node, "client"), pod(node, "web")) as made:
        made.say(b"v4")
        assert not list(node.accelerator.pairs())
    with connected(pod(node, "client"), pod(node, "web"), pod(node, "web").address6) as made:
        made.say(b"v6")
        assert pair(node).client.messages == 1


def test_long_transfers_are_whole_in_both_directions_at_once(node: LabNode) -> None:
    """Pieces of all sizes, readers that pause: some are handed over, others not, and all are in order."""
    before = node.accelerator.stats()
    failures: list[str] = []

    def write(sock: socket.socket, seed: int) -> None:
        chance, data = random.Random(seed), memoryview(random.Random(seed).randbytes(6 << 20))
        while data:
            size = chance.choice((1, 100, 1400, 40_000, 300_000))
            sock.sendall(data[:size])
            data = data[size:]
        sock.shutdown(socket.SHUT_WR)

    def check(sock: socket.socket, seed: int) -> None:
        chance, got = random.Random(~seed), bytearray()
        slow = threading.Event()
        while piece := sock.recv(chance.choice((10, 5000, 1 << 20))):
            got += piece
            if not chance.randrange(400):
                slow.wait(0.02)
        if got != random.Random(seed).randbytes(6 << 20):
            failures.append(f"{seed}: {len(got)} bytes")

    def run(made: Connection, seed: int) -> None:
        ways = ((made.client, made.server, seed), (made.server, made.client, seed + 1))
        each = [threading.Thread(target=write, args=(way[0], way[2])) for way in ways]
        each += [threading.Thread(target=check, args=(way[1], way[2])) for way in ways]
        for thread in each:
            thread.start()
        for thread in each:
            thread.join()

    with (
        connected(pod(node, "client"), pod(node, "web")) as one,
        connected(pod(node, "web"), pod(node, "other"), pod(node, "other").address6) as two,
    ):
        both = [threading.Thread(target=run, args=(made, seed)) for made, seed in ((one, 10), (two, 20))]
        for thread in both:
            thread.start()
        for thread in both:
            thread.join()
    assert failures == []
    counted = since(node, before)
    assert counted["handed"] > 0
    assert counted["full"] > 0
    assert counted["behind"] > 0
    assert "shut" not in counted


def test_a_reader_that_sleeps_is_waited_for(node: LabNode) -> None:
    """Nothing piles up: the writer is told to wait as ever, and all that it wrote arrives in order."""
    with connected(pod(node, "client"), pod(node, "web")) as made:
        made.client.setblocking(False)
        data = random.Random(1).randbytes(64 << 20)
        sent = 0
        with suppress(BlockingIOError):
            while sent < len(data):
                sent += made.client.send(data[sent : sent + 100_000])
        assert sent < len(data) // 2
        assert read(made.server, sent) == data[:sent]
        made.client.settimeout(10)
        handed = pair(node).client.messages
        made.say(b"awake")  # the kernel does not ask again after what it could send in part only
        made.say(b"again")
        assert pair(node).client.messages == handed + 1


def test_half_of_it_is_closed(node: LabNode) -> None:
    with connected(pod(node, "client"), pod(node, "web")) as made:
        made.client.sendall(b"the last words")
        made.client.shutdown(socket.SHUT_WR)
        assert read(made.server, 100) == b"the last words"
        with pytest.raises(BrokenPipeError):
            made.client.sendall(b"more")
        data = bytes(200_000)
        threading.Thread(target=made.server.sendall, args=(data,)).start()
        assert read(made.client, len(data)) == data
        made.server.shutdown(socket.SHUT_WR)
        assert made.client.recv(1) == b""


def test_the_end_comes_after_what_was_said_before(node: LabNode) -> None:
    for _ in range(50):
        with connected(pod(node, "client"), pod(node, "web")) as made:
            made.client.sendall(b"a" * 5000)
            made.client.close()
            assert read(made.server, 10_000) == b"a" * 5000


def test_who_talks_to_the_dead_is_told(node: LabNode) -> None:
    with connected(pod(node, "client"), pod(node, "web")) as made:
        made.say(b"alive")
        made.server.close()
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            wait(lambda: made.client.sendall(b"are you there?"))


def test_a_reset_is_one(node: LabNode) -> None:
    with connected(pod(node, "client"), pod(node, "web")) as made:
        made.say(b"alive")
        made.server.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        made.server.close()
        with pytest.raises(ConnectionResetError):
            made.client.recv(1)


def test_pollers_and_counters_of_bytes_see_what_was_handed_over(node: LabNode) -> None:
    with connected(pod(node, "client"), pod(node, "web")) as made, select.epoll() as poller:
        poller.register(made.server, select.EPOLLIN | select.EPOLLET)
        made.server.setblocking(False)
        for size in (1, 1000, 70_000):
            assert poller.poll(0) == []
            made.client.sendall(bytes(size))
            assert poller.poll(5) == [(made.server.fileno(), select.EPOLLIN)]
            there = array.array("i", [0])
            fcntl.ioctl(made.server, termios.FIONREAD, there)
            assert there[0] == size
            assert made.server.recv(10, socket.MSG_PEEK) == bytes(min(size, 10))
            assert read(made.server, size) == bytes(size)
            with pytest.raises(BlockingIOError):
                made.server.recv(1)
            poller.poll(0)


def test_sockets_in_other_namespaces_with_the_same_addresses_are_others(node: LabNode) -> None:
    """Loopback addresses are in every pod: the same ports at both ends, at the same time."""
    made = []
    for name in ("client", "web"):
        host = pod(node, name)
        with listen(host, 7000, address="127.0.0.1") as listener, host.socket() as near:
            near.bind(("127.0.0.1", 7001))
            near.connect(("127.0.0.1", 7000))
            far, _ = listener.accept()
            made.append(Connection(near.dup(), far))
    for number, each in enumerate(made):
        each.client.sendall(b"%d" % number)
    assert [each.server.recv(10) for each in made] == [b"0", b"1"]
    seen = {each.client.netns: each for each in node.accelerator.pairs()}
    assert seen.keys() == {pod(node, name).netns.cookie for name in ("client", "web")}
    assert all(each.client.messages == 1 for each in seen.values())
    for each in made:
        each.client.close()
        each.server.close()


FORGED = """
import socket, subprocess, sys
client, server, port, near = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
for command in ("link set lo up", f"address add {client} dev lo", f"address add {server} dev lo"):
    subprocess.run(["ip", *command.split()], check=True)
listener = socket.create_server((server, port))
mine = socket.create_connection((server, port), source_address=(client, near))
theirs, _ = listener.accept()
print("ready", flush=True)
for line in sys.stdin.buffer:
    mine.sendall(b"forged " + line)
    print(theirs.recv(100).decode().strip(), flush=True)
"""


def test_who_takes_the_addresses_of_others_hears_nothing_of_them(node: LabNode) -> None:
    """A pod that makes a namespace of its own, with a connection that has all four numbers of another's."""
    client, web = pod(node, "client"), pod(node, "web")
    with listen(web) as listener:
        port = listener.getsockname()[1]
        made = dial(client, listener, web.address)
        near = made.client.getsockname()[1]
        command = ["unshare", "-n", sys.executable, "-c", FORGED]
        command += [str(client.address), str(web.address), str(port), str(near)]
        pipe = subprocess.PIPE
        with made, pod(node, "other").popen(command, stdin=pipe, stdout=pipe) as forger:
            assert forger.stdin is not None
            assert forger.stdout is not None
            assert forger.stdout.readline() == b"ready\n"
            for number in range(5):
                made.client.sendall(b"true %d" % number)
                forger.stdin.write(b"%d\n" % number)
                forger.stdin.flush()
                assert forger.stdout.readline() == b"forged %d\n" % number
                assert made.server.recv(100) == b"true %d" % number
            forger.stdin.close()
            forger.wait()


def test_a_policy_that_comes_later_holds(node: LabNode) -> None:
    client, web = pod(node, "client"), pod(node, "web")
    with connected(client, web) as made:
        made.say(b"allowed")
        handed = pair(node).client.messages
        node.policy.upsert(*parse_policies(DENY))
        before = node.accelerator.stats()
        made.client.sendall(b"denied")
        made.server.settimeout(0.5)
        with pytest.raises(TimeoutError):
            made.server.recv(10)
        assert since(node, before) == {"policy": 1}
        node.policy.upsert(*parse_policies(ALLOW))  # the kernel sends it again, and then the way is free
        made.server.settimeout(10)
        assert read(made.server, 6) == b"denied"
        made.say(b"allowed")
        assert pair(node).client.messages > handed


def test_a_pod_that_becomes_another_goes_through_the_stack(node: LabNode) -> None:
    client, web = pod(node, "client"), pod(node, "web")
    with connected(client, web) as made, connected(client, pod(node, "other")) as beside:
        made.say(b"as before")
        beside.say(b"as before")
        for labels in ({"app": "renamed"}, {"app": "web"}):
            renamed = Workload.pod("default/web", labels, addresses=web.addresses)
            node.datapath.attach_pod(
                web.device, web.addresses, pod_mac=web.mac, identity=1000, workload=renamed
            )
            made.say(b"as another")
            assert pair(node).server.peer.address == pod(node, "other").address


def test_who_is_not_allowed_does_not_even_connect(node: LabNode) -> None:
    node.policy.upsert(*parse_policies(ALLOW))
    with listen(pod(node, "web")) as listener:
        address, port = pod(node, "web").address, listener.getsockname()[1]
        with pytest.raises(TimeoutError):
            pod(node, "other").tcp(address, port, timeout=0.5)
        made = dial(pod(node, "client"), listener, address)
        with made:
            made.say(b"hello")
            assert pair(node).client.messages == 1


def test_where_policies_have_more_to_say_they_say_it(node: LabNode) -> None:
    """Rules about requests are for the server's socket: it has to see what comes."""
    node.policy.upsert(*parse_policies(ALLOW))
    loaded = node.datapath._objects["pod"]
    rules = loaded.map("kd_rules", maps.Hash[RuleKey, RuleRow])
    allowing = {key: row for key, row in rules.items() if not row.deny}
    before = node.accelerator.stats()
    rules.update_many({key: evolve(row, l7=1) for key, row in allowing.items()})
    try:
        with connected(pod(node, "client"), pod(node, "web")) as made:
            made.say(b"GET /")
            assert not list(node.accelerator.pairs())
    finally:
        rules.update_many(allowing)
    assert since(node, before) == {}


def test_flows_that_skip_the_stack_are_not_forgotten(node: LabNode) -> None:
    """Those who translate packets hear of none for longer than they wait; then both ends say farewell."""
    client, web = pod(node, "client"), pod(node, "web")
    with listen(web) as listener:
        node.services.upsert(Service(VIPS[4], 80, backends=[web.at(listener.getsockname()[1])]))
        made = dial(client, listener, VIPS[4], 80)
        with made:
            for _ in range(10):
                made.say(b"still here")
                select.select([], [], [], 0.25)
            made.client.shutdown(socket.SHUT_WR)
            assert made.server.recv(1) == b""
            made.server.shutdown(socket.SHUT_WR)
            assert made.client.recv(1) == b""


def test_connections_go_on_while_tables_are_resized(node: LabNode) -> None:
    with connected(pod(node, "client"), pod(node, "web")) as made:
        made.say(b"before")
        node.datapath.resize(evolve(SMALL, flows=8192))
        assert not list(node.accelerator.pairs())
        made.say(b"after")
    with connected(pod(node, "client"), pod(node, "web")) as made:
        made.say(b"and new ones")
        assert pair(node).client.messages == 1
        assert node.accelerator.release() == 1
        made.say(b"by the stack")
    node.datapath.resize(SMALL)


def test_many_connections_leave_nothing_behind(node: LabNode) -> None:
    client, web = pod(node, "client"), pod(node, "web")
    before = node.accelerator.stats()
    failures: list[BaseException] = []

    def churn(listener: socket.socket, count: int) -> None:
        try:
            for number in range(count):
                made = dial(client, listener, web.address)
                with made:
                    made.say(b"%d" % number * 20)
                    if number % 3 == 0:
                        made.server.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        except (OSError, AssertionError) as error:
            failures.append(error)

    listeners = [listen(web) for _ in range(4)]
    threads = [threading.Thread(target=churn, args=(each, 150)) for each in listeners]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for each in listeners:
        each.close()
    assert failures == []
    counted = since(node, before)
    assert counted["pairs"] == 600
    assert "refused" not in counted
    wait(lambda: node.accelerator.stats().open == 0)
    sockets = node.datapath._objects["accelerator"].map("kd_accel_socks", maps.SockHash[u64])
    wait(lambda: len(sockets) == 0)


def test_the_howto_is_true() -> None:
    ((code, output),) = blocks(ROOT / "docs" / "how-to" / "acceleration.md")
    assert without_numbers(run(code, {})) == without_numbers(output)


def test_a_lab_without_says_so() -> None:
    with Lab.start() as lab:
        assert lab.node.datapath.accelerator is None
        with pytest.raises(LabError, match="accelerate=True"):
            _ = lab.node.accelerator
    with pytest.raises(ModelError, match="accelerate needs a cgroup"):
        NodeConfig(accelerate=True)


@pytest.fixture
def pinned() -> Iterator[tuple[Lab, PinDir]]:
    """A node without a process, whose datapath is pinned."""
    pins = PinDir(f"/sys/fs/bpf/kdtest-accel-{secrets.token_hex(3)}")
    with Lab.start(capacity=SMALL, accelerate=True, pins=pins) as lab:
        try:
            for name in ("client", "web"):
                lab.pod(name)
            choose(lab.node, Accelerated("10.0.0.0/8"))
            lab.node.datapath.close()
            yield lab, pins
        finally:
            pins.remove()


def test_what_is_accelerated_outlives_its_process(pinned: tuple[Lab, PinDir]) -> None:
    (lab, pins), config = pinned, pinned[0].node.datapath.config
    client, web = lab.node.pods
    with connected(client, web) as early:
        early.say(b"nobody is in charge")
        with Node.open(config) as node, connected(client, web) as late:
            late.say(b"somebody is")
            early.say(b"and for this one")
            assert node.accelerator is not None
            assert [each.client.messages for each in node.accelerator.pairs()].count(2) == 1
            told = json.loads(CliRunner().invoke(app, accel(pins, "pairs")).stdout)
            assert sorted(each["client_messages"] for each in told) == [1, 2]
            assert {each["client_others"] for each in told} == {0}
            (status,) = json.loads(CliRunner().invoke(app, accel(pins, "status")).stdout)
            assert (status["open"], status["handed"]) == (2, 6)
            assert status["chosen"] == ["10.0.0.0/8"]
        early.server.sendall(b"not read yet")
        with Node.open(evolve(config, accelerate=False)) as node, connected(client, web) as plain:
            assert node.accelerator is None
            assert read(early.client, 12) == b"not read yet"
            early.say(b"by the stack")
            plain.say(b"too")
        with SocketAccelerator.bind(pins) as left:
            assert (left.stats().open, left.stats().handed) == (0, 7)


def accel(pins: PinDir, command: str) -> list[str]:
    return ["accel", command, "--pins", str(pins.path), "-o", "json"]


def test_maps_made_anew_get_programs_of_their_own(pinned: tuple[Lab, PinDir]) -> None:
    """Somebody has removed pins of maps, while those of links are there."""
    (lab, pins), config = pinned, pinned[0].node.datapath.config
    for name in ("kd_accel_socks", "kd_accel_pairs"):
        pins.map_path(name).unlink()
    with Node.open(config) as node, connected(*lab.node.pods) as made:
        made.say(b"hello")
        assert node.accelerator is not None
        assert [each.client.messages for each in node.accelerator.pairs()] == [1]
