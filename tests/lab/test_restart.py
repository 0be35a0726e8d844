"""The datapath outlives its process: kill -9 at any moment of a change, and traffic never notices."""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from attrs import evolve, frozen

from k8sdatapath import compile
from k8sdatapath.datapath.service_table import ServiceTable
from k8sdatapath.errors import CapacityError, DeviceGoneError, LayoutError
from k8sdatapath.lab import Lab
from k8sdatapath.lab.host import Host
from k8sdatapath.model import Backend, Service
from k8sdatapath.net.netns import NetNs
from k8sdatapath.node import Capacity, Node, NodeConfig
from k8sdatapath.node.loading import specs
from k8sdatapath.node.upgrade import upgrade
from k8sdatapath.objects import ObjectSpec
from k8sdatapath.pins import PinDir
from tests.api.graph import ROOT

SMALL = Capacity(services=4096, backends=16384, slots=65536, flows=65536, pods=64)
STEADY = ("10.96.0.10", 80)
CHURNING = [(f"10.97.0.{n}", 80) for n in range(1, 200)]

#: A process that changes services without pause, until it is killed. Its standard output is its progress.
CHURN = """
import random, sys
from pathlib import Path
from k8sdatapath.model import Backend, Service
from k8sdatapath.net.netns import NetNs
from k8sdatapath.node import Node
from tests.lab.test_restart import CHURNING, configure, steady
chance = random.Random(int(sys.argv[5]))
with NetNs.open(sys.argv[1]) as netns, Node.open(configure(netns, *sys.argv[2:4])) as node:
    while True:
        wanted = []
        for front in chance.sample(CHURNING, 150):
            hosts = chance.sample(range(1, 200), 5)
            wanted.append(Service(*front, backends=[Backend(f"10.244.9.{host}", 80) for host in hosts]))
        node.services.plan([steady(sys.argv[4]), *wanted]).apply()
        print(".", flush=True)
"""


def configure(netns: NetNs, cgroup: str, pins: str) -> NodeConfig:
    return NodeConfig(name="restart", netns=netns, cgroup=Path(cgroup), pins=PinDir(pins), capacity=SMALL)


def killed_at_work(script: str, arguments: list[str], chance: random.Random) -> None:
    """Run a script that writes whenever it has changed something, and kill it in its next change."""
    with subprocess.Popen(
        [sys.executable, "-c", script, *arguments], stdout=subprocess.PIPE, cwd=ROOT
    ) as churn:
        assert churn.stdout is not None
        assert churn.stdout.read(1) == b"."
        time.sleep(chance.random() * 0.1)
        churn.send_signal(signal.SIGKILL)


def steady(backend: str) -> Service:
    return Service(*STEADY, backends=[Backend(backend, 8080)])


class Traffic(threading.Thread):
    """Short connections without pause, and one that is held all the time.

    :param short: False: the latter only.
    """

    def __init__(self, client: Host, *, short: bool = True) -> None:
        super().__init__()
        self.client = client
        self.short = short
        self.requests = 0
        self.failures: list[str] = []
        self.over = threading.Event()
        self.held = client.tcp(*STEADY)

    def run(self) -> None:
        while not self.over.is_set():
            try:
                if self.short:
                    assert self.client.get("http://10.96.0.10/", timeout=5).text == "web"
                self.held.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
                assert self.held.recv(4096).endswith(b"web")
            except (OSError, AssertionError) as error:
                self.failures.append(repr(error))
            self.requests += 2


@frozen
class Place:
    """A lab with a client and a web server, and a datapath that is pinned and has no process."""

    lab: Lab
    client: Host
    web: Host
    config: NodeConfig

    @property
    def steady(self) -> Service:
        return steady(str(self.web.address))

    @property
    def arguments(self) -> list[str]:
        assert self.config.netns is not None
        return [self.config.netns.name, str(self.config.cgroup), str(self.config.pins), str(self.web.address)]


@pytest.fixture
def place() -> Iterator[Place]:
    with ExitStack() as stack:
        lab = stack.enter_context(Lab.start(datapath=False))
        pins = PinDir(f"/sys/fs/bpf/kdtest-restart-{lab.name}")
        stack.callback(pins.remove)
        client, web = lab.pod("client"), lab.pod("web")
        web.serve_http(8080, "web")
        config = configure(lab.node.netns, str(lab.node.cgroup.path), str(pins))
        place = Place(lab, client, web, config)
        with Node.open(config) as first:
            for pod in (client, web):
                first.attach_pod(pod.device, pod.addresses, pod_mac=pod.mac)
            first.services.upsert(place.steady)
        yield place


@pytest.mark.timeout(180)
def test_killed_at_any_instant_of_apply_nothing_breaks_and_a_restart_ends_as_desired(
    place: Place,
) -> None:
    chance = random.Random(7)
    traffic = Traffic(place.client)
    traffic.start()
    try:
        for round in range(12):
            killed_at_work(CHURN, [*place.arguments, str(round)], chance)
            with Node.open(place.config) as node:
                wanted = [place.steady, *(Service(*front) for front in chance.sample(CHURNING, 3))]
                node.services.plan(wanted).apply()
                assert set(node.services.dump()) == set(wanted)
                assert len(node.services.flows(wanted[0].frontend)) == 1
        while traffic.requests <= 500:
            traffic_goes_on(traffic)
    finally:
        traffic.over.set()
        traffic.join()
        traffic.held.close()
    assert not traffic.failures, (len(traffic.failures), traffic.requests, traffic.failures[:3])


def test_a_new_process_counts_on_where_the_last_one_stopped(place: Place) -> None:
    client = place.client
    service = place.steady
    assert client.get("http://10.96.0.10/").text == "web"  # nobody runs: the kernel does it alone
    with Node.open(place.config) as node:
        before = node.services.flows(service.frontend)[service.backends[0]]
        assert before > 0
        client.get("http://10.96.0.10/")
        assert node.services.flows(service.frontend)[service.backends[0]] == before + 1


def test_a_pod_whose_device_was_made_anew_is_attached_anew(place: Place) -> None:
    pod = place.client
    with Node.open(place.config) as node:
        node.attach_pod(pod.device, pod.addresses, pod_mac=pod.mac)  # again: the same link
        node.detach_pod(pod.device, pod.addresses)
        assert not [name for name in place.config.pins.links if pod.device in name]
        node.attach_pod(pod.device, pod.addresses, pod_mac=pod.mac)
    assert pod.get("http://10.96.0.10/").text == "web"


def test_an_open_that_fails_half_way_leaves_no_pins() -> None:
    with Lab.start(datapath=False) as lab:
        pins = PinDir(f"/sys/fs/bpf/kdtest-restart-{lab.name}")
        config = configure(lab.node.netns, str(lab.node.cgroup.path), str(pins))
        with pytest.raises(DeviceGoneError, match="nosuch"):
            Node.open(evolve(config, uplinks=["nosuch"]))
        assert not pins.path.exists()
        with Node.open(config):
            before = pins.links
            assert before
        try:
            with pytest.raises(DeviceGoneError, match="nosuch"):
                Node.open(evolve(config, uplinks=["nosuch"]))
            assert pins.links == before  # what was there before goes on
        finally:
            pins.remove()


def test_tables_grow_under_load_and_nobody_notices(place: Place) -> None:
    traffic = Traffic(place.client)
    traffic.start()
    try:
        with Node.open(place.config) as node:
            wanted = [Service("10.98.0.1", port) for port in range(1, SMALL.services - 1)]
            with pytest.raises(CapacityError, match="1 too many"):
                node.services.upsert(*wanted)
            node.services.upsert(*wanted[:9])
            with pytest.raises(CapacityError, match="12 elements of kd_frontends needed, 4 fit"):
                node.resize(evolve(SMALL, services=4))
            flows = node.services.flows(place.steady.frontend)[place.steady.backends[0]]
            node.resize(evolve(SMALL, services=SMALL.services * 2, backends=32768))
            assert node.services.flows(place.steady.frontend)[place.steady.backends[0]] >= flows
            node.services.upsert(*wanted)
            for size in (1, 2, 3):
                node.resize(evolve(SMALL, services=SMALL.services * size * 2))
            traffic_goes_on(traffic)
        with Node.open(place.config) as node:  # the next process finds the new maps
            assert len(node.services) == SMALL.services - 1
            traffic_goes_on(traffic)
    finally:
        traffic.over.set()
        traffic.join()
        traffic.held.close()
    assert not traffic.failures, (len(traffic.failures), traffic.requests, traffic.failures[:3])


def traffic_goes_on(traffic: Traffic) -> None:
    before, deadline = traffic.requests, time.monotonic() + 10
    while traffic.requests < before + 20:
        assert time.monotonic() < deadline
        time.sleep(0.01)


#: A version whose rows lie otherwise in memory.
OLDER = {
    "struct kd_ct {\n\tstruct kd_tuple to;\n\t__u64 packets;": (
        "struct kd_ct {\n\t__u64 packets;\n\t__u32 told;\n"
        "\tstruct kd_tuple to;\n\t__u8 tcp_flags;\n\t__u8 pad[3];"
    ),
    "\t__u32 told; /* seconds of CLOCK_MONOTONIC: when an event was due */\n"
    "\t__u8 tcp_flags; /* that were told of */\n\t__u8 pad[3];\n": "",
    "struct kd_backend {\n\tstruct kd_addr addr;\n\t__u64 flows;": (
        "struct kd_backend {\n\t__u64 flows;\n\tstruct kd_addr addr;"
    ),
    "\t__u64 packets;\n\t__u64 bytes;": "\t__u64 bytes;\n\t__u64 packets;",
}


def older(config: NodeConfig, directory: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, ObjectSpec]:
    """The objects of a configuration as that version has them."""
    shutil.copytree(ROOT / "bpf", directory, dirs_exist_ok=True)
    types = directory / "include/kd/types.h"
    text = types.read_text()
    for ours, theirs in OLDER.items():
        assert text.count(ours) == 1, ours
        text = text.replace(ours, theirs)
    types.write_text(text)
    with monkeypatch.context() as patched:
        patched.setattr("k8sdatapath.compiler.include_dir", lambda: directory / "include")
        patched.setattr(ObjectSpec, "from_file", lambda name: compile(directory / f"{name}.bpf.c"))
        return specs(config)


@pytest.mark.timeout(180)
@pytest.mark.parametrize("socket_lb", [True, False])
def test_what_another_version_has_pinned_is_taken_over_under_traffic(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, socket_lb: bool
) -> None:
    config = evolve(place.config, socket_lb=socket_lb)
    others, pins = older(config, tmp_path, monkeypatch), config.pins
    assert pins is not None
    with Node.open(config):
        pass  # where sockets are not balanced, their programs go
    traffic = Traffic(place.client, short=socket_lb)  # see node/upgrade.py
    traffic.start()
    try:
        traffic_goes_on(traffic)
        with Node.open(config) as node:
            flows = node.services.flows(place.steady.frontend)[place.steady.backends[0]]
        with pins.lock():  # an agent of the other version starts, as it were
            changed = upgrade(pins, others, SMALL.max_entries)
        assert changed == ("kd_backends", "kd_conntrack", "kd_conntrack_to", "kd_counters", "kd_rule_counts")
        traffic_goes_on(traffic)
        with pytest.raises(LayoutError):
            ServiceTable.bind(pins)
        with Node.open(config) as node:
            assert node.services.dump() == (place.steady,)
            now = node.services.flows(place.steady.frontend)[place.steady.backends[0]]
            assert now >= flows > 0
            assert sum(each.packets for each in node.counters().values()) > 0
            assert {pod.device for pod in node.pods} == {place.client.device, place.web.device}
            if not socket_lb:
                held = traffic.held.getsockname()[1]
                assert [each for each in node.flows.flows() if each.client.port == held]
            traffic_goes_on(traffic)
            assert place.client.get("http://10.96.0.10/").text == "web"
            assert node.services.flows(place.steady.frontend)[place.steady.backends[0]] > now
    finally:
        traffic.over.set()
        traffic.join()
        traffic.held.close()
    assert not traffic.failures, (len(traffic.failures), traffic.requests, traffic.failures[:3])
