"""An agent that holds requests to the policies of its cluster, without a proxy, killed or not."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from k8sdatapath.net.netns import NetNs
from tests.lab.test_agent_policy import a_pod, served
from tests.lab.test_l7_policies import SEED
from tests.support.agents import NodeUnderTest
from tests.support.api_double import ApiDouble

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
    curl = ["curl", "-s", "-m", "1", "-o", "/dev/null", "-w", "%{http_code}", "-X", method, url]
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
