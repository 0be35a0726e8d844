"""An agent that follows an API server: what it does of what is told, and without anybody who tells."""

from __future__ import annotations

import json
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from k8sdatapath.net.netns import NetNs
from tests.api.graph import ROOT
from tests.support.agents import WEB, Callers, NodeUnderTest, ask, service, slices
from tests.support.api_double import ApiDouble
from tests.support.api_requests import Query, Refusal
from tests.support.chaos import SECONDS
from tests.support.policed import a_pod

pytestmark = pytest.mark.timeout(300)


def a_client(node: NodeUnderTest, api: ApiDouble) -> NetNs:
    """A pod, beside that of the service it dials."""
    api.put("services", WEB)
    for each in slices("web", [(1, 3)]):
        api.put("endpointslices", each)
    node.pod("web", 3)
    return node.pod("client", 2)


def test_a_cluster_is_followed(followed: tuple[NodeUnderTest, ApiDouble]) -> None:
    node, api = followed
    client = node.pod("client", 2)
    node.pod("web", 3)
    node.pod("other", 4)
    api.put("services", WEB)
    for each in slices("web", [(1, 3)]):
        api.put("endpointslices", each)
    node.start()
    assert ask(client, "10.96.0.10") == "web"
    assert ask(node.outside, "192.0.2.11", 30080) == "web"
    for each in slices("web", [(1, 4)]):
        api.put("endpointslices", each)
    node.until(lambda: ask(client, "fd00:96::10") == "other")

    reference = (ROOT / "docs/reference/agent.md").read_text()
    families = re.findall(r"^# TYPE ((?:k8sdatapath|kubeproxy)_\w+)", node.probe("metrics")[1], re.MULTILINE)
    assert len(families) > 15
    assert [name for name in families if f"| `{name.removesuffix('_created')}" not in reference] == []

    api.put("pods", a_pod("lost", 99, addresses=["10.1.1.99"]))
    node.until(lambda: any("not in the datapath: no route leads to it" in each for each in node.messages()))
    assert 'k8sdatapath_pod_addresses{state="not_found"} 1.0' in node.probe("metrics")[1]
    node.pod("lost", 99)
    node.until(lambda: 'state="not_found"} 0.0' in node.probe("metrics")[1])

    node.stop(signal.SIGKILL)
    api.put("services", service("late", "10.96.0.12", "fd00:96::12"))
    for each in slices("late", [(1, 3)]):
        api.put("endpointslices", each)
    api.delete("services", "shop", "web")
    assert ask(client, "10.96.0.10") == "other"  # nobody knows yet that it has gone
    node.start()
    assert ask(client, "10.96.0.12") == "web"
    with pytest.raises(OSError, match=r"timed out|route|unreachable|refused"):
        ask(client, "10.96.0.10", timeout=0.5)


def test_what_was_recorded_can_be_played_back(
    followed: tuple[NodeUnderTest, ApiDouble], tmp_path: Path
) -> None:
    node, api = followed
    client = a_client(node, api)
    recording = tmp_path / "cluster.jsonl"
    node.start(f"--record={recording}")
    node.stop()
    assert node.cleanup().returncode == 0
    api.down()
    node.arguments = [each for each in node.arguments if not each.startswith("--kubeconfig")]
    node.start(f"--replay={recording}")
    assert ask(client, "10.96.0.10") == "web"


def test_events_tell_what_is_wrong_with_objects(followed: tuple[NodeUnderTest, ApiDouble]) -> None:
    node, api = followed
    node.config.write_text(json.dumps({**json.loads(node.config.read_text()), "writeEvents": True}))
    node.start()
    bad = service("bad", "10.96.0.11", "fd00:96::11")
    bad["spec"]["ports"][0]["port"] = 70000
    api.put("services", bad)
    node.until(lambda: api.written)
    (method, path, told), *_ = api.written
    assert (method, path) == ("POST", "/api/v1/namespaces/shop/events")
    assert "70000 is not a port" in told["message"]
    assert told["involvedObject"]["name"] == "bad"
    assert node.stop() == 0


def test_a_server_that_is_away_changes_nothing(followed: tuple[NodeUnderTest, ApiDouble]) -> None:
    node, api = followed
    client = a_client(node, api)
    node.start()
    api.down()
    node.stop()
    node.launch()
    node.until(lambda: node.probe("livez")[0] == 200)
    assert node.probe("readyz")[0] == 503
    assert ask(client, "10.96.0.10") == "web"
    assert ask(node.outside, "192.0.2.11", 30080) == "web"
    node.wires.node.call(api.up)
    node.until(lambda: node.probe("readyz")[0] == 200)
    assert ask(client, "10.96.0.10") == "web"


def storm(api: ApiDouble) -> None:
    """Every watch is told that its version is gone, and every list that there are too many."""

    def refuse(query: Query) -> None:
        raise Refusal(410, "Expired") if query.watch else Refusal(429, "TooManyRequests", retry_after=1)

    api.refuse = refuse
    api.compact()
    api.cut()


def gone_forever(api: ApiDouble) -> None:
    """Lists are answered, and no watch is."""

    def refuse(query: Query) -> None:
        if query.watch:
            raise Refusal(410, "Expired")

    api.refuse = refuse
    api.cut()


@pytest.mark.timeout(SECONDS + 200)
@pytest.mark.parametrize("fault", [ApiDouble.down, storm, gone_forever, ApiDouble.stall])
def test_a_server_that_is_away_for_long_costs_neither_traffic_nor_cpu(
    followed: tuple[NodeUnderTest, ApiDouble], fault: Callable[[ApiDouble], object]
) -> None:
    node, api = followed
    client = node.pod("client", 2)
    node.pod("web", 3)
    node.pod("other", 4)
    api.put("services", WEB)
    api.put("services", service("gone", "10.96.0.11", "fd00:96::11"))
    for each in slices("web", [(1, 3)]):
        api.put("endpointslices", each)
    node.start()
    seconds = SECONDS / 4
    with (
        Callers(client, "10.96.0.10", pause=0.01) as inside,
        Callers(node.outside, "192.0.2.11", 30080, pause=0.01) as outside,
    ):
        fault(api)
        used, made, asked = node.cpu(), inside.made, len(api.requests)
        time.sleep(seconds)
        used, made, asked = node.cpu() - used, inside.made - made, len(api.requests) - asked
        print(f"{used:.2f} s of CPU, {made} connections, {asked} requests in {seconds:.0f} s")
        assert node.probe("livez")[0] == 200
        api.delete("services", "shop", "gone")
        for each in slices("web", [(1, 4)]):
            api.put("endpointslices", each)
        api.compact()  # and nobody can tell what has happened meanwhile
        api.refuse = lambda query: None
        api.stall(False)
        if fault is ApiDouble.down:
            node.wires.node.call(api.up)
        node.until(lambda: ask(client, "10.96.0.10") == "other")
        node.until(lambda: "k8sdatapath_services 2.0" in node.probe("metrics")[1])
    assert (inside.failures, outside.failures) == ([], [])
    assert made > 20
    assert used < 0.05 * seconds + 0.2
    assert asked < 200


def test_rights_in_deploy_are_what_is_asked_for(followed: tuple[NodeUnderTest, ApiDouble]) -> None:
    node, api = followed
    node.start()
    node.until(lambda: {query.plural for query in api.requests if query.watch} >= {"services", "pods"})
    node.until(lambda: len({query.plural for query in api.requests if query.watch}) == 4)
    asked = {
        (query.api.rpartition("/")[0], query.plural, "watch" if query.watch else "list")
        for query in api.requests
    }
    (role,) = (
        each
        for each in yaml.safe_load_all((ROOT / "deploy/base/rbac.yaml").read_text())
        if each["kind"] == "ClusterRole"
    )
    allowed = {
        (group, resource, verb)
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    assert asked == allowed
