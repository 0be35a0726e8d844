"""Rules that do nothing are found, and what a change opens and cuts is what the oracle says."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from time import process_time
from typing import Any

import pytest
from attrs import evolve
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from k8sdatapath.cli.app import app
from k8sdatapath.datapath.policy_lint import Fruitless, lint
from k8sdatapath.datapath.policy_oracle import allows
from k8sdatapath.datapath.policy_plan import plan_policies
from k8sdatapath.errors import SourceError
from k8sdatapath.kube.policy import parse_policies
from k8sdatapath.model.policy import EVERYBODY, Action, Block, Policy, PortMatch, Rule, Tier, Toward
from k8sdatapath.model.workload import NamedPort, Workload
from k8sdatapath.testing import recorded_flows, what_if
from tests.support.policies import PORTS, pods, policy_lists

SHOP = [
    Workload.pod(f"shop/{app}", {"app": app}, addresses=[f"10.0.0.{at}"], ports=[NamedPort("http", 8080)])
    for at, app in enumerate(("web", "api", "db"), 2)
]


def np(name: str, app: str, *rules: str) -> str:
    body = "".join(f"  - {rule}\n" for rule in rules)
    return (
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n"
        f"metadata: {{name: {name}, namespace: shop}}\n"
        f"spec:\n  podSelector: {{matchLabels: {{app: {app}}}}}\n  ingress:\n{body}---\n"
    )


def looking_on(text: str) -> str:
    return text.replace("metadata: {", 'metadata: {annotations: {k8sdatapath.io/audit: "true"}, ')


WEB = "from: [{podSelector: {matchLabels: {app: web}}}]"
DENY = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: refusal, namespace: shop}
spec:
  endpointSelector: {matchLabels: {app: api}}
  ingressDeny: [{fromEndpoints: [{matchLabels: {app: web}}]}]
"""
OPEN = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: open, namespace: shop}
spec:
  endpointSelector: {matchLabels: {app: db}}
  enableDefaultDeny: {ingress: false}
  ingress: [{fromEndpoints: [{matchLabels: {app: web}}]}]
"""


@pytest.mark.parametrize(
    ("text", "kind", "cause", "reason"),
    [
        (np("p", "nobody", "{}"), Fruitless.DEAD, "p", "no pod is that"),
        (np("p", "api", WEB.replace("web", "wen")), Fruitless.DEAD, "p spec.ingress[0]", "k8s:app=wen"),
        (np("p", "api", "ports: [{port: metrics}]"), Fruitless.DEAD, "p spec.ingress[0]", "port 'metrics'"),
        (
            np("p", "api", "ports: [{port: 80, endPort: 90}]", f"{{{WEB}, ports: [{{port: 85}}]}}"),
            Fruitless.SHADOWED,
            "p spec.ingress[1]",
            "allowed by NetworkPolicy shop/p spec.ingress[0]",
        ),
        (
            np("p", "api", WEB) + DENY,
            Fruitless.SHADOWED,
            "p spec.ingress[0]",
            "denied by CiliumNetworkPolicy",
        ),
        (OPEN, Fruitless.INERT, "open spec.ingress[0]", "no policy isolates"),
        (
            looking_on(np("p", "api", WEB)) + np("q", "api", "{}"),
            Fruitless.INERT,
            "p spec.ingress[0]",
            "only looks on",
        ),
        (
            np("q", "api", "{}") + looking_on(DENY),
            Fruitless.INERT,
            "refusal spec.ingressDeny[0]",
            "only looks on",
        ),
    ],
)
def test_what_does_nothing_is_found(text: str, kind: Fruitless, cause: str, reason: str) -> None:
    (found,) = lint(parse_policies(text), SHOP)
    assert (found.kind, str(found.cause)) == (kind, f"{found.cause.policy.split(' ')[0]} shop/{cause}")
    assert reason in found.reason


def test_two_rules_that_say_the_same_are_both_found_and_what_is_needed_is_not() -> None:
    assert lint(parse_policies(np("p", "api", WEB, "ports: [{port: http}]")), SHOP) == ()
    twice = lint(parse_policies(np("p", "api", WEB) + np("q", "api", WEB)), SHOP)
    assert [each.kind for each in twice] == [Fruitless.INERT, Fruitless.INERT]


@pytest.mark.parametrize("needed", [True, False])
def test_a_pass_does_something_if_what_comes_after_it_would_decide(needed: bool) -> None:
    def to(text: str, action: Action) -> Rule:
        return Rule(text, Toward.INGRESS, [EVERYBODY], action=action)

    after = [to("accept", Action.ALLOW)] if needed else []
    tier = Policy("tier", EVERYBODY, [to("pass", Action.PASS), *after], tier=Tier.ADMIN)
    nobody = Policy("nobody", EVERYBODY, [], [Toward.INGRESS])
    found = [str(each) for each in lint([tier, nobody], SHOP)]
    said = (
        "accept is shadowed: denied by nobody" if needed else "pass is inert: without it the same is decided"
    )
    assert found == [f"tier {said}"]


def test_a_plan_tells_what_policies_would_deny_that_only_look_on(tmp_path: Path) -> None:
    staged, enforced = parse_policies(looking_on(np("p", "api", WEB))), parse_policies(np("p", "api", WEB))
    assert lint(staged, SHOP) == ()
    looked_at = plan_policies([], staged, SHOP)
    assert looked_at.opened == looked_at.cut == ()
    (database,) = (each for each in looked_at.audited if each.source == ("shop/db",))
    why = "ingress allowed, though it would be denied by default: NetworkPolicy shop/p isolates"
    assert str(database).startswith(f"shop/db may still reach shop/api at any protocol: {why}")
    cut = plan_policies(staged, enforced, SHOP)
    assert {(each.source, each.destination) for each in cut.cut} == {
        (each.source, each.destination) for each in looked_at.audited
    }
    assert plan_policies(staged, [], SHOP).flips == ()
    opened = plan_policies(enforced, staged, SHOP)
    assert opened.audited == ()
    assert len(opened.opened) == len(cut.cut)
    file = tmp_path / "staged.yaml"
    pods = (
        f"apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: shop, labels: {{app: {name}}}}}\n"
        "spec: {}\n---\n"
        for name in ("web", "api", "db")
    )
    file.write_text(looking_on(np("p", "api", WEB)) + "".join(pods))
    for command in (["plan"], ["why", "--from", "shop/db", "--to", "shop/api", "--port", "80"]):
        result = CliRunner().invoke(app, ["policy", *command, "-f", str(file), "-o", "json"])
        assert result.exit_code == 0, result.output
        assert '"audit"' in result.stdout


def reached(policies: Iterable[Policy], workloads: list[Workload]) -> set[tuple[object, ...]]:
    return {
        (one.name, other.name, protocol, port)
        for one in workloads
        for other in workloads
        if one is not other
        for protocol in (6, 17)
        for port in PORTS
        if allows(policies, one, other, port, protocol, version=0)
    }


WORLDS = st.integers(2, 4).flatmap(lambda number: st.tuples(*(pods(at) for at in range(number))))


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(workloads=WORLDS, before=policy_lists, after=policy_lists)
def test_a_plan_opens_and_cuts_what_the_oracle_says(
    workloads: tuple[Workload, ...], before: list[Policy], after: list[Policy]
) -> None:
    known = [evolve(each, addresses=()) for each in workloads]
    flips = plan_policies(before, after, known).flips
    told = {
        (one, other, flip.protocol, port, flip.allowed)
        for flip in flips
        for one in flip.source
        for other in flip.destination
        for port in PORTS
        if flip.first <= port <= flip.last
    }

    def changes(one: str, other: str, protocol: int, port: int) -> bool | None:
        named = {each[2] for each in told if each[:2] == (one, other)}
        asked = protocol if protocol in named else 0
        found = {each[4] for each in told if each[:4] == (one, other, asked, port)}
        return found.pop() if found else None

    was, now = reached(before, known), reached(after, known)
    for one, other, protocol, port in was ^ now:
        if known_apart(known, one, other):
            assert changes(one, other, protocol, port) is ((one, other, protocol, port) in now)


def known_apart(workloads: list[Workload], one: object, other: object) -> bool:
    """Whether policies can tell two from each other; a plan is of these."""
    ends = [each for each in workloads if each.name in (one, other)]
    return len({(each.labels, each.ports) for each in ends}) == 2


def test_what_keeps_another_policy_from_only_looking_on_does_something() -> None:
    """The same would be denied by that one, but what is denied then passes."""

    def denies(name: str, **more: Any) -> Policy:
        return Policy(
            name, EVERYBODY, [Rule("rule", Toward.INGRESS, [EVERYBODY], action=Action.DENY)], **more
        )

    policies = [denies("p0", tier=Tier.ADMIN, priority=1), denies("p1", tier=Tier.ADMIN, audit=True)]
    assert [str(each.cause) for each in lint(policies, SHOP)] == ["p1 rule"]


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(workloads=WORLDS, policies=policy_lists)
def test_without_what_does_nothing_the_same_is_reached(
    workloads: tuple[Workload, ...], policies: list[Policy]
) -> None:
    known = [evolve(each, addresses=()) for each in workloads]
    policies = [
        evolve(each, rules=[evolve(rule, name=f"rule {at}") for at, rule in enumerate(each.rules)])
        for each in policies
    ]
    before = reached(policies, known)
    for finding in lint(policies, known):
        left = [
            evolve(each, rules=[rule for rule in each.rules if rule.name != finding.cause.rule])
            if each.name == finding.cause.policy
            else each
            for each in policies
            if finding.cause.rule or each.name != finding.cause.policy
        ]
        assert reached(left, known) == before, str(finding)


FLOW = {
    "source": {
        "namespace": "shop",
        "pod_name": "web-1",
        "labels": ["k8s:app=web", "k8s:io.kubernetes.pod.namespace=shop"],
    },
    "destination": {
        "namespace": "shop",
        "pod_name": "api-1",
        "labels": ["k8s:app=api", "k8s:io.kubernetes.pod.namespace=shop"],
    },
    "IP": {"source": "10.0.0.2", "destination": "10.0.0.3", "ipVersion": "IPv4"},
    "l4": {"TCP": {"source_port": 40000, "destination_port": 8080}},
    "verdict": "FORWARDED",
}


def test_recorded_flows_are_asked_what_would_become_of_them(tmp_path: Path) -> None:
    world = {**FLOW, "source": {"labels": ["reserved:world"]}, "IP": {**FLOW["IP"], "source": "192.0.2.9"}}
    lines = [
        {"flow": FLOW},
        {"flow": FLOW},
        {"flow": {**FLOW, "is_reply": True}},
        world,
        {"flow": {"l4": None}},
    ]
    file = tmp_path / "flows.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)))
    (changed,) = what_if((), parse_policies(np("p", "api", WEB)), recorded_flows(file))
    assert (changed.source, changed.destination, changed.flows, changed.allowed) == (
        "192.0.2.9",
        "shop/api-1",
        1,
        False,
    )
    cut = what_if((), parse_policies(np("p", "api")), recorded_flows(file))
    assert [(each.source, each.flows) for each in cut] == [("shop/web-1", 2), ("192.0.2.9", 1)]
    file.write_text("{}\nno flow")
    with pytest.raises(SourceError, match="line 2: this is no flow"):
        list(recorded_flows(file))


def test_recorded_flows_reach_ports_by_the_names_that_pods_give_them(tmp_path: Path) -> None:
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "api", "namespace": "shop"}}
    pod["metadata"] |= {"labels": {"app": "api"}}
    pod["spec"] = {"containers": [{"name": "api", "ports": [{"name": "http", "containerPort": 8080}]}]}
    files, flows = tmp_path / "api.yaml", tmp_path / "flows.jsonl"
    files.write_text(np("p", "api", f"{{{WEB}, ports: [{{port: http}}]}}") + json.dumps(pod))
    told = {"destination": {"labels": [*FLOW["destination"]["labels"], "k8s:io.cilium.k8s.policy.cluster=c"]}}
    others = [{**FLOW, "l4": {"TCP": {"destination_port": 8081}}}, {**FLOW, "source": {}}]
    flows.write_text("\n".join(map(json.dumps, [FLOW, {**FLOW, **told}, *others])))
    said = CliRunner().invoke(app, ["policy", "plan", "-f", str(files), "--flows", str(flows), "-o", "json"])
    rows = json.loads(said.stdout)
    assert [(each["from"], each["ports"]) for each in rows] == [
        ("shop/web-1", "8081 of TCP"),
        ("10.0.0.2", "8080 of TCP"),
    ]
    assert "taken for an address of the world: 1 of 4 flows" in said.stderr


def test_recorded_requests_are_judged_as_requests(tmp_path: Path) -> None:
    def asked(method: str, url: str) -> str:
        http = {"method": method, "url": url, "headers": [{"key": "X-Tenant", "value": "blue"}]}
        return json.dumps({"flow": {**FLOW, "l7": {"type": "REQUEST", "http": http}}})

    def policies(rule: str) -> tuple[Policy, ...]:
        return parse_policies(f"""
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {{name: api, namespace: shop}}
spec:
  endpointSelector: {{matchLabels: {{app: api}}}}
  ingress: [{{toPorts: [{{ports: [{{port: "8080"}}], rules: {{http: [{rule}]}}}}]}}]
""")

    file = tmp_path / "flows.jsonl"
    urls = "http://api:8080/pay?now=1", "http://api:8080/refund"
    file.write_text("\n".join([json.dumps(FLOW), *(asked("POST", url) for url in urls)]))
    before, after = (
        policies("{}"),
        policies("{path: '/pay.*', headers: ['X-Tenant: blue'], host: 'api:8080'}"),
    )
    (changed,) = what_if(before, after, recorded_flows(file))
    assert changed.request == "POST /refund\nHost: api:8080\nX-Tenant: blue"
    assert str(changed).startswith(
        "1 x shop/web-1 -> shop/api-1 at 8080 of TCP POST /refund, Host: api:8080, X-Tenant: blue: denied: "
    )


def test_the_commands(tmp_path: Path) -> None:
    metadata = "{{name: {0}, namespace: shop, labels: {{app: {0}}}}}"
    manifest = f"apiVersion: v1\nkind: Pod\nmetadata: {metadata}\nspec: {{{{}}}}\n---\n"
    (tmp_path / "pods.yaml").write_text("".join(map(manifest.format, ("web", "api"))))
    (tmp_path / "old.yaml").write_text(np("p", "api", WEB))
    (tmp_path / "new.yaml").write_text(
        np("p", "api", f"{{{WEB}, ports: [{{port: 8080}}]}}", WEB.replace("web", "nobody"))
    )
    (tmp_path / "flows.jsonl").write_text(
        json.dumps({"flow": {**FLOW, "l4": {"TCP": {"destination_port": 9090}}}})
    )
    files = [str(tmp_path / name) for name in ("pods.yaml", "new.yaml")]

    def asked(*words: str, code: int = 0) -> list[dict[str, object]]:
        result = CliRunner().invoke(app, ["policy", *words, "-o", "json"])
        assert result.exit_code == code, result.output
        return json.loads(result.stdout)

    (finding,) = asked("lint", *files, code=1)
    assert (finding["rule"], finding["is"]) == ("NetworkPolicy shop/p spec.ingress[1]", "dead")
    change = [
        "plan",
        *(word for file in files for word in ("-f", file)),
        "--instead-of",
        str(tmp_path / "old.yaml"),
    ]
    rows = asked(*change)
    assert {(*row["from"], *row["to"], row["then"]) for row in rows} == {("shop/web", "shop/api", "denied")}
    assert rows[0]["ports"] == "any protocol"
    (row,) = asked(*change, "--flows", str(tmp_path / "flows.jsonl"))
    assert (row["from"], row["to"], row["flows"], row["then"]) == ("shop/web-1", "shop/api-1", 1, "denied")
    table = CliRunner().invoke(app, ["policy", *change])
    assert "entries before" in table.stdout


def test_thousands_of_networks_take_no_longer_than_their_number_asks():
    blocks = [Block(f"198.{at >> 8}.{at & 255}.0/24") for at in range(3000)]
    policy = Policy(
        "many", EVERYBODY, [Rule("r", Toward.INGRESS, blocks, [PortMatch(6, 80, 80)])], [Toward.INGRESS]
    )
    began = process_time()
    assert lint([policy], SHOP) == ()
    assert len(plan_policies([], [policy], SHOP).cut) > 2 * len(SHOP) * len(blocks)
    assert process_time() - began < 10
