"""An agent whose node has sockets skip the stack: for services that come and go, and through a kill."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from k8sdatapath import Accelerated
from k8sdatapath.datapath.socket_accelerator import SocketAccelerator
from k8sdatapath.net.netns import NetNs
from tests.support.agents import NodeUnderTest, service, slices, write

pytestmark = [pytest.mark.lab, pytest.mark.timeout(300)]

VIP, POD = "10.96.0.10", "10.1.1.3"
ECHO = """
import socket
listener = socket.create_server(("", 8080))
print("ready", flush=True)
while True:
    client, _ = listener.accept()
    while said := client.recv(99):
        client.sendall(said)
    client.close()
"""
SAY = f"""
import socket, sys
server = socket.create_connection(("{VIP}", 80))
for line in sys.stdin.buffer:
    server.sendall(line)
    print(server.recv(99).decode().strip(), flush=True)
"""


@contextmanager
def inside(node: NodeUnderTest, netns: NetNs, code: str) -> Iterator[subprocess.Popen[str]]:
    """A program in a pod, and in the cgroup of the node's."""
    shell = ["/bin/sh", "-c", 'echo 0 > "$0" && exec "$@"', f"{node.cgroup.path}/cgroup.procs"]
    command, pipe = [*shell, sys.executable, "-c", code], subprocess.PIPE
    with netns.call(lambda: subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)) as process:
        try:
            yield process
        finally:
            process.kill()


def said(process: subprocess.Popen[str], text: str = "") -> str:
    """What it prints, once it was told something."""
    assert process.stdin is not None
    assert process.stdout is not None
    if text:
        process.stdin.write(f"{text}\n")
        process.stdin.flush()
    return process.stdout.readline().strip()


def test_services_are_accelerated_by_name_through_changes_and_kills(tmp_path: Path) -> None:
    write(tmp_path, "web", [service("web", VIP, "fd00:96::10"), *slices("web", [(1, 3)])])
    chosen = {"services": ["shop/web", "shop/late"]}
    with NodeUnderTest([f"--source={tmp_path}"], socketAcceleration=chosen) as node:
        pods = []
        for name, last in (("client", 2), ("web", 3)):
            pods.append(node.wires.namespace(name))
            mac = f"02:00:00:00:01:{last:02x}"
            node.wires.routed(f"v{name}", pods[-1], f"10.1.1.{last}/32", f"fd00:1:1::{last}/128", mac=mac)
        node.start()
        with inside(node, pods[1], ECHO) as server, SocketAccelerator.bind(node.pins) as accelerator:
            assert said(server) == "ready"
            node.until(lambda: Accelerated(VIP, 80) in accelerator.accelerated)  # which follows the service
            with inside(node, pods[0], SAY) as client:
                assert said(client, "hello") == "hello"
                (pair,) = accelerator.pairs()
                assert str(pair.dialled) == f"{VIP}:80"
                assert (str(pair.server.peer), pair.client.messages) == (f"{POD}:8080", 1)

                late = [service("late", "10.96.0.11", "fd00:96::11"), *slices("late", [(1, 3)])]
                write(tmp_path, "late", late)
                node.until(lambda: Accelerated("fd00:96::11", 80) in accelerator.accelerated)
                (tmp_path / "late.yaml").unlink()
                node.until(lambda: Accelerated("fd00:96::11", 80) not in accelerator.accelerated)

                node.stop(signal.SIGKILL)
                assert said(client, "nobody") == "nobody"
                node.start()
                assert said(client, "somebody") == "somebody"
                (pair,) = accelerator.pairs()
                assert (pair.client.messages, pair.client.others) == (3, 0)

                node.stop()
                options = json.loads(node.config.read_text())
                del options["socketAcceleration"]
                node.config.write_text(json.dumps(options))
                node.start()
                assert said(client, "by the stack") == "by the stack"
                assert list(accelerator.pairs()) == []
