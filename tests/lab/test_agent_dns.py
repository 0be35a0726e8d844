"""An agent that holds pods to the names that policies of its cluster allow, killed or not."""

from __future__ import annotations

import json
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from k8sdatapath.cli.app import app
from k8sdatapath.net.netns import NetNs
from tests.lab.test_hubble import observed
from tests.support.agents import NodeUnderTest, Server
from tests.support.api_double import ApiDouble
from tests.support.name_server import NameServer
from tests.support.policed import WEB, put_pod, reaches, served

pytestmark = pytest.mark.lab

BANK = "192.0.2.101"
POLICY = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: client, namespace: shop}
spec:
  endpointSelector: {matchLabels: {app: client}}
  egress:
  - toEndpoints: [{matchLabels: {app: web}}]
    toPorts:
    - ports: [{port: "53", protocol: ANY}]
      rules: {dns: [{matchName: bank.example}, {matchPattern: "*.shop.example"}]}
  - toFQDNs: [{matchName: bank.example}]
"""
OVER = ("+notcp", "+tcp")


def put(api: ApiDouble, text: str) -> None:
    api.put("ciliumnetworkpolicies", yaml.safe_load(text))


def asked(client: NetNs, name: str, over: str = "+notcp") -> str:
    """The status of the answer that a pod gets; none at all: it gets none."""
    dig = ["dig", f"@{WEB}", name, "A", "+tries=1", "+time=2", over]
    said = client.call(subprocess.run, dig, capture_output=True, text=True, check=False).stdout
    found = re.search(r"status: (\w+)", said)
    return found[1] if found else ""


def both(client: NetNs, name: str) -> tuple[str, ...]:
    return tuple(asked(client, name, over) for over in OVER)


def allowed(node: NodeUnderTest) -> list[str]:
    """The names of the set for the policy, once there is no other."""
    result = CliRunner().invoke(app, ["l7", "names", f"--pins={node.pins.path}", "-o", "json"])
    rows = json.loads(result.stdout)
    others = len({row["set"] for row in rows}) > 1 or any("shop/client" not in row["for"] for row in rows)
    return [] if others else [row["name"] for row in rows]


@contextmanager
def shop(tmp_path: Path, **options: Any) -> Iterator[tuple[NodeUnderTest, ApiDouble, NetNs]]:
    """An agent that is up, and a pod that asks a name server in another one."""
    with served(tmp_path, **options) as (node, api):
        api.kinds["cilium.io/v2", "ciliumnetworkpolicies"] = "CiliumNetworkPolicy"
        put_pod(api, "client", 2)
        put_pod(api, "web", 3)
        client, web = node.pod("client", 2), node.pod("web", 3)
        put(api, POLICY)
        names = ("bank.example", "a.shop.example", "evil.example")
        with NameServer(web, {each: [BANK] for each in names}), closing(Server(node.outside, "bank")):
            node.start()
            node.until(lambda: asked(client, "evil.example") == "REFUSED")
            yield node, api, client


def test_names_are_held_to_policies_of_the_cluster(tmp_path: Path) -> None:
    with shop(tmp_path) as (node, api, client):
        assert both(client, "evil.example") == ("REFUSED", "REFUSED")
        assert both(client, "a.shop.example") == ("NOERROR", "NOERROR")
        assert not reaches(client, BANK, 8080, "bank")
        assert asked(client, "bank.example", "+tcp") == "NOERROR"
        node.until(lambda: reaches(client, BANK, 8080, "bank"))
        assert allowed(node) == ["*.shop.example", "bank.example"]
        node.stop(signal.SIGKILL)
        assert both(client, "evil.example") == ("REFUSED", "REFUSED")  # nobody is there
        assert both(client, "bank.example") == ("NOERROR", "NOERROR")
        put(api, POLICY.replace("*.shop", "evil"))
        node.start()
        node.until(lambda: both(client, "evil.example") == ("NOERROR", "NOERROR"))
        node.until(lambda: allowed(node) == ["bank.example", "evil.example"])
        assert both(client, "a.shop.example") == ("REFUSED", "REFUSED")
        node.stop()
        assert node.cleanup().returncode == 0
        assert both(client, "a.shop.example") == ("NOERROR", "NOERROR")


def test_questions_are_counted_and_observed(tmp_path: Path) -> None:
    hubble = {"enabled": True, "socketPath": str(tmp_path / "hubble.sock")}
    with shop(tmp_path, hubble={**hubble, "metrics": {"enabled": ["dns:query"]}}) as (node, _, client):
        for over in OVER:
            asked(client, "bank.example", over)
            asked(client, "no.shop.example", over)

        def counted(name: str, **labels: str) -> float:
            said = node.probe("metrics")[1]
            rows = re.findall(rf"^hubble_dns_{name}_total{{(.*)}} (\S+)$", said, re.MULTILINE)
            wanted = {f'{key}="{value}"' for key, value in labels.items()}
            return sum(float(count) for row, count in rows if wanted <= {*row.split(",")})

        node.until(lambda: counted("responses", query="no.shop.example", rcode="Non-Existent Domain") == 2)
        assert counted("queries", query="bank.example", qtypes="A") == 2
        assert counted("responses", query="bank.example", rcode="No Error", ips_returned="1") == 2
        assert counted("response_types", query="bank.example", type="A") == 2
        assert counted("queries", query="evil.example") >= 1
        assert counted("responses", query="evil.example") == 0
        said = observed(f"observe --last 100 --protocol dns -o json --server unix://{tmp_path}/hubble.sock")
        told = {(each["flow"]["verdict"], each["flow"]["Summary"]) for each in said}
        assert ("FORWARDED", f'DNS Answer "{BANK}" TTL: 60 (bank.example. A)') in told
        assert ("DROPPED", "DNS Query evil.example. A") in told
