"""What becomes of accelerated connections while a node changes, or has no process."""

from __future__ import annotations

import json
import secrets
import select
import socket
from collections.abc import Iterator

import pytest
from attrs import evolve
from typer.testing import CliRunner

from k8sdatapath import Accelerated, Lab, Service
from k8sdatapath.cli.app import app
from k8sdatapath.datapath.socket_accelerator import SocketAccelerator
from k8sdatapath.errors import LabError, ModelError
from k8sdatapath.lab.lab import LabNode
from k8sdatapath.node import Node, NodeConfig
from k8sdatapath.pins import PinDir
from tests.api.graph import ROOT
from tests.lab.test_docs import blocks, run, without_numbers
from tests.support.acceleration import SMALL, choose, pair, pod
from tests.support.connections import connected, dial, listen, read

pytestmark = pytest.mark.lab

VIP = "10.96.0.10"


def test_flows_that_skip_the_stack_are_not_forgotten(node: LabNode) -> None:
    """Those who translate packets hear of none for longer than they wait; then both ends say farewell."""
    client, web = pod(node, "client"), pod(node, "web")
    with listen(web) as listener:
        node.services.upsert(Service(VIP, 80, backends=[web.at(listener.getsockname()[1])]))
        made = dial(client, listener, VIP, 80)
        with made:
            for _ in range(14):  # for longer than 2 s, and a second that has begun
                made.say(b"still here")
                select.select([], [], [], 0.25)
            made.client.shutdown(socket.SHUT_WR)
            assert made.server.recv(1) == b""
            made.server.shutdown(socket.SHUT_WR)
            assert made.client.recv(1) == b""


def test_connections_go_on_while_tables_are_resized() -> None:
    with Lab.start(capacity=SMALL, policy=True, accelerate=True) as lab:
        node, client, web = lab.node, lab.pod("client"), lab.pod("web")
        choose(node, Accelerated("10.0.0.0/8"))
        with connected(client, web) as made:
            made.say(b"before")
            node.datapath.resize(evolve(SMALL, flows=8192))
            assert not list(node.accelerator.pairs())
            made.say(b"after")
        with connected(client, web) as made:
            made.say(b"and new ones")
            assert pair(node).client.messages == 1
            assert node.accelerator.release() == 1
            made.say(b"by the stack")


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
