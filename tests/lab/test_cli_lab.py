"""The command line against real packets."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from k8sdatapath import Lab, PinDir, maps
from k8sdatapath.lab import Pod
from k8sdatapath.lab.client import Response
from k8sdatapath.layout import addr
from k8sdatapath.tables.endpoints import EndpointRow
from tests.api.graph import ROOT
from tests.lab.remains import nobody_else_sweeps

pytestmark = pytest.mark.lab

COMMAND = [sys.executable, "-W", "error", "-m", "k8sdatapath.cli"]
MANIFESTS = ROOT / "examples" / "manifests"
WEB = "10.96.0.10:80/TCP"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments], capture_output=True, text=True, check=False, timeout=60, cwd=ROOT
    )


def test_demo_loses_no_request_while_a_pod_leaves() -> None:
    ended = run("lab", "demo", "--seconds", "3", "-o", "json")
    assert ended.returncode == 0, ended.stderr
    summary = json.loads(ended.stdout)
    assert summary["requests"] > 500
    assert summary["removed"] == "web-3"
    assert {name: summary[name] for name in ("failed", "late", "opened", "kept")} == {
        "failed": 0,
        "late": 0,
        "opened": 4,
        "kept": 4,
    }
    assert "- shop/web" not in ended.stderr
    assert "~ shop/web:http (10.96.0.10:80/TCP): -10.244.1.5:8080" in ended.stderr


def test_demo_refuses_backends_that_no_pod_can_be(tmp_path: Path) -> None:
    text = (MANIFESTS / "web.yaml").read_text()
    (tmp_path / "web.yaml").write_text(text.replace("10.244.1.4", "10.9.9.9"))
    ended = run("lab", "demo", "--manifests", str(tmp_path))
    assert ended.returncode == 1
    assert ended.stderr.startswith("error: the manifests name 10.9.9.9 as a backend")
    assert ended.stderr.count("\n") == 1


def test_demo_ends_cleanly_with_ctrl_c() -> None:
    with subprocess.Popen(
        [*COMMAND, "lab", "demo", "--seconds", "60"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if b"requests, 0 failed" in line:
                break
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (130, b"")


@pytest.mark.alone  # else others' labs may just have been killed
def test_lab_clean_finds_nothing_where_nothing_is_left() -> None:
    with nobody_else_sweeps():
        ended = run("lab", "clean", "-o", "json")
    assert (ended.returncode, ended.stdout) == (0, "[]\n")


class Cluster:
    """A lab whose node has no datapath: the command line is to make it one."""

    def __init__(self, lab: Lab, directory: Path, pins: PinDir) -> None:
        self.lab, self.directory, self.pins = lab, directory, pins
        self.client = lab.pod("client")
        self.web = [lab.pod(f"web-{number}") for number in (1, 2, 3)]
        for pod in self.web:
            pod.serve_http(8080, pod.name)

    def command(self, *arguments: str) -> list[str]:
        hooks = [
            f"--pod-device={pod.device}={pod.mac},{pod.address},{pod.address6}" for pod in self.lab.node.pods
        ]
        return [*COMMAND, "apply", "-f", str(self.directory), "--pins", str(self.pins), *hooks, *arguments]

    def apply(self, *arguments: str) -> str:
        return self.lab.node.exec(self.command(*arguments), check=True, timeout=30).stdout

    def answers(self, client: Pod, requests: int = 40) -> set[str]:
        return {client.get("http://10.96.0.10").text for _ in range(requests)}

    def edit(self, old: str, new: str) -> None:
        """Change a manifest in one step, as editors and the kubelet do."""
        path = self.directory / "web.yaml"
        written = path.with_name(".web.yaml")
        written.write_text(path.read_text().replace(old, new))
        written.replace(path)

    def unready(self, address: str) -> None:
        """Say of one endpoint that it is not ready."""
        line = f"  - addresses: [{address}]\n    conditions: {{ready: "
        self.edit(f"{line}true}}", f"{line}false}}")


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    directory = Path(shutil.copytree(MANIFESTS, tmp_path / "manifests"))
    pins = PinDir(Path("/sys/fs/bpf") / f"k8sdatapath-{tmp_path.name}")
    with Lab.start(datapath=False) as lab:
        try:
            yield Cluster(lab, directory, pins)
        finally:
            pins.remove()


def test_applied_services_are_balanced_when_the_command_has_ended(cluster: Cluster) -> None:
    out = cluster.apply()
    assert "+ shop/web:http (10.96.0.10:80/TCP): 3 backends" in out
    assert "4 added, 0 changed, 0 removed" in out
    assert cluster.answers(cluster.client) == {"web-1", "web-2", "web-3"}

    pins = ["--pins", str(cluster.pins), "-o", "json"]
    listed = json.loads(run("services", "list", *pins).stdout)
    assert [row["frontend"] for row in listed][:2] == [WEB, "10.96.0.53:53/UDP"]
    backends = json.loads(run("services", "get", WEB, *pins).stdout)
    assert sum(row["flows"] for row in backends) == 40
    shares = json.loads(run("services", "resolve", WEB, *pins).stdout)
    assert [row["share"] for row in shares] == [0.3333] * 3

    unknown = run("services", "get", "10.96.0.11:80", *pins)
    assert unknown.returncode == 1
    assert unknown.stderr.count("\n") == 1


def test_sockets_of_a_cgroup_are_balanced(cluster: Cluster) -> None:
    cluster.apply("--cgroup", str(cluster.client.cgroup.path))
    assert cluster.answers(cluster.client) == {"web-1", "web-2", "web-3"}
    with cluster.client.tcp("10.96.0.10", 80) as sock:
        assert sock.getpeername() == ("10.96.0.10", 80)


def test_a_dry_run_changes_nothing(cluster: Cluster) -> None:
    plan = json.loads(cluster.apply("--dry-run", "-o", "json"))
    assert (len(plan["changes"]), plan["report"]) == (4, None)
    assert cluster.pins.maps == []
    cluster.apply()
    cluster.unready("10.244.1.5")
    assert "~ shop/web:http (10.96.0.10:80/TCP): ~10.244.1.5:8080" in cluster.apply("--dry-run")
    assert cluster.answers(cluster.client) == {"web-1", "web-2", "web-3"}


def test_a_first_apply_that_fails_leaves_nothing(cluster: Cluster) -> None:
    ended = cluster.lab.node.exec(cluster.command("--pod-device=none=02:00:00:00:00:01,10.244.1.99"))
    assert (ended.returncode, ended.stdout, ended.stderr.count("\n")) == (1, "", 1)
    assert not cluster.pins.path.exists()
    with pytest.raises(OSError, match="unreachable"):
        cluster.client.get("http://10.96.0.10")


def test_an_apply_that_fails_leaves_what_was_there(cluster: Cluster) -> None:
    cluster.apply()
    links, pods = cluster.pins.links, endpoints(cluster.pins)
    late = cluster.lab.pod("late")
    ended = cluster.lab.node.exec(cluster.command("--pod-device=none=02:00:00:00:00:01,10.244.1.99"))
    assert ended.returncode == 1
    assert (cluster.pins.links, endpoints(cluster.pins)) == (links, pods)
    assert late.address not in pods
    assert cluster.answers(cluster.client) == {"web-1", "web-2", "web-3"}


def endpoints(pins: PinDir) -> set[object]:
    """The addresses of the pods that the programs know."""
    with maps.bind(maps.Hash[addr, EndpointRow], pins.open_map("kd_endpoints"), owned=True) as known:
        return set(known)


def test_manifests_that_cannot_be_read_change_nothing(cluster: Cluster) -> None:
    cluster.apply()
    cluster.edit("port: 80\n", "port: 70000\n")
    ended = cluster.lab.node.exec(cluster.command(), timeout=30)
    assert ended.returncode == 1
    assert "70000" in ended.stderr
    assert ended.stderr.count("\n") == 1
    assert cluster.answers(cluster.client) == {"web-1", "web-2", "web-3"}


def test_watch_follows_the_files_survives_a_bad_one_and_has_one_writer(cluster: Cluster) -> None:
    with (
        cluster.lab.node.popen(
            cluster.command("--watch"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process,
        ExitStack() as stack,
    ):
        stack.callback(process.kill)
        assert process.stdout is not None
        assert process.stderr is not None
        until(process.stdout, "4 added")
        cluster.edit("port: 80\n", "port: 0\n")
        assert "error: " in until(process.stderr, "web.yaml")
        assert cluster.answers(cluster.client) == {"web-1", "web-2", "web-3"}
        cluster.edit("port: 0\n", "port: 80\n")
        cluster.unready("10.244.1.5")
        until(process.stdout, "1 changed")
        assert cluster.answers(cluster.client) == {"web-1", "web-2"}
        second = cluster.lab.node.exec(cluster.command())
        assert (second.returncode, second.stdout) == (1, "")
        assert f"process {process.pid} has it" in second.stderr
        assert " as wanted" in cluster.apply("--dry-run")
        assert run("services", "get", WEB, "--pins", str(cluster.pins)).returncode == 0
        assert run("ct", "list", "--pins", str(cluster.pins)).returncode == 0
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 130


EXPOSED = """
apiVersion: v1
kind: Service
metadata: {name: shop, namespace: shop}
spec:
  type: LoadBalancer
  clusterIPs: [10.96.0.80]
  externalIPs: [198.51.100.80]
  externalTrafficPolicy: Local
  healthCheckNodePort: 32000
  ports: [{name: http, port: 80, nodePort: 30080}]
status: {loadBalancer: {ingress: [{ip: 203.0.113.80}]}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: shop-1, namespace: shop, labels: {kubernetes.io/service-name: shop}}
addressType: IPv4
ports: [{name: http, port: 8080}]
endpoints:
  - {addresses: [10.244.1.3], nodeName: n1, conditions: {ready: true}}
  - {addresses: [10.244.1.4], nodeName: n2, conditions: {ready: true}}
"""


def test_a_node_with_a_name_has_all_frontends_and_answers_health_checks(cluster: Cluster) -> None:
    (cluster.directory / "web.yaml").write_text(EXPOSED)
    (cluster.directory / "names.yaml").unlink()
    visitor, node = cluster.lab.external("visitor"), cluster.lab.node
    options = ["--uplink", "eth0", "--node-name", "n1", "--watch"]
    with (
        node.popen(
            cluster.command(*options), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process,
        ExitStack() as stack,
    ):
        stack.callback(process.kill)
        assert process.stdout is not None
        until(process.stdout, "1 added")
        assert visitor.get(f"http://{node.address}:30080").text == "web-1"
        assert visitor.get("http://203.0.113.80").text == "web-1"
        assert visitor.get("http://198.51.100.80").text == "web-1"
        assert {cluster.client.get("http://10.96.0.80").text for _ in range(40)} == {"web-1", "web-2"}
        health = eventually(lambda: visitor.get(f"http://{node.address}:32000"))
        assert (health.status, json.loads(health.text)["localEndpoints"]) == (200, 1)
        cluster.edit("nodeName: n1, conditions: {ready: true}", "nodeName: n1, conditions: {ready: false}")
        until(process.stdout, "1 changed")
        eventually(lambda: visitor.get(f"http://{node.address}:32000"), lambda answer: answer.status == 503)
        cluster.pins.remove()
        cluster.edit("ready: false", "ready: true")
        assert process.wait(timeout=30) == 1
        assert process.stderr is not None
        assert "removed: start again" in process.stderr.read()


def test_what_a_node_has_is_of_use_with_its_name_only(cluster: Cluster) -> None:
    for option in (["--node-zone", "z1"], ["--node-address", "192.0.2.1"], ["--node-port-networks", "::/0"]):
        ended = cluster.lab.node.exec(cluster.command(*option))
        assert (ended.returncode, "with --node-name only" in ended.stderr) == (2, True)


def test_node_ports_are_where_they_are_wanted(cluster: Cluster) -> None:
    (cluster.directory / "web.yaml").write_text(EXPOSED)
    cluster.apply("--node-name", "n1", "--node-port-networks", "2001:db8::/32")
    listed = run("services", "list", "--pins", str(cluster.pins)).stdout
    assert "203.0.113.80:80/TCP" in listed
    assert ":30080" not in listed
    said = cluster.lab.node.exec(cluster.command("--node-name", "n1", "--node-address", "192.0.2.77"))
    assert said.stderr == "note: health check node ports are answered under --watch only\n"
    assert "192.0.2.77:30080/TCP" in run("services", "list", "--pins", str(cluster.pins)).stdout


def eventually(ask: Callable[[], Response], wanted: Callable[[Response], bool] = bool) -> Response:
    """What is answered once it is as wanted."""
    deadline = time.monotonic() + 10
    while True:
        with suppress(OSError):
            answer = ask()
            if wanted(answer):
                return answer
        assert time.monotonic() < deadline
        time.sleep(0.02)


def until(lines: Iterator[str], wanted: str) -> str:
    deadline = time.monotonic() + 30
    for line in lines:
        if wanted in line:
            return line
        assert time.monotonic() < deadline
    raise AssertionError(f"ended without {wanted!r}")
