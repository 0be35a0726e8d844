"""An agent that holds requests to the policies of its cluster, without a proxy, killed or not."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from k8sdatapath.cli.app import app
from k8sdatapath.kube.policy.reading import VISIBLE
from k8sdatapath.net.netns import NetNs
from tests.lab.test_hubble import observed
from tests.lab.test_l7_policies import SEED
from tests.support.agents import NodeUnderTest
from tests.support.api_double import ApiDouble
from tests.support.policed import a_pod, put_pod, served

pytestmark = pytest.mark.lab

API = "10.1.1.3"
SERVER = """
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_POST(self):
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()
    do_GET = do_POST
ThreadingHTTPServer(("", 8081), Handler).serve_forever()
"""


@contextmanager
def serving(node: NodeUnderTest, pod: NetNs) -> Iterator[None]:
    """A server of HTTP in a pod, whose sockets are those of the node's cgroup."""
    shell = 'echo 0 > "$0" && exec "$@"'
    inside = ["ip", "netns", "exec", pod.name, sys.executable, "-c", SERVER]
    command = ["/bin/sh", "-c", shell, f"{node.cgroup.path}/cgroup.procs", *inside]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as server:
        try:
            yield
        finally:
            server.kill()


def status(client: NetNs, method: str, path: str = "/charge") -> str:
    url = f"http://{API}:8081{path}"
    curl = ["curl", "-s", "-m", "3", "-o", "/dev/null", "-w", "%{http_code}", "-X", method, url]
    return client.call(subprocess.run, curl, capture_output=True, text=True, check=False).stdout


def both(client: NetNs) -> tuple[str, str]:
    return status(client, "POST"), status(client, "GET")


def put(api: ApiDouble, text: str) -> None:
    api.put("ciliumnetworkpolicies", yaml.safe_load(text.replace('"8080"', '"8081"')))


def test_requests_are_held_to_policies_of_the_cluster(tmp_path: Path) -> None:
    with served(tmp_path, l7Proxy=True) as (node, api):
        api.kinds["cilium.io/v2", "ciliumnetworkpolicies"] = "CiliumNetworkPolicy"
        for namespace in ("payments", "frontend"):
            api.put("namespaces", {"metadata": {"name": namespace}})
        for name, app, namespace, last in (
            ("client", "checkout-service", "frontend", 2),
            ("web", "payments-api", "payments", 3),
        ):
            pod = a_pod(name, last, app=app)
            api.put("pods", {**pod, "metadata": {**pod["metadata"], "namespace": namespace}})
        client, server = node.pod("client", 2), node.pod("web", 3)
        put(api, SEED)
        with serving(node, server):
            node.start()
            node.until(lambda: both(client) == ("200", "403"))
            node.stop(signal.SIGKILL)
            assert both(client) == ("200", "403")  # nobody is there
            put(api, SEED.replace("/charge", "/pay"))
            node.start()
            node.until(lambda: both(client) == ("403", "403"))
            assert status(client, "POST", "/pay") == "200"
            node.stop()
            assert node.cleanup().returncode == 0
            assert both(client) == ("200", "200")


def seen(where: Path) -> list[tuple[str, str]]:
    """Method and verdict of the requests that Hubble tells."""
    found = observed(f"observe --last 100 --protocol http -o json --server unix://{where}")
    requests = [each["flow"] for each in found if each["flow"]["l7"]["type"] == "REQUEST"]
    return [(each["l7"]["http"]["method"], each["verdict"]) for each in requests]


def told(api: ApiDouble) -> list[str]:
    """What Events say of pods."""
    about = ((body.get("involvedObject", {}), body) for _, _, body in api.written)
    return [body["message"] for whom, body in about if whom.get("kind") == "Pod"]


def only_seen(node: NodeUnderTest) -> set[str]:
    result = CliRunner().invoke(app, ["l7", "rules", f"--pins={node.pins.path}", "-o", "json"])
    return {each for row in json.loads(result.stdout) for each in row["only seen"].split("; ") if each}


def test_requests_to_annotated_pods_are_seen_and_held_to_nothing(tmp_path: Path) -> None:
    """One that says what cannot be is told, and takes nothing away from its pod."""
    socket = tmp_path / "hubble.sock"
    hubble = {"enabled": True, "socketPath": str(socket)}
    with served(tmp_path, l7Proxy=True, hubble=hubble, writeEvents=True) as (node, api):

        def annotate(text: str | None) -> None:
            web = a_pod("web", 3)
            metadata = {**web["metadata"], "annotations": {} if text is None else {VISIBLE[0]: text}}
            api.put("pods", {**web, "metadata": metadata})

        put_pod(api, "client", 2)
        annotate("<Ingress/8081/TCP/HTTP>,<Egress/53/UDP/DNS>")
        client, server = node.pod("client", 2), node.pod("web", 3)
        with serving(node, server):
            node.start()
            node.until(lambda: both(client) == ("200", "200"))
            node.until(lambda: ("GET", "FORWARDED") in seen(socket))
            assert only_seen(node) == {"10.1.1.3:8081", "[fd00:1:1::3]:8081"}
            node.stop(signal.SIGKILL)
            assert both(client) == ("200", "200")
            annotate(None)
            node.start()
            node.until(lambda: not only_seen(node))
            assert both(client) == ("200", "200")
            annotate("<Ingress/8081/TCP/Kafka>")
            node.until(lambda: any("KAFKA" in each for each in told(api)))
            assert both(client) == ("200", "200")
            assert not only_seen(node)
            annotate("<Ingress/8081/TCP/HTTP>")
            node.until(lambda: status(client, "DELETE") != "" and ("DELETE", "FORWARDED") in seen(socket))
