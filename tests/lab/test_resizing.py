"""Tables get other sizes while traffic flows, and what is pinned gets the sizes that are configured."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from attrs import evolve

from k8sdatapath.datapath.flow import FlowState, Timeouts
from k8sdatapath.errors import CapacityError, MapFullError
from k8sdatapath.kube.policy import parse_policies
from k8sdatapath.lab import Host, Lab, Pod
from k8sdatapath.model import Exposure, Frontend, Service
from k8sdatapath.model.policy import Action
from k8sdatapath.model.workload import Workload
from k8sdatapath.node import Capacity, Node, NodeConfig
from k8sdatapath.pins import PinDir
from tests.api.graph import ROOT

SMALL = Capacity(services=64, backends=256, slots=1024, flows=65536, clients=256, pods=16)
VIP = "10.96.0.10"
ONLY_CLIENTS = """
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web, namespace: shop}
spec:
  podSelector: {matchLabels: {app: web}}
  ingress: [{from: [{podSelector: {matchLabels: {app: client}}}]}]
"""


class Clients:
    """Requests without pause, over new connections, a held one, and datagrams of one socket."""

    def __init__(self, client: Host, address: str, port: int) -> None:
        self.where = (address, port)
        self.client = client
        self.failures: list[str] = []
        self.requests = 0
        self.over = threading.Event()
        self.threads = [
            threading.Thread(target=self.repeat, args=(what,)) for what in (self.new, self.new, self.held)
        ]
        for thread in self.threads:
            thread.start()

    def new(self) -> Iterator[None]:
        while True:
            with self.client.tcp(*self.where) as sock:
                sock.settimeout(0.9)  # a SYN or a segment that is lost is sent again after a second at most
                ask(sock)
            yield
            time.sleep(0.002)

    def held(self) -> Iterator[None]:
        with self.client.tcp(*self.where) as sock:
            while True:
                ask(sock)
                yield

    def repeat(self, what: Iterator[None]) -> None:
        requests = what()  # type: ignore[operator]
        while not self.over.is_set():
            began = time.monotonic()
            try:
                next(requests)
            except (OSError, AssertionError) as error:
                self.failures.append(f"{what}: {error!r} after {time.monotonic() - began:.3f} s")
                return
            self.requests += 1

    def go_on(self) -> None:
        """Returns when some more requests have been answered."""
        enough, deadline = self.requests + 20, time.monotonic() + 10
        while self.requests < enough:
            assert time.monotonic() < deadline, self.failures
            time.sleep(0.01)

    def end(self) -> None:
        self.over.set()
        for thread in self.threads:
            thread.join()


def ask(sock: object) -> None:
    sock.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")  # type: ignore[attr-defined]
    assert sock.recv(4096).endswith(b"web")  # type: ignore[attr-defined]


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab.start(datapath=False) as lab:
        lab.pod("client")
        lab.pod("web").serve_http(8080, "web")
        lab.external("visitor")
        yield lab


@pytest.fixture
def config(lab: Lab) -> Iterator[NodeConfig]:
    pins = PinDir(f"/sys/fs/bpf/kdtest-resize-{lab.name}")
    yield NodeConfig(
        netns=lab.node.netns, uplinks="eth0", pins=pins, capacity=SMALL, timeouts=Timeouts(closed=1)
    )
    pins.remove()


def attach(node: Node, lab: Lab) -> Pod:
    client, web = lab.node.pods[:2]
    for number, pod in enumerate((client, web), 300):
        workload = Workload.pod(f"shop/{pod.name}", {"app": pod.name}, addresses=pod.addresses)
        node.attach_pod(pod.device, pod.addresses, pod_mac=pod.mac, identity=number, workload=workload)
    exposed = Exposure("node_port", lab.node.address, 30080)
    node.services.upsert(Service(VIP, 80, backends=[web.at(8080)], exposed=[exposed], affinity_timeout=60))
    return client


@pytest.mark.timeout(180)
def test_flows_get_another_table_and_none_is_lost(config: NodeConfig, lab: Lab) -> None:
    with Node.open(config) as node, ExitStack() as stack:
        client = attach(node, lab)
        inside = Clients(client, VIP, 80)
        stack.callback(inside.end)
        outside = Clients(lab.externals[0], str(lab.node.address), 30080)
        stack.callback(outside.end)
        for flows in (131072, 32768):
            node.resize(evolve(SMALL, flows=flows, clients=flows // 16, pods=flows // 2048))
            assert (node.capacity.flows, node.config.capacity.flows) == (flows, flows)
            inside.go_on()
            outside.go_on()
        assert node.pressure()["kd_affinity"].used >= 1
        with pytest.raises(
            CapacityError, match=r"elements of kd_conntrack.*\(flows need a larger size than was"
        ):
            node.resize(evolve(SMALL, flows=4))
        with pytest.raises(
            CapacityError, match=r"elements of kd_endpoints.*\(the size that was asked for is"
        ):
            node.resize(evolve(node.capacity, pods=3))
        assert node.capacity.flows == 32768
    assert (inside.failures, outside.failures) == ([], [])
    assert inside.requests > 100
    assert outside.requests > 100


@pytest.mark.timeout(180)
def test_policies_hold_while_tables_get_other_sizes(config: NodeConfig, lab: Lab) -> None:
    (allow,) = parse_policies(ONLY_CLIENTS)
    visitor = lab.externals[0]
    with Node.open(evolve(config, policy=True)) as node, ExitStack() as stack:
        client = attach(node, lab)
        assert node.policy is not None
        node.policy.upsert(allow)
        explained = node.explain(Frontend(VIP, 80), client.address)
        clients = Clients(client, VIP, 80)
        stack.callback(clients.end)
        for flows in (131072, 32768):
            sizes = evolve(
                SMALL, flows=flows, services=flows // 512, policies=flows // 1024, rules=flows // 64
            )
            sizes = evolve(sizes, parties=flows // 128, networks=flows // 1024, talks=flows // 32)
            node.resize(sizes)
            assert node.capacity == sizes
            clients.go_on()
            assert node.explain(Frontend(VIP, 80), client.address).judgements == explained.judgements != ()
            with pytest.raises(TimeoutError):
                visitor.tcp(lab.node.address, 30080, timeout=0.3)
        with pytest.raises(CapacityError, match="elements of kd_ipcache"):
            node.resize(evolve(node.capacity, parties=1))
        assert node.capacity == sizes
        clients.go_on()
        allowed = [each for each in node.policy.counts() if each.action is Action.ALLOW and each.because == 0]
        assert sum(each.packets for each in allowed) > 100
        node.policy.remove(allow.name)
        clients.end()
        assert clients.failures == []
        assert visitor.get(f"http://{lab.node.address}:30080").text == "web"
        node.policy.upsert(allow)
        with pytest.raises(TimeoutError):
            visitor.tcp(lab.node.address, 30080, timeout=0.3)
    smaller = evolve(sizes, rules=256, talks=512)
    wanted = evolve(config, policy=True, capacity=smaller)
    with client.tcp(VIP, 80) as held, Node.open(wanted) as node:  # which was told nothing of policies
        assert (node.capacity, node.notes) == (smaller, ())
        ask(held)
        with pytest.raises(TimeoutError):
            visitor.tcp(lab.node.address, 30080, timeout=0.3)


def test_pinned_tables_get_the_sizes_that_are_configured(config: NodeConfig, lab: Lab) -> None:
    with Node.open(config) as node:
        client = attach(node, lab)
        assert node.capacity == SMALL
    larger = evolve(SMALL, services=128, flows=131072, slots=2048)
    with client.tcp(VIP, 80) as held:
        with Node.open(evolve(config, capacity=larger)) as node:  # which has not been told of the pods
            assert (node.capacity, node.notes) == (larger, ())
            ask(held)
            node.services.remove(node.services.dump()[0].frontend)
            with pytest.raises(OSError, match=r"timed out|refused|unreachable"):
                client.tcp(VIP, 80, timeout=0.5)
            ask(held)
        with Node.open(evolve(config, capacity=evolve(larger, pods=2))) as node:
            assert node.capacity == larger
            assert "tables keep the sizes they are pinned with: 4 elements of kd_endpoints" in node.notes[0]


#: A process that gives flows one table after another, until it is killed. Its output is its progress.
RESIZE = """
import sys
from attrs import evolve
from k8sdatapath.net.netns import NetNs
from k8sdatapath.node import Node, NodeConfig
from k8sdatapath.pins import PinDir
from k8sdatapath.tables.moving import Step
from tests.api.graph import ROOT
from tests.lab.test_resizing import SMALL
config = NodeConfig(netns=NetNs.open(sys.argv[1]), uplinks="eth0", pins=PinDir(sys.argv[2]), capacity=SMALL)
with Node.open(config) as node:
    while True:
        for flows in (131072, SMALL.flows):
            print(".", flush=True)
            node.resize(evolve(SMALL, flows=flows))
"""


@pytest.mark.timeout(180)
def test_killed_at_any_instant_of_a_resize_no_flow_is_lost(config: NodeConfig, lab: Lab) -> None:
    chance = random.Random(5)
    assert config.netns is not None
    with Node.open(config) as node:
        client = attach(node, lab)
    clients = Clients(client, VIP, 80)
    try:
        for _ in range(4):
            command = [sys.executable, "-c", RESIZE, config.netns.name, str(config.pins)]
            with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT) as resizing:
                assert resizing.stdout is not None
                for _ in range(3):
                    resizing.stdout.readline()
                time.sleep(chance.random() * 2)
                resizing.kill()
            with Node.open(config) as node:
                assert node.capacity == SMALL
                clients.go_on()
    finally:
        clients.end()
    assert clients.failures == []


#: A process that finishes what the one before it has begun, and is killed as it gives flows another table.
DYING = """
import os, signal, sys
from attrs import evolve
from k8sdatapath.datapath.flow_move import FlowMove
from k8sdatapath.net.netns import NetNs
from k8sdatapath.node import Node, NodeConfig
from k8sdatapath.node.hooks import Hooks
from k8sdatapath.pins import PinDir
from tests.lab.test_resizing import SMALL
name, pins, last, there, wanted = sys.argv[1:]
capacity = evolve(SMALL, flows=int(there))
config = NodeConfig(netns=NetNs.open(name), uplinks="eth0", pins=PinDir(pins), capacity=capacity)
reached = []
def watch(kind, method, what):
    do = getattr(kind, method)
    def wrapper(self, *args):
        reached.append(what(*args))
        if reached[-1] == last:
            os.kill(os.getpid(), signal.SIGKILL)
        return do(self, *args)
    setattr(kind, method, wrapper)
watch(Hooks, "switch", lambda old, new: "programs")
with Node.open(config) as node:
    assert reached == [], "the tables had other sizes than they were to have after the last death"
    watch(FlowMove, "go", lambda step: step.name)
    watch(PinDir, "replace", lambda fd, path: path.name if "NEW" in reached else "")
    node.resize(evolve(SMALL, flows=int(wanted)))
"""
#: Steps before which it is killed, or between two pins; and whether flows have moved by then.
DEATHS = {"BOTH": False, "TAKING": False, "TAKEN": True, "NEW": True, "kd_affinity": True, "OVER": True}


@pytest.mark.timeout(180)
def test_killed_at_any_step_of_a_move_the_next_process_finishes_it(config: NodeConfig, lab: Lab) -> None:
    assert config.netns is not None
    with Node.open(config) as node:
        client = attach(node, lab)
    clients = Clients(client, VIP, 80)
    there, wanted = SMALL.flows, 2 * SMALL.flows
    try:
        for last, moved in DEATHS.items():
            where = config.netns.name, str(config.pins)
            command = [sys.executable, "-c", DYING, *where, last, str(there), str(wanted)]
            died = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
            assert died.returncode == -signal.SIGKILL, (last, died.stderr)
            if moved:
                there, wanted = wanted, there
            clients.go_on()  # with programs that nobody looks after
    finally:
        clients.end()
    assert clients.failures == []
    with Node.open(evolve(config, capacity=evolve(SMALL, flows=there))) as node:
        assert unfinished(node) == []


@pytest.mark.timeout(180)
def test_what_ends_while_flows_get_another_table_is_known_to_have_ended(config: NodeConfig, lab: Lab) -> None:
    """It would be kept until it was silent for very long, and be in the way of other flows."""
    with Node.open(evolve(config, timeouts=Timeouts())) as node, ExitStack() as stack:
        client = attach(node, lab)
        talks = [Clients(client, VIP, 80), Clients(lab.externals[0], str(lab.node.address), 30080)]
        for talk in talks:
            stack.callback(talk.end)
        for flows in (131072, 32768, 65536):
            node.resize(evolve(SMALL, flows=flows))
            for talk in talks:
                talk.go_on()
        stack.close()
        assert [talk.failures for talk in talks] == [[], []]
        assert unfinished(node) == []


def unfinished(node: Node) -> list[str]:
    """Flows that are not over, though all clients are gone."""
    deadline = time.monotonic() + 10
    while True:
        found = [str(flow) for flow in node.flows.flows() if flow.state is not FlowState.CLOSED]
        if not found or time.monotonic() > deadline:
            return found
        time.sleep(0.05)


def test_a_pod_that_does_not_fit_is_refused_as_a_whole(config: NodeConfig, lab: Lab) -> None:
    client, web = lab.node.pods[:2]
    with Node.open(evolve(config, capacity=evolve(SMALL, pods=3))) as node:
        node.attach_pod(client.device, client.addresses, pod_mac=client.mac)
        with pytest.raises(MapFullError, match=r"at most 3 entries \(Node.resize gives room for more pods"):
            node.attach_pod(web.device, web.addresses, pod_mac=web.mac)
        assert [pod.device for pod in node.pods] == [client.device]
        node.resize(SMALL)
        node.attach_pod(web.device, web.addresses, pod_mac=web.mac)
        assert {pod.device for pod in node.pods} == {client.device, web.device}


def test_a_device_that_is_gone_is_no_hindrance(config: NodeConfig, lab: Lab) -> None:
    gone = lab.pod("gone")
    with Node.open(config) as node:
        client = attach(node, lab)
        node.attach_pod(gone.device, gone.addresses, pod_mac=gone.mac)
        lab.node.exec(["ip", "link", "del", gone.device], check=True)
        node.resize(evolve(SMALL, flows=131072, services=128))
        assert client.get(f"http://{VIP}").text == "web"
