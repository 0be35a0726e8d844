"""What users test their policies with: assertions, a table, a fixture of pytest, and commands."""

from __future__ import annotations

import errno
import json
import os
import re
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


def test_what_is_asked_only_where_nothing_isolates_is_no_miss(files):
    (files / "base.yaml").write_text("""
apiVersion: policy.networking.k8s.io/v1alpha2
kind: ClusterNetworkPolicy
metadata: {name: base}
spec:
  tier: Baseline
  priority: 1
  subject: {namespaces: {}}
  ingress: [{action: Accept, from: [{pods: {podSelector: {matchLabels: {app: mail}}}}]}]
""")
    nearest = PolicyWorld.read(files).why("shop/cart", "shop/db", 80).nearest
    assert [each.cause.policy for each in nearest] == ["NetworkPolicy shop/db"]


def test_a_table_for_snapshots(world):
    assert str(world.matrix(5432)) == (
        "           0 1 2\nshop/cart  X . X  0\nshop/db    X X X  1\nshop/web   X X X  2"
    )
    assert world.matrix(5432)._repr_html_().count("<td>X</td>") == 8


def test_what_cannot_be_is_an_error(tmp_path):
    with pytest.raises(ModelError, match="no manifests are there"):
        PolicyWorld.read(tmp_path)
    (tmp_path / "all.yaml").write_text(MANIFESTS)
    with pytest.raises(ModelError, match=r"'quic' is not a protocol \(TCP, UDP, SCTP, ICMP, ICMPv6\)"):
        PolicyWorld.read(tmp_path).verdict("shop/web", "shop/db", 443, "quic")
    (tmp_path / "all.yaml").write_text(MANIFESTS.replace("port: sql", "port: 99999"))
    with pytest.raises(ManifestError, match="99999 is not a port"):
        PolicyWorld.read(tmp_path)


def test_names_are_asked_for_as_they_are_or_by_an_address_that_is_told(files, world):
    untold = PolicyWorld.read(files)
    assert (untold.unnamed, world.unnamed) == (("*.bank.example",), ())
    for each in untold, world:
        assert each.verdict("shop/web", "api.bank.example", 443)
        assert each.verdict("shop/web", "api.bank.example", 443, version=6)
        assert not each.verdict("shop/web", "world", 443)
        assert each.why("shop/web", "world", 443).nearest
    assert world.verdict("shop/web", "192.0.2.7", 443)
    assert not untold.verdict("shop/web", "192.0.2.7", 443)
    with pytest.raises(ModelError, match=r"'other\.example' is neither a workload nor an address"):
        untold.verdict("shop/web", "other.example", 443)
    asked = "why", "-f", str(files), "--from", "shop/web", "--port", "443", "--to"
    assert CliRunner().invoke(app, ["policy", *asked, "a.bank.example"]).stderr == ""
    denied = CliRunner().invoke(app, ["policy", *asked, "192.0.2.7"])
    told = "no address, so rules by them match none (--name, or ask for the name itself): *.bank.example"
    assert (denied.exit_code, denied.stderr) == (1, f"note: {told}\n")


def test_what_is_an_address_or_misspelt_is_no_name_though_all_names_are_allowed(files):
    (files / "all.yaml").write_text(MANIFESTS.replace("*.bank.example", "*"))
    world = PolicyWorld.read(files)
    assert world.verdict("shop/web", "any.example", 443)
    assert not world.verdict("shop/web", "192.0.2.7", 443)
    assert world.verdict("shop/web", "10.244.0.9", 5432)
    with pytest.raises(ModelError, match=r"'shop/bd' is neither a workload nor an address"):
        world.assert_denied("shop/web", "shop/bd", 443)


def test_a_rule_for_a_name_or_the_api_server_is_not_dead(files):
    (files / "all.yaml").write_text(
        MANIFESTS.replace("- toEndpoints: [{}]", "- toEntities: [kube-apiserver]")
    )
    assert ask("lint", str(files), "-o", "json") == (0, "[]\n")


def test_a_pod_in_the_network_of_its_node_is_that_node(files):
    exporter = "apiVersion: apps/v1\nkind: DaemonSet\nmetadata: {name: exporter, namespace: shop}\n"
    exporter += "spec: {template: {spec: {hostNetwork: true}}}\n---\n"
    (files / "all.yaml").write_text(exporter + MANIFESTS)
    asked = "why", "-f", str(files), "--from", "shop/exporter", "--to", "shop/db", "--port", "80"
    said = "error: 'shop/exporter' is in the network of its node: ask for that, or for remote-node\n"
    assert ask(*asked) == (1, said)


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


def test_pods_without_an_address_are_told_where_policies_go_by_networks(files, world):
    assert world.unplaced == ()
    by_network = "{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 0.0.0.0/0}}]}]}"
    policy = (
        f"apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: p}}\nspec: {by_network}\n"
    )
    (files / "all.yaml").write_text(MANIFESTS.split("apiVersion: networking")[0] + policy)
    assert PolicyWorld.read(files).unplaced == ("shop/cart", "shop/web")
    asked = "why", "-f", str(files), "--from", "shop/web", "--to", "shop/db", "--port", "80"
    said = CliRunner().invoke(app, ["policy", *asked]).stderr
    told = "note: no address, so in none of the networks that policies name (--pod-network): "
    assert said == f"{told}shop/web\n"
    said = CliRunner().invoke(app, ["policy", "matrix", "-f", str(files), "--port", "80"]).stderr
    assert said == f"{told}shop/cart, shop/web\n"
    placed = PolicyWorld.read(files, pod_networks=["10.244.0.0/16", "fd00:10:244::/48"])
    assert placed.unplaced == ()
    assert [each.version for each in placed.workloads["shop/web"].addresses] == [4, 6]
    assert placed.verdict("shop/web", "shop/cart", 80)
    result = CliRunner().invoke(app, ["policy", *asked, "--pod-network", "10.244.0.0/16"])
    assert (result.exit_code, result.stderr) == (0, "")


@pytest.mark.parametrize(
    ("network", "said"),
    [
        ("10.0.0.0/8", "policies tell parts of 10.0.0.0/8 apart, such as 10.244.0.0/16: give pods addresses"),
        ("192.0.2.0/31", "there is no room for shop/c in 192.0.2.0/31"),
    ],
)
def test_where_pods_will_be_has_to_be_one_place(tmp_path, network, said):
    policy = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p}\nspec: "
    policy += "{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.244.0.0/16}}]}]}\n---\n"
    pod = "apiVersion: v1\nkind: Pod\nmetadata: {{name: {}, namespace: shop}}\nspec: {{}}\n---\n"
    (tmp_path / "all.yaml").write_text(policy + "".join(map(pod.format, "abc")))
    with pytest.raises(ModelError, match=re.escape(said)):
        PolicyWorld.read(tmp_path, pod_networks=[network])


def test_directories_in_directories_are_read_if_that_is_wanted_and_else_told(tmp_path):
    (tmp_path / "shop" / "policies").mkdir(parents=True)
    (tmp_path / "shop" / ".hidden").mkdir()
    pods, policies = MANIFESTS.split("apiVersion: networking", 1)
    (tmp_path / "pods.yaml").write_text(pods)
    (tmp_path / "shop" / "policies" / "db.yml").write_text(f"apiVersion: networking{policies}")
    (tmp_path / "shop" / ".hidden" / "more.yaml").write_text("not: a manifest")
    result = CliRunner().invoke(app, ["policy", "check", str(tmp_path), "-o", "json"])
    assert json.loads(result.stdout) == []
    assert result.stderr == f"note: not read without -R: {tmp_path}/shop/policies\n"
    result = CliRunner().invoke(app, ["policy", "check", "-R", str(tmp_path), "-o", "json"])
    assert [each["policy"] for each in json.loads(result.stdout)] == [
        "NetworkPolicy shop/db",
        "CiliumNetworkPolicy shop/web",
    ]
    assert result.stderr == ""
    assert PolicyWorld.read(tmp_path, recursive=True, names={"a.bank.example": ["192.0.2.7"]}).policies
    with pytest.raises(ModelError, match=r"no manifests are there but in directories there: read these too"):
        PolicyWorld.read(tmp_path / "shop")


def test_a_directory_that_cannot_be_read_is_an_error(files, monkeypatch):
    closed, read = files / "closed", os.scandir
    closed.mkdir()

    def scandir(path):
        if Path(path) == closed:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return read(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert PolicyWorld.read(files).policies
    for given, options in ((files, {"recursive": True}), (closed, {})):
        with pytest.raises(PermissionError, match="closed"):
            PolicyWorld.read(given, **options)


def test_all_that_is_wrong_is_told_at_once(files):
    (files / "all.yaml").write_text(MANIFESTS.replace("port: sql", "port: 0").replace("bank.example", "a..b"))
    result = CliRunner().invoke(app, ["policy", "check", str(files)])
    assert (result.exit_code, result.stdout) == (1, "")
    first, second = result.stderr.splitlines()
    assert "spec.ingress[0].ports[0].port: 0 is not a port" in first
    assert "toFQDNs[0].matchPattern" in second


def test_rules_of_requests_that_no_node_has_room_for_are_told(tmp_path):
    file = tmp_path / "policy.yaml"
    rule = """toPorts: [{ports: [{port: "80"}], rules: {http: [{path: "/(.*a){20}.{30}"}]}}]"""
    file.write_text(
        "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: p}\n"
        f"spec: {{endpointSelector: {{}}, ingress: [{{{rule}}}]}}\n"
    )
    result = CliRunner().invoke(app, ["policy", "check", str(file)])
    assert (result.exit_code, result.stdout) == (1, "")
    assert "(CiliumNetworkPolicy p): spec.ingress[0].toPorts[0]: 16385 states" in result.stderr


def test_rules_of_manifests_are_listed(files):
    code, said = ask("list", str(files), "-o", "json")
    assert code == 0
    assert json.loads(said)[0] == {
        "direction": "ingress",
        "verdict": "allow",
        "rule": "NetworkPolicy shop/db spec.ingress[0]",
        "for": "k8s:app=db, k8s:io.kubernetes.pod.namespace=shop",
        "peers": ["k8s:app=web, k8s:io.kubernetes.pod.namespace=shop"],
        "ports": ["port 'sql' of TCP"],
    }
    assert "port 'sql' of TCP" in ask("list", str(files))[1]


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


def test_a_pod_that_is_not_there_has_the_labels_of_its_namespace(files):
    red = "apiVersion: v1\nkind: Namespace\nmetadata: {name: red, labels: {team: red}}\n---\n"
    by_team = "{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {team: red}}}]}]}"
    policy = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p}\n"
    (files / "all.yaml").write_text(f"{red}{policy}spec: {by_team}\n")
    world = PolicyWorld.read(files)
    world.assert_allowed(world.pod("red/new"), world.pod("default/new", {"app": "web"}), 80)
    world.assert_denied(world.pod("blue/new"), world.pod("default/new"), 80)
    for source, expected in (("red/new:", 0), ("blue/new:app=web", 1)):
        asked = "why", "-f", str(files), "--from", source, "--to", "default/new:", "-p", "80"
        assert ask(*asked)[0] == expected


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (
            "shop/wbe",
            "'shop/wbe' is in no manifest: to ask for a pod like it, write shop/wbe:app=web; "
            "did you mean 'shop/web' or 'shop/db'?",
        ),
        ("shop/web:app=db", "'shop/web' is in the manifests, with its labels: leave out ':app=db'"),
        ("web", "'web' is neither a workload nor an address: did you mean 'shop/web'?"),
    ],
)
def test_a_pod_that_is_misspelt_is_an_error(files, source, said):
    asked = "why", "-f", str(files), "--from", source, "--to", "shop/db", "--port", "80"
    assert ask(*asked, "--name", "a.bank.example=192.0.2.7") == (1, f"error: {said}\n")


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
