"""The agent of fifteen lines: it is killed, it loses its API server, and traffic does not notice."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from attrs import frozen

from k8sdatapath.component import Report
from k8sdatapath.datapath.service_table import ServiceTable
from k8sdatapath.kube import KubeWatch, NodeView, node_local, translate
from k8sdatapath.kube.decode import decode
from k8sdatapath.kube.objects import KubeObject
from k8sdatapath.kube.patience import Patience
from k8sdatapath.lab import Lab
from k8sdatapath.lab.host import Host
from k8sdatapath.model import Frontend
from k8sdatapath.node import Capacity, Node, NodeConfig
from k8sdatapath.pins import PinDir
from k8sdatapath.reconcile import Reconciler, Retry
from tests.support.api_double import ApiDouble
from tests.support.chaos import IMPATIENT, SECONDS, Chaos
from tests.support.watching import HASTY, KUBECONFIG, client, part, service, wait

pytestmark = pytest.mark.lab

ROOT = Path(__file__).parents[2]
VIEW = NodeView("n1", addresses=["192.0.2.11"])
SMALL = Capacity(services=4096, backends=16384, slots=65536, flows=65536, pods=64)
WEB = Frontend("10.96.0.1", 80)
AGENT = """
import sys
from k8sdatapath import NetNs, PinDir
from examples.kube_proxy import main
from tests.lab.test_kube_proxy import SMALL
name, netns, cgroup, pins = sys.argv[2:]
with NetNs.open(netns) as node:
    main(name, sys.argv[1], netns=node, cgroup=cgroup, pins=PinDir(pins), capacity=SMALL)
"""


class Traffic(threading.Thread):
    """Short connections to a service without pause."""

    def __init__(self, host: Host) -> None:
        super().__init__()
        self.host = host
        self.requests = 0
        self.failures: list[str] = []
        self.seen: set[str] = set()
        self.over = threading.Event()

    def run(self) -> None:
        while not self.over.is_set():
            try:
                self.seen.add(self.host.get(f"http://{WEB.address}/", timeout=5).text)
            except OSError as error:
                self.failures.append(repr(error))
            self.requests += 1

    def __enter__(self) -> Traffic:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.join()
        assert self.requests > 0
        assert not self.failures, (len(self.failures), self.requests, self.failures[:3])

    def goes_on(self, requests: int = 20) -> None:
        enough = self.requests + requests
        wait(lambda: self.requests >= enough)


@frozen
class Place:
    """A node with pods that nobody looks after, and an API server that knows of them."""

    lab: Lab
    config: NodeConfig
    api: ApiDouble
    client: Host
    web: list[Host]

    def agent(self, kubeconfig: Path) -> subprocess.Popen[str]:
        kubeconfig.write_text(KUBECONFIG % self.api.url)
        assert self.config.netns is not None
        where = [self.config.name, self.config.netns.name, str(self.config.cgroup), str(self.config.pins)]
        return subprocess.Popen(
            [sys.executable, "-c", AGENT, str(kubeconfig), *where],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def kernel(self) -> dict[str, set[str]]:
        """Services in the kernel and their backends, as another process sees them."""
        with ServiceTable.bind(self.config.pins) as table:
            return {str(each.frontend): set(map(str, each.backends)) for each in table.dump()}

    def wants(self, *hosts: Host) -> None:
        self.api.put("endpointslices", part("web", *(str(host.address) for host in hosts)))


@pytest.fixture
def place() -> Iterator[Place]:
    with ExitStack() as stack:
        lab = stack.enter_context(Lab.start(datapath=False))
        api = stack.enter_context(ApiDouble())
        pins = PinDir(f"/sys/fs/bpf/kdtest-reconcile-{lab.name}")
        stack.callback(pins.remove)
        config = NodeConfig(
            name="n1", netns=lab.node.netns, cgroup=lab.node.cgroup.path, pins=pins, capacity=SMALL
        )
        host, *web = (lab.pod(name) for name in ("client", "one", "two"))
        with Node.open(config) as node:
            for pod in (host, *web):
                node.attach_pod(pod.device, pod.addresses, pod_mac=pod.mac)
        for pod in web:
            pod.serve_http(8080, pod.name)
        place = Place(lab, config, api, host, web)
        api.put("services", service("web"))
        place.wants(*web)
        yield place


def web_at(*hosts: Host) -> set[str]:
    return {f"{host.address}:8080" for host in hosts}


@pytest.mark.timeout(180)
def test_fifteen_lines_are_killed_under_load_and_nobody_notices(place: Place, tmp_path: Path) -> None:
    one, two = place.web
    gone = service("gone", number=2)
    place.api.put("services", gone)
    with ExitStack() as stack:
        agent = stack.enter_context(place.agent(tmp_path / "kubeconfig"))
        stack.callback(agent.kill)
        wait(lambda: place.kernel() == {str(WEB): web_at(one, two), "10.96.0.2:80/TCP": set()}, 30)
        with Traffic(place.client) as traffic:
            traffic.goes_on()
            other = place.agent(tmp_path / "kubeconfig")  # a second one does not get in
            assert "PinsBusyError" in other.communicate(timeout=60)[1]
            assert other.returncode != 0
            agent.send_signal(signal.SIGKILL)
            agent.communicate()
            place.api.delete("services", "default", "gone")  # while nobody looks
            place.wants(two)
            place.api.put("services", service("new", number=3))
            traffic.goes_on()
            assert place.kernel()[str(WEB)] == web_at(one, two)  # the kernel goes on by itself
            agent = stack.enter_context(place.agent(tmp_path / "kubeconfig"))
            stack.callback(agent.kill)
            wait(lambda: place.kernel() == {str(WEB): web_at(two), "10.96.0.3:80/TCP": set()}, 30)
            traffic.seen.clear()
            traffic.goes_on()
            assert "two" in traffic.seen
        assert agent.poll() is None


@frozen
class Running:
    """A reconciler in this process, over a watch of the double."""

    node: Node
    reconciler: Reconciler


@contextmanager
def running(place: Place, patience: Patience = HASTY) -> Iterator[Running]:
    with ExitStack() as stack:
        node = stack.enter_context(Node.open(place.config))
        watch = stack.enter_context(KubeWatch(client(place.api), patience=patience))
        source = node_local(watch, VIEW)
        reconciler = stack.enter_context(
            Reconciler(source, node.services, retry=Retry(first=0.05, most=0.5), verify_every=1.0)
        )
        yield Running(node, reconciler.start())


def test_without_its_api_server_traffic_goes_on_and_what_happened_meanwhile_is_done(place: Place) -> None:
    one, two = place.web
    with running(place) as ours:
        follows_what_happened(place, ours, one, two)


def follows_what_happened(place: Place, running: Running, one: Host, two: Host) -> None:
    running.reconciler.wait_programmed(("EndpointSlice", "default", "web-1"), 10)
    with Traffic(place.client) as traffic:
        place.api.down()
        traffic.goes_on()
        place.wants(one)
        place.api.compact()
        place.api.delete("services", "default", "web")
        place.api.put("services", service("web"))
        place.api.put("services", service("more", number=7))
        place.api.up()
        wait(lambda: {str(each.frontend) for each in running.node.services} == {str(WEB), "10.96.0.7:80/TCP"})
        wait(lambda: running.node.services.get(WEB).backends == (one.at(8080),))
        traffic.goes_on()
        for number in range(20):  # a storm: whoever resumes is told that his version is gone
            place.api.compact()
            place.api.cut()
            place.wants(*(place.web if number % 2 else [two]))
            time.sleep(0.02)
        wait(lambda: set(running.node.services.get(WEB).backends) == {one.at(8080), two.at(8080)})
        traffic.goes_on()
    assert running.reconciler.running
    assert running.reconciler.errors() == {}


@pytest.mark.timeout(SECONDS + 120)
def test_chaos_ends_with_what_the_objects_say(place: Place) -> None:
    """Everything that can fail does, over and over; in the end the kernel equals ``translate``."""
    with running(place) as first:
        first.reconciler.wait_programmed(("EndpointSlice", "default", "web-1"), 10)
    chaos = Chaos(place.api)
    used, lives, failures = time.process_time(), 0, 0
    over = time.monotonic() + SECONDS
    with Traffic(place.client) as traffic:
        while time.monotonic() < over:
            lives += 1
            with running(place, IMPATIENT) as ours:
                with writes_fail_at_times(ours.node.services, chaos.chance):
                    until = min(over, time.monotonic() + chaos.chance.uniform(1, 10))
                    while time.monotonic() < until:
                        chaos.happen()
                        time.sleep(chaos.chance.uniform(0, 0.1))
                failures += ours.reconciler.metrics.failures
                if time.monotonic() < over:
                    continue
                used = time.process_time() - used
                chaos.calm()
                place.api.put("services", service("last", number=7))  # one more change: what was lost is told
                place.api.put("endpointslices", part("last", "10.244.9.9"))
                wait(lambda ours=ours: as_wanted(place, ours), 30)
                traffic.goes_on()
    assert lives > 1
    assert failures > 0
    print(f"{lives} lives, {failures} failed writes, {traffic.requests} requests, {used:.0f} s of CPU")


@contextmanager
def writes_fail_at_times(table: ServiceTable, chance: random.Random) -> Iterator[None]:
    change = table.change

    def unreliable(*arguments: Any) -> Report:
        if chance.random() < 0.1:
            raise OSError(12, "a fault of chance")
        return change(*arguments)

    with patch.object(table, "change", unreliable):
        yield


def as_wanted(place: Place, ours: Running) -> bool:
    """Whether the kernel, read by somebody else, has just what the objects say."""
    said = translate(objects(place.api), VIEW, strict=False).services
    wanted = {str(each.frontend): set(map(str, each.backends)) for each in said}
    told = {each.frontend: each for each in ours.node.services.dump()}
    return (
        place.kernel() == wanted
        and told == {each.frontend: each for each in said}
        and ours.node.services.verify() == ()
        and ours.reconciler.errors() == {}
    )


def objects(api: ApiDouble) -> list[KubeObject]:
    kinds = {"services": ("v1", "Service"), "endpointslices": ("discovery.k8s.io/v1", "EndpointSlice")}
    return [
        read
        for plural, (version, kind) in kinds.items()
        for value in api.objects(plural).values()
        for read in decode({"apiVersion": version, "kind": kind, **value}, "double", Counter())
    ]
