"""The agent as people run it: a process, on a node without any CNI, fed by manifests."""

from __future__ import annotations

import json
import re
import signal
import socket
from pathlib import Path
from typing import Any

import pytest
import yaml

from k8sdatapath.agent.options import OPTIONS
from tests.api.graph import ROOT
from tests.support.agents import (
    SMALL,
    WEB,
    Callers,
    NodeUnderTest,
    ask,
    in_cgroup,
    plugin,
    service,
    slices,
    write,
)

pytestmark = pytest.mark.timeout(300)


def test_pods_the_node_and_the_outside_reach_services(node: NodeUnderTest, manifests: Path) -> None:
    client = node.pod("client", 2)
    node.pod("web", 3)
    node.start()
    assert {ask(client, address) for address in ("10.96.0.10", "fd00:96::10")} == {"web"}
    assert {ask(node.outside, address, 30080) for address in node.addresses} == {"web"}
    with in_cgroup(node) as dial:
        assert [dial("10.96.0.10"), dial("fd00:96::10")] == ["web", "web"]
    assert json.loads(node.probe("healthz")[1])["status"] == "ok"

    late = node.pod("late", 4)  # pods come while it runs, and are clients and backends at once
    write(manifests, "web", [WEB, *slices("web", [(1, 4)])])
    node.until(lambda: ask(client, "10.96.0.10") == "late")
    node.until(lambda: any("10.1.1.4" in str(line.get("address")) for line in node.log))
    node.until(lambda: ask(late, "fd00:96::10") == "late")

    status, metrics = node.probe("metrics")
    assert status == 200
    told = dict(re.findall(r"^(\w+)(?:\{[^}]*\})? ([0-9.e+]+)$", metrics, re.MULTILINE))
    assert float(told["k8sdatapath_services"]) == 2
    assert 'k8sdatapath_pod_addresses{state="attached"} 6.0' in metrics
    assert 'k8sdatapath_packets_total{drop="false",outcome="to_pod"}' in metrics
    assert 'k8sdatapath_map_capacity{map="kd_frontends"} 256.0' in metrics
    assert "kubeproxy_network_programming_duration_seconds_bucket" in metrics

    assert node.stop() == 0
    assert "stopping; the datapath goes on" in node.messages()
    assert ask(client, "10.96.0.10") == "late"
    assert ask(node.outside, "192.0.2.11", 30080) == "late"


def test_killed_and_started_again_under_traffic(node: NodeUnderTest, manifests: Path) -> None:
    client = node.pod("client", 2)
    node.pod("web", 3)
    node.pod("other", 4)
    node.start()
    with Callers(client, "10.96.0.10") as inside, Callers(node.outside, "192.0.2.11", 30080) as outside:
        for endpoints in ([(1, 4)], [(1, 3), (1, 4)], [(1, 3)]):
            node.stop(signal.SIGKILL)
            write(manifests, "web", [WEB, *slices("web", endpoints)])
            made = inside.made
            node.until(lambda made=made: inside.made > made + 20)  # nobody runs, and it goes on
            node.start()
        expected = "web"
        node.until(lambda: ask(client, "10.96.0.10") == expected)
        made = outside.made
        node.until(lambda: outside.made > made + 20)
    assert (inside.failures, outside.failures) == ([], [])


def test_a_graceful_stop_leaves_it_and_cleanup_takes_all_of_it(node: NodeUnderTest) -> None:
    client = node.pod("client", 2)
    node.pod("web", 3)
    node.start()
    refused = node.cleanup()
    assert refused.returncode == 1
    assert re.search(r"process \d+ has it", refused.stderr)
    assert node.stop(signal.SIGINT) == 0
    assert ask(client, "10.96.0.10") == "web"
    done = node.cleanup()
    assert done.returncode == 0, done.stderr
    assert "from_uplink-eth0" in done.stdout
    assert not node.pins.path.exists()
    with pytest.raises(OSError, match=r"timed out|route|unreachable|refused"):
        ask(client, "10.96.0.10", timeout=0.5)
    again = node.cleanup()
    assert (again.returncode, again.stdout) == (0, "none\n")


def test_cleanup_takes_nothing_that_an_agent_has_not_made(node: NodeUnderTest, tmp_path: Path) -> None:
    directory = tmp_path / "directory"
    directory.mkdir()
    file = directory / "file"
    file.write_text("precious")
    node.arguments.remove("--pod-device-pattern=v*")
    for path in (directory, file):  # a word too few, or too many
        done = node.cleanup(f"--cni-socket={path}")
        assert (done.returncode, done.stdout) == (0, "none\n"), done.stderr
    assert file.read_text() == "precious"
    other = directory / "containerd.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(other))
        listener.listen()
        assert node.cleanup(f"--cni-socket={other}").stdout == "none\n"
        assert other.is_socket()
    assert str(other) in node.cleanup(f"--cni-socket={other}").stdout  # as one that was killed leaves it


def test_what_keeps_it_from_being_ready_is_told(node: NodeUnderTest, manifests: Path) -> None:
    (manifests / "bad.yaml").write_text("a: [")
    node.launch()
    node.until(lambda: any("bad.yaml: line 2" in each for each in node.messages()))
    assert node.probe("readyz")[0] == 503
    assert 'k8sdatapath_objects_wrong{kind="File"} 1.0' in node.probe("metrics")[1]
    (manifests / "bad.yaml").unlink()
    node.until(lambda: node.probe("readyz")[0] == 200)


def test_a_second_agent_of_one_directory_is_refused(node: NodeUnderTest) -> None:
    node.start()
    first, node.process = node.process, None
    try:
        node.launch("--log-format=text")
        assert node.process is not None
        assert node.process.wait(60) == 1
        node.until(lambda: any(f"process {first.pid} has it" in each for each in node.messages()))
    finally:
        node.process = first


def test_pins_of_another_version_are_refused_and_go_on(node: NodeUnderTest) -> None:
    client = node.pod("client", 2)
    node.pod("web", 3)
    node.start()
    node.stop()
    node.pins.map_path("kd_counters").rename(node.pins.map_path("kd_affinity"))  # another value, as it were
    pinned = node.pins.links, node.pins.maps
    node.launch()
    assert node.process is not None
    assert node.process.wait(60) == 1
    node.until(lambda: any("It was made by another version" in each for each in node.messages()))
    assert any("--cleanup" in each for each in node.messages())
    assert (node.pins.links, node.pins.maps) == pinned
    assert ask(client, "10.96.0.10") == "web"
    assert node.cleanup().returncode == 0
    node.start()
    assert ask(client, "10.96.0.10") == "web"


def test_where_a_plugin_tells_of_pods_none_are_looked_for(node: NodeUnderTest) -> None:
    client = node.pod("client", 2)
    node.pod("web", 3)
    socket_path = node.config.with_name("cni.sock")
    node.arguments = [each for each in node.arguments if not each.startswith("--pod-device-pattern")]
    node.start(f"--cni-socket={socket_path}")
    assert not any(link.startswith("from_pod") for link in node.pins.links)
    plugin(node, socket_path, "client", 2)
    assert ask(client, "10.96.0.10") == "web"
    node.stop(signal.SIGKILL)
    assert ask(client, "10.96.0.10") == "web"
    node.start(f"--cni-socket={socket_path}")
    assert ask(client, "10.96.0.10") == "web"
    node.stop()
    done = node.cleanup(f"--cni-socket={socket_path}")
    assert done.returncode == 0, done.stderr
    assert list(socket_path.parent.iterdir()) == [node.config]


def test_what_is_wrong_is_told_and_what_was_right_goes_on(node: NodeUnderTest, manifests: Path) -> None:
    client = node.pod("client", 2)
    node.pod("web", 3)
    node.start()
    bad = service("bad", "10.96.0.11", "fd00:96::11")
    bad["spec"]["ports"][0]["port"] = 70000
    write(manifests, "bad", [bad])
    node.until(lambda: any("70000 is not a port" in each for each in node.messages()))
    assert ask(client, "10.96.0.10") == "web"
    assert 'k8sdatapath_objects_wrong{kind="File"} 1.0' in node.probe("metrics")[1]
    (manifests / "bad.yaml").unlink()
    node.until(lambda: 'objects_wrong{kind="File"}' not in node.probe("metrics")[1])


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ([], {}, "not in a cluster"),
        (["--kubeconfig=/nonexistent"], {}, "/nonexistent"),
        (["--source=/tmp"], {"uplinks": ["nosuch"]}, "nosuch"),
        (["--source=/tmp"], {"uplinks": ["lo"], "loadBalancer": {"acceleration": "native"}}, "native XDP"),
    ],
)
def test_an_agent_that_cannot_start_leaves_nothing(
    source: list[str], options: dict[str, Any], message: str
) -> None:
    with NodeUnderTest(source, **options) as node:
        if "uplinks" in options:
            node.arguments.remove("--uplink=eth0")
        node.launch()
        assert node.process is not None
        assert node.process.wait(60) == 1
        node.until(lambda: any(message in each for each in node.messages()))
        assert {"level", "message"} < node.log[-1].keys()  # to its end a program can read it
        assert message in node.log[-1]["message"]
        assert not node.pins.path.exists()


def test_a_hangup_changes_how_much_is_told(node: NodeUnderTest) -> None:
    node.start()
    node.tell_again(log={"level": "debug"})
    node.probe("livez")
    node.until(lambda: any(line.get("level") == "debug" for line in node.log))
    node.tell_again(writeEvents=True, socketLB={"enabled": False})
    node.until(
        lambda: any("needs a new start: socketLB.enabled, writeEvents" in each for each in node.messages())
    )
    node.config.write_text("nosuch: 1")
    assert node.process is not None
    node.process.send_signal(signal.SIGHUP)
    node.until(lambda: any("nosuch: unknown" in each for each in node.messages()))
    assert node.probe("readyz")[0] == 200


def test_a_hangup_makes_room_for_services_and_what_did_not_fit_was_told(
    node: NodeUnderTest, manifests: Path
) -> None:
    client = node.pod("client", 2)
    node.pod("web", 3)
    node.start()
    many = [service(f"s{n}", f"10.96.1.{n}", f"fd00:96:1::{n}") for n in range(1, 200)]
    write(manifests, "many", many)
    node.until(lambda: node.probe("readyz")[0] == 503)
    finding = json.loads(node.probe("readyz")[1])["checks"]["all services"]
    assert re.search(r"^\d+ not in the kernel as wanted, such as .* too many", finding)
    assert node.probe("healthz")[0] == 200  # a load balancer goes on: what fits is served
    assert re.search(r"^k8sdatapath_services_failed [1-9]", node.probe("metrics")[1], re.MULTILINE)
    with Callers(client, "10.96.0.10") as callers:
        node.tell_again(capacity={**SMALL, "services": 1024})
        node.until(lambda: node.probe("readyz")[0] == 200)
        node.tell_again(capacity=SMALL)
        node.until(lambda: any("tables keep their sizes" in each for each in node.messages()))
    assert callers.failures == []
    assert 'k8sdatapath_map_capacity{map="kd_frontends"} 1024.0' in node.probe("metrics")[1]
    assert "k8sdatapath_services_failed 0.0" in node.probe("metrics")[1]


def test_capabilities_in_deploy_are_enough(node: NodeUnderTest) -> None:
    documents = yaml.safe_load_all((ROOT / "deploy/base/daemonset.yaml").read_text())
    (container,) = next(documents)["spec"]["template"]["spec"]["containers"]
    names = container["securityContext"]["capabilities"]["add"]
    bounding = ",".join(["-all", *(f"+{name.lower()}" for name in names)])
    client = node.pod("client", 2)
    node.pod("web", 3)
    node.start(wrapper=["setpriv", f"--bounding-set={bounding}", "--no-new-privs"])
    assert ask(client, "10.96.0.10") == "web"
    with in_cgroup(node) as dial:
        assert dial("10.96.0.10") == "web"
    assert node.stop() == 0


def test_every_flag_is_told_in_the_reference() -> None:
    reference = (ROOT / "docs/reference/agent.md").read_text()
    for word, option in OPTIONS.items():
        if option.flag:
            assert re.search(rf"^\| `--.*`{re.escape(word)}`", reference, re.MULTILINE), word
