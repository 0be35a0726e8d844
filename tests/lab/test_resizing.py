"""Tables get other sizes while traffic flows, and what is pinned gets the sizes that are configured."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from attrs import evolve

from k8sdatapath.datapath.flow import Timeouts
from k8sdatapath.errors import CapacityError
from k8sdatapath.lab import Host, Lab, Pod
from k8sdatapath.model import Exposure, Service
from k8sdatapath.node import Capacity, Node, NodeConfig
from k8sdatapath.pins import PinDir
from tests.api.graph import ROOT

SMALL = Capacity(services=64, backends=256, slots=1024, flows=65536, clients=256, pods=16)
VIP = "10.96.0.10"


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
    for pod in (client, web):
        node.attach_pod(pod.device, pod.addresses, pod_mac=pod.mac)
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
            before = inside.requests, outside.requests
            node.resize(evolve(SMALL, flows=flows, clients=flows // 16, pods=flows // 2048))
            assert (node.capacity.flows, node.config.capacity.flows) == (flows, flows)
            deadline = time.monotonic() + 10
            while inside.requests < before[0] + 20 or outside.requests < before[1] + 20:
                assert time.monotonic() < deadline, (inside.failures, outside.failures)
                time.sleep(0.01)
        assert node.pressure()["kd_affinity"].used >= 1
        with pytest.raises(CapacityError, match="elements of kd_conntrack"):
            node.resize(evolve(SMALL, flows=4))
        with pytest.raises(CapacityError, match="elements of kd_endpoints"):
            node.resize(evolve(node.capacity, pods=3))
        assert node.capacity.flows == 32768
    assert (inside.failures, outside.failures) == ([], [])
    assert inside.requests > 100
    assert outside.requests > 100


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
                before, deadline = clients.requests, time.monotonic() + 10
                while clients.requests < before + 20:
                    assert time.monotonic() < deadline, clients.failures
                    time.sleep(0.01)
    finally:
        clients.end()
    assert clients.failures == []


def test_a_device_that_is_gone_is_no_hindrance(config: NodeConfig, lab: Lab) -> None:
    gone = lab.pod("gone")
    with Node.open(config) as node:
        client = attach(node, lab)
        node.attach_pod(gone.device, gone.addresses, pod_mac=gone.mac)
        lab.node.exec(["ip", "link", "del", gone.device], check=True)
        node.resize(evolve(SMALL, flows=131072, services=128))
        assert client.get(f"http://{VIP}").text == "web"
