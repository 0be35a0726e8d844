"""What users test their policies with: assertions, a table, a fixture of pytest, and commands."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from k8sdatapath.cli.app import app
from k8sdatapath.errors import ManifestError, ModelError
from k8sdatapath.kube.policy import parse_policies
from k8sdatapath.model.workload import Workload
from k8sdatapath.testing import PolicyWorld

MANIFESTS = """
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {team: one}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: shop}
spec:
  template:
    metadata: {labels: {app: web}}
    spec: {containers: [{name: web}]}
---
apiVersion: v1
kind: Pod
metadata: {name: db, namespace: shop, labels: {app: db}}
spec: {nodeName: n1, containers: [{name: db, ports: [{name: sql, containerPort: 5432}]}]}
status: {podIP: 10.244.0.9}
---
apiVersion: v1
kind: Pod
metadata: {name: cart, namespace: shop, labels: {app: cart}}
spec: {containers: [{name: cart}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: db, namespace: shop}
spec:
  podSelector: {matchLabels: {app: db}}
  ingress:
  - from: [{podSelector: {matchLabels: {app: web}}}]
    ports: [{port: sql}]
---
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: web, namespace: shop}
spec:
  endpointSelector: {matchLabels: {app: web}}
  egress:
  - toFQDNs: [{matchPattern: '*.bank.example'}]
  - toEndpoints: [{}]
"""


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "all.yaml").write_text(MANIFESTS)
    return tmp_path


@pytest.fixture
def world(files: Path) -> PolicyWorld:
    return PolicyWorld.read(files, names={"www.bank.example": ["192.0.2.7"]})


def test_assertions_say_which_rule_it_was(world):
    world.assert_allowed("shop/web", "shop/db", 5432)
    world.assert_denied("shop/cart", "shop/db", 5432)
    world.assert_allowed("shop/web", "192.0.2.7", 443)
    world.assert_denied("shop/web", "192.0.2.8", 443)
    with pytest.raises(AssertionError) as caught:
        world.assert_allowed("shop/cart", "shop/db", 80)
    assert str(caught.value) == (
        "shop/cart -> shop/db:80 is denied: egress allowed by default: no policy isolates; ingress denied by "
        "default: NetworkPolicy shop/db isolates, and no rule allows it\n"
        "    not by NetworkPolicy shop/db spec.ingress[0]: asks for k8s:app=web, k8s:app is cart; "
        "asks for port 'sql' of TCP, this is 80 of TCP"
    )
    with pytest.raises(AssertionError, match=r"is allowed: .* by NetworkPolicy shop/db spec.ingress\[0\]"):
        world.assert_denied("shop/web", "shop/db", 5432)


def test_the_nearest_miss_comes_first(world):
    lacks = [each.lacks for each in world.why("shop/web", "192.0.2.8", 443).nearest]
    assert [len(each) for each in lacks] == sorted(len(each) for each in lacks)
    assert lacks[0] == ("asks for fqdn:*.bank.example, fqdn:*.bank.example is not there",)
    assert world.why("shop/web", "shop/db", 5432).nearest == ()


def test_a_table_for_snapshots(world):
    assert str(world.matrix(5432)) == (
        "           0 1 2\nshop/cart  X . X  0\nshop/db    X X X  1\nshop/web   X X X  2"
    )
    assert world.matrix(5432)._repr_html_().count("<td>X</td>") == 8


def test_what_cannot_be_is_an_error(tmp_path):
    with pytest.raises(ModelError, match="no manifests are there"):
        PolicyWorld.read(tmp_path)
    (tmp_path / "all.yaml").write_text(MANIFESTS)
    with pytest.raises(ManifestError, match="nobody tells yet which addresses"):
        PolicyWorld.read(tmp_path)


def test_pytest_finds_the_fixture(files):
    (files / "test_mine.py").write_text(
        "def test_mine(policies_of):\n"
        "    world = policies_of('all.yaml', names={'a.bank.example': ['192.0.2.7']})\n"
        "    world.assert_allowed('shop/web', 'shop/db', 5432)\n"
        "    world.assert_allowed('shop/cart', 'shop/db', 5432)\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_mine.py"]
    ended = subprocess.run(command, cwd=files, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1
    assert "shop/cart -> shop/db:5432 is denied" in ended.stdout


def ask(*words: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["policy", *words])
    return result.exit_code, result.stdout or str(result.stderr)


def test_verify_lists_policies_or_names_the_field(files):
    code, said = ask("check", str(files), "-o", "json")
    assert code == 0
    assert [each["policy"] for each in json.loads(said)] == [
        "NetworkPolicy shop/db",
        "CiliumNetworkPolicy shop/web",
    ]
    (files / "all.yaml").write_text(MANIFESTS.replace("port: sql", "port: 99999"))
    code, said = ask("check", str(files))
    assert code == 1
    assert "spec.ingress[0].ports[0].port: 99999 is not a port (1 to 65535)" in said


def test_verdict(files):
    name = "--name", "a.bank.example=192.0.2.7"
    code, said = ask(
        "why", "-f", str(files), *name, "--from", "shop/web", "--to", "shop/db", "--port", "5432"
    )
    assert code == 0
    assert "ingress allowed by NetworkPolicy shop/db spec.ingress[0]" in said
    other = "--from", "shop/other:app=other,tier=x", "--to", "shop/db"
    code, said = ask("why", "-f", str(files), *name, *other, "--port", "5432", "-o", "json")
    assert code == 1
    assert [each["verdict"] for each in json.loads(said)] == ["allowed", "denied", "not by"]


def test_matrix(files):
    code, said = ask(
        "matrix", "-f", str(files), "--name", "a.bank.example=192.0.2.7", "-p", "5432", "-o", "json"
    )
    assert code == 0
    assert json.loads(said)[0] == {"from": "shop/cart", "reaches": ["shop/web"]}


HTTP = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: api, namespace: payments}
spec:
  endpointSelector: {matchLabels: {app: payments-api}}
  ingress:
  - fromEndpoints:
    - matchLabels: {app: checkout-service, io.kubernetes.pod.namespace: frontend}
    toPorts:
    - ports: [{port: "8080", protocol: TCP}]
      rules:
        http:
        - {method: POST, path: /charge}
    - ports: [{port: "9090", protocol: TCP}]
      rules: {http: []}
  - fromEndpoints: [{matchLabels: {app: ops, io.kubernetes.pod.namespace: frontend}}]
  - fromEndpoints: [{matchLabels: {io.kubernetes.pod.namespace: frontend}}]
    toPorts:
    - ports: [{port: "8000", endPort: 8999}]
      rules:
        http:
        - path: "/(health|version)"
          host: "[a-z.]+"
          headers: ["X-Probe: yes"]
          headerMatches: [{name: X-Id}, {name: X-Zone, value: eu}]
"""
PROBE = "GET /health\nHost: api.example\nX-Probe: yes\nX-Id: 7\nX-Zone: eu"


@pytest.fixture
def shop() -> PolicyWorld:
    pods = [Workload.pod(f"frontend/{app}", {"app": app}) for app in ("checkout-service", "cart", "ops")]
    pods.append(Workload.pod("payments/api", {"app": "payments-api"}))
    return PolicyWorld(parse_policies(HTTP), pods)


@pytest.mark.parametrize(
    ("who", "port", "request_", "allowed"),
    [
        ("checkout-service", 8080, "POST /charge", True),
        ("checkout-service", 8080, "GET /charge", False),
        ("checkout-service", 8080, "POST /charge/", False),
        ("checkout-service", 8080, PROBE, True),  # one of all rules for the same peer and port
        ("checkout-service", 8081, "POST /charge", False),
        ("checkout-service", 8081, PROBE, True),
        ("checkout-service", 9090, "GET /anything", True),  # no rule at all is none of layer 7
        ("cart", 8080, "POST /charge", False),
        ("cart", 8080, PROBE, True),
        ("cart", 8080, PROBE.replace("eu", "us"), False),
        ("cart", 9090, PROBE, False),
        ("ops", 8080, "GET /charge", True),  # who is allowed without a request is asked for none
    ],
)
def test_requests(shop, who, port, request_, allowed):
    ask = shop.assert_allowed if allowed else shop.assert_denied
    ask(f"frontend/{who}", "payments/api", port, request=request_)


def test_a_denied_request_is_told_with_its_rules(shop):
    with pytest.raises(AssertionError) as caught:
        shop.assert_allowed("frontend/checkout-service", "payments/api", 8080, request="GET /charge")
    assert str(caught.value) == (
        "frontend/checkout-service -> payments/api:8080 GET /charge is denied: "
        "egress allowed by default: no policy isolates; ingress denied by "
        "CiliumNetworkPolicy payments/api spec.ingress[0].toPorts[0], "
        "CiliumNetworkPolicy payments/api spec.ingress[2].toPorts[0], "
        "for POST /charge or any method /(health|version) of [a-z.]+ with x-id, x-probe: yes, x-zone: eu: "
        "no rule allows it"
    )
    with pytest.raises(AssertionError, match="its path is one that servers resolve: dots"):
        shop.assert_allowed("frontend/checkout-service", "payments/api", 8080, request="POST /./charge")
    with pytest.raises(ModelError, match="'charge' is not a request: write 'GET /path'"):
        shop.assert_allowed("frontend/cart", "payments/api", 8080, request="charge")


def test_a_table_of_requests(shop):
    assert str(shop.matrix(8080)).splitlines()[1:] == [
        "frontend/cart              X X X o  0",
        "frontend/checkout-service  X X X o  1",
        "frontend/ops               X X X X  2",
        "payments/api               X X X X  3",
    ]
    assert [line[33] for line in str(shop.matrix(8080, request="POST /charge")).splitlines()[1:]] == [*".XXX"]


def test_requests_on_the_command_line(tmp_path):
    (tmp_path / "a.yaml").write_text(HTTP)
    names = ["--from", "frontend/cart:app=cart", "--to", "payments/api:app=payments-api", "-p", "8080"]
    assert ask("why", "-f", str(tmp_path), *names)[0] == 0
    assert ask("why", "-f", str(tmp_path), *names, "--request", "GET /health")[0] == 1
    line, *headers = PROBE.splitlines()
    words = [word for header in headers for word in ("--header", header)]
    assert ask("why", "-f", str(tmp_path), *names, "--request", line, *words)[0] == 0
