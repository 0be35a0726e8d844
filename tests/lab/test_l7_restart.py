"""HTTP policy outlives its process: kill -9 at any moment, and what was denied or allowed still is."""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve, frozen
from typer.testing import CliRunner

from k8sdatapath import maps
from k8sdatapath.cli.app import app
from k8sdatapath.kube.policy import parse_policies
from k8sdatapath.lab import Lab
from k8sdatapath.lab.lab import Pod
from k8sdatapath.model.workload import Workload
from k8sdatapath.net.netns import NetNs
from k8sdatapath.node import Node, NodeConfig
from k8sdatapath.pins import PinDir
from k8sdatapath.tables.l7 import AutomatonRow
from tests.lab.test_l7_policies import PORT, SEED, say, status
from tests.lab.test_restart import SMALL, killed_at_work

pytestmark = pytest.mark.lab

LABELS = {"checkout": {"app": "checkout-service"}, "api": {"app": "payments-api"}}
NAMESPACES = {"checkout": "frontend", "api": "payments"}

#: A process that changes what is allowed besides, without pause, until it is killed.
CHURN = """
import json, sys
from itertools import count
from tests.lab.test_l7_restart import opened
with opened(json.loads(sys.argv[1])) as running:
    running.settle()
    for number in count():
        running.settle("/charge|/more-%d" % (number % 7))
        print(".", flush=True)
"""


@frozen
class Running:
    """A node, and what it has to be told of pods."""

    node: Node
    pods: dict[str, Any]
    netns: dict[str, NetNs]

    def settle(self, path: str = "/charge") -> None:
        """These are all pods, and this is all that is allowed."""
        assert self.node.policy is not None
        self.node.policy.apply(parse_policies(SEED.replace("path: /charge", f'path: "{path}"')))
        for number, (name, pod) in enumerate(self.pods.items()):
            addresses = [ip_address(each) for each in pod["addresses"]]
            self.node.attach_pod(
                pod["device"],
                addresses,
                pod_mac=pod["mac"],
                identity=300 + number,
                workload=Workload.pod(f"{NAMESPACES[name]}/{name}", LABELS[name], addresses=addresses),
                netns=self.netns[name],
            )
        self.node.policy.forget_strangers()


@contextmanager
def opened(about: dict[str, Any]) -> Iterator[Running]:
    """A node that takes over, or begins."""
    with ExitStack() as own:
        config = NodeConfig(
            name="restart",
            netns=own.enter_context(NetNs.open(about["netns"])),
            cgroup=Path(about["cgroup"]),
            pins=PinDir(about["pins"]),
            capacity=SMALL,
            policy=True,
            l7=True,
        )
        pods = about["pods"]
        netns = {name: own.enter_context(NetNs.open(pod["netns"])) for name, pod in pods.items()}
        yield Running(own.enter_context(Node.open(config)), pods, netns)


class Requests(threading.Thread):
    """What is allowed on one connection all the time, and what is denied on others."""

    def __init__(self, client: Pod, server: Pod) -> None:
        super().__init__()
        self.client, self.server = client, server
        self.held = client.tcp(server.address, PORT, timeout=10)
        self.wrong: list[str] = []
        self.answers = 0
        self.over = threading.Event()

    def run(self) -> None:
        while not self.wrong and not self.over.is_set():
            try:
                if not (got := say(self.held, "POST /charge")).startswith(b"HTTP/1.1 200"):
                    self.wrong.append(f"POST: {got!r}")
                with self.client.tcp(self.server.address, PORT, timeout=5) as asking:
                    if not (got := say(asking, "GET /charge")).startswith(b"HTTP/1.1 403"):
                        self.wrong.append(f"GET: {got!r}")
            except OSError as error:
                self.wrong.append(repr(error))
            self.answers += 1

    def wait(self, answers: int) -> None:
        """Until there were so many more."""
        wanted = self.answers + answers
        until(lambda: self.answers >= wanted or bool(self.wrong))
        assert self.wrong == []


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def place() -> Iterator[tuple[Pod, Pod, dict[str, Any]]]:
    with ExitStack() as stack:
        lab = stack.enter_context(Lab.start(datapath=False))
        pins = PinDir(f"/sys/fs/bpf/kdtest-l7-{lab.name}")
        stack.callback(pins.remove)
        pods = {name: lab.pod(name) for name in LABELS}
        pods["api"].serve_http(PORT, "paid")
        about = {
            "netns": lab.node.netns.name,
            "cgroup": str(lab.node.cgroup.path),
            "pins": str(pins),
            "pods": {
                name: {
                    "device": pod.device,
                    "mac": pod.mac,
                    "netns": pod.netns.name,
                    "addresses": list(map(str, pod.addresses)),
                }
                for name, pod in pods.items()
            },
        }
        yield pods["checkout"], pods["api"], about


def shown(pins: PinDir, what: str) -> list[dict[str, Any]]:
    """What the command line tells, which needs no process of the node's."""
    ran = CliRunner().invoke(app, ["l7", what, "--pins", str(pins), "-o", "json"])
    assert ran.exit_code == 0, ran.output
    found: list[dict[str, Any]] = json.loads(ran.stdout)
    return found


def numbers(pins: PinDir) -> list[int]:
    """Of the automata in the kernel."""
    with maps.bind(maps.Array[AutomatonRow], pins.open_map("kd_l7_automata"), owned=True) as automata:
        return [number for number, row in enumerate(automata) if row.generation and number]


@pytest.mark.timeout(120)
def test_policy_stays_in_force_while_its_process_is_killed(place: tuple[Pod, Pod, dict[str, Any]]) -> None:
    client, server, about = place
    pins = PinDir(about["pins"])
    with opened(about) as running:
        running.settle()
    assert status(client, "POST", server.address) == "200"
    chance = random.Random(7)
    requests = Requests(client, server)
    requests.start()
    try:
        for _ in range(3):
            killed_at_work(CHURN, [json.dumps(about)], chance)
            requests.wait(3)  # with no process at all
        with opened(about) as running:
            requests.wait(3)  # under what the kernel remembers
            running.settle()
            requests.wait(3)
            assert running.node.l7 is not None
            until(lambda: len(numbers(pins)) == 2)  # the common one, and that of the policy
            requests.over.set()
            requests.join()
            assert requests.wrong == []
            assert running.node.l7.stats()["NO_RULE"] >= requests.answers
            assert {each["what"]: each["count"] for each in shown(pins, "stats")} == running.node.l7.stats()
            until(lambda: [each["rule"] for each in shown(pins, "rules")] == ["POST /charge"])
            assert "CiliumNetworkPolicy payments/payments" in shown(pins, "rules")[0]["for"]
            asked = ["explain", "--from", str(client.address), "--to", f"{server.address}:{PORT}"]
            ran = CliRunner().invoke(app, [*asked, "--request", "GET /charge", "--pins", str(pins)])
            assert f"GET /charge is denied at the server {server.address}: no rule allows it." in ran.output
            (held,) = (each for each in shown(pins, "connections") if each["state"] == "read")
            assert (held["at"], held["server"]) == ("server", f"{server.address}:{PORT}")
            assert held["requests"] == held["responses"] > 0
            running.settle("/pay")
            assert say(requests.held, "POST /charge").startswith(b"HTTP/1.1 403")
            assert requests.held.recv(4096) == b""
    finally:
        requests.over.set()
        requests.join()
        requests.held.close()
    assert status(client, "POST", server.address) == "403"
    assert status(client, "POST", server.address, "/pay") == "200"
    pins.remove()
    until(lambda: status(client, "GET", server.address) == "200")


#: A path, and further rules, which are too many for one automaton.
MANY = '"}, {path: "'.join(["/charge", *(f".*word{n}/.*" for n in range(8))])


@pytest.mark.timeout(120)
@pytest.mark.parametrize(("path", "automata"), [("/charge", 1), (MANY, 2)], ids=["one automaton", "two"])
def test_the_same_rules_keep_their_numbers(
    place: tuple[Pod, Pod, dict[str, Any]], path: str, automata: int
) -> None:
    client, server, about = place
    pins = PinDir(about["pins"])
    with opened(about) as running:
        running.settle(path)
        before = numbers(pins)
        assert len(before) == 1 + automata  # and the common one
    with client.tcp(server.address, PORT, timeout=5) as kept:
        kept.sendall(b"POST /cha")
        with opened(about) as running:
            running.settle(path)
            assert numbers(pins) == before
            assert say(kept, "rge").startswith(b"HTTP/1.1 200")
            running.settle("/pay")
            assert say(kept, "POST /pay").startswith(b"HTTP/1.1 200")
            until(lambda: len(numbers(pins)) == 2)
    assert status(client, "POST", server.address, "/word3/") == "403"


@pytest.mark.timeout(120)
def test_other_sizes_end_the_connections_that_are_read(place: tuple[Pod, Pod, dict[str, Any]]) -> None:
    client, server, about = place
    with opened(about) as running:
        running.settle()
        with client.tcp(server.address, PORT, timeout=10) as kept:
            assert say(kept, "POST /charge").startswith(b"HTTP/1.1 200")
            running.node.resize(evolve(SMALL, pods=128, rules=4096))
            with pytest.raises(ConnectionResetError):
                kept.recv(4096)
        assert status(client, "POST", server.address) == "200"
        assert status(client, "GET", server.address) == "403"
