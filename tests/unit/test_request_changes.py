"""A plan tells which requests a change allows and cuts, each with one that is judged otherwise."""

from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import product
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from k8sdatapath.cli.app import app
from k8sdatapath.datapath.policy_plan import PolicyPlan, plan_policies
from k8sdatapath.datapath.policy_set import PolicySet
from k8sdatapath.datapath.request_changes import request_changes
from k8sdatapath.kube.policy import parse_policies
from k8sdatapath.model.http import judge, written
from k8sdatapath.model.http_rules import HTTPRule
from k8sdatapath.model.names import NamePattern
from k8sdatapath.model.workload import Workload

SHOP = [
    Workload.pod(f"shop/{app}", {"app": app}, addresses=[f"10.0.0.{at}"])
    for at, app in enumerate(("web", "api", "db"), 2)
]


def cnp(rules: str, *, way: str = "ingress", audit: bool = False) -> str:
    pod, peer, key = ("api", "web", "fromEndpoints") if way == "ingress" else ("web", "api", "toEndpoints")
    looks_on = 'annotations: {k8sdatapath.io/audit: "true"}, ' if audit else ""
    return f"""
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {{{looks_on}name: {way}, namespace: shop}}
spec:
  endpointSelector: {{matchLabels: {{app: {pod}}}}}
  {way}:
  - {key}: [{{matchLabels: {{app: {peer}}}}}]
    toPorts: [{{ports: [{{port: "8080", protocol: TCP}}]{rules and f", rules: {rules}"}}}]
---
"""


def http(*rules: str) -> str:
    return f"{{http: [{', '.join(f'{{{each}}}' for each in rules)}]}}"


def dns(*names: str) -> str:
    return f"{{dns: [{', '.join(f'{{matchPattern: {name!r}}}' for name in names)}]}}"


def planned(before: str, after: str) -> PolicyPlan:
    return plan_policies(parse_policies(before), parse_policies(after), SHOP)


@pytest.mark.parametrize(
    ("before", "after", "cut", "opened"),
    [
        ("", http("path: /a"), ["all but any method /a, such as 'GET /'"], []),
        (http("path: /a"), "", [], ["all but any method /a, such as 'GET /'"]),
        (http("path: /a"), http("path: /a"), [], []),
        (
            http("method: GET, path: /a"),
            http("method: POST, path: /a"),
            ["GET /a, such as 'GET /a'"],
            ["POST /a, such as 'POST /a'"],
        ),
        (http('path: "/a.*"'), http('path: "/.*"'), [], ["any method /.*, such as 'GET /'"]),
        (http('path: "/[ab]"'), http("path: /a", "path: /b"), [], []),
        (http("path: /a"), http("path: /a", 'headers: ["X-Tenant: blue"], path: /a'), [], []),
        (
            http("path: /a"),
            http('headers: ["X-Tenant: blue"], path: /a'),
            ["any method /a, such as 'GET /a'"],
            [],
        ),
        (
            http('headers: ["X-Tenant: blue"], path: /a'),
            http("headers: [X-Tenant], path: /a"),
            [],
            ["any method /a with x-tenant, such as 'GET /a' with x-tenant: x"],
        ),
        (
            http("host: one.example"),
            http('host: ".*"'),
            [],
            ["any method any path of .*, such as 'GET /'"],
        ),
    ],
)
def test_what_requests_a_change_allows_and_cuts(
    before: str, after: str, cut: list[str], opened: list[str]
) -> None:
    plan = planned(cnp(before), cnp(after))
    assert [each.asked for each in plan.cut] == cut
    assert [each.asked for each in plan.opened] == opened
    for flip in plan.flips:
        assert (flip.source, flip.destination, flip.ports) == (("shop/web",), ("shop/api",), "8080 of TCP")
        for text, allowed in (before, not flip.allowed), (after, flip.allowed):
            policies = PolicySet(parse_policies(cnp(text)), SHOP)
            verdict = policies.verdict("shop/web", "shop/api", 8080, request=flip.example)
            assert bool(verdict) is allowed


def test_a_request_that_the_other_side_denies_anyway_is_not_told() -> None:
    egress = cnp(http("path: /a"), way="egress")
    plan = planned(egress + cnp(http("path: /a", "path: /b")), egress + cnp(http("path: /a")))
    assert plan.flips == ()
    plan = planned(egress + cnp(http('path: "/.*"')), egress + cnp(http("path: /b")))
    (flip,) = plan.flips
    assert str(flip).startswith(
        "shop/web may no more reach shop/api at 8080 of TCP with requests for any meth"
    )
    assert flip.asked == "any method /.*, such as 'GET /a'"


def test_names_that_may_be_asked_for_are_told_as_well() -> None:
    before, after = dns("*.example", "bank.test"), dns("**.example", "*.test")
    plan = planned(cnp(before, way="egress"), cnp(after, way="egress"))
    assert plan.cut == ()
    (opened,) = plan.opened
    assert opened.requests == ("**.example", "*.test")
    policies = PolicySet(parse_policies(cnp(before, way="egress")), SHOP)
    assert not policies.verdict("shop/web", "shop/api", 8080, request=opened.example)
    assert (opened.others, planned(cnp("", way="egress"), cnp(after, way="egress")).cut[0].others) == (
        False,
        True,
    )


def test_a_new_connection_says_for_which_requests_and_one_that_goes_is_not_told_twice() -> None:
    plan = planned(cnp("", way="egress"), cnp(http("path: /a"), way="egress"))
    assert [each.others for each in plan.cut] == [True]
    (opened,) = planned(cnp("").replace('"8080"', '"9090"'), cnp(http("path: /a"))).opened
    assert (opened.ports, opened.requests) == ("8080 of TCP", ())
    assert opened.why.endswith("for any method /a")


def test_requests_that_policies_which_only_look_on_would_deny_are_told_as_that() -> None:
    plan = planned("", cnp(http("path: /a"), audit=True))
    (flip,) = (each for each in plan.audited if each.requests)
    assert flip.asked == "all but any method /a, such as 'GET /'"
    assert not plan.cut
    assert [each.others for each in planned(cnp(http("path: /a"), audit=True), cnp(http("path: /a"))).cut][
        :1
    ] == [False]


def test_a_plan_tells_what_rules_about_requests_take() -> None:
    plan = planned(cnp(""), cnp(http('path: "/a.*"')))
    before, after = plan.requests
    assert (before.sets, before.cells, after.sets) == (0, 0, 1)
    assert after.cells > 1000
    assert str(plan).endswith(f"1 after; 0 cells of automata before, {after.cells} after")
    assert "automata" not in str(planned(cnp(""), ""))


METHODS, PATHS = ("GET", "POST", "PUT"), ("/", "/a", "/ab", "/b", "/a?x")
HOSTS, TENANTS = ("", "one", "two"), ("", "blue", "red")
rules = st.builds(
    HTTPRule,
    method=st.sampled_from((None, "GET", "POST", "GET|POST")),
    path=st.sampled_from((None, "/a", "/a.*", "/[ab]", "/.*", "/b?")),
    host=st.sampled_from((None, "one", ".*", "one|two")),
    headers=st.sampled_from(((), ("X-Tenant",), ("X-Tenant: blue",))),
)
held = st.frozensets(rules, max_size=3)


@settings(max_examples=60)
@given(before=st.tuples(held, held), after=st.tuples(held, held))
def test_what_is_told_is_what_requests_are_judged_by(
    before: tuple[frozenset[HTTPRule], ...], after: tuple[frozenset[HTTPRule], ...]
) -> None:
    def allowed(text: str, sides: Iterable[frozenset[HTTPRule]]) -> bool:
        return all(judge(written(text), each).reason is None for each in sides if each)

    changes = request_changes(before, after)
    for each in changes:
        if each.example:
            was, now = (allowed(each.example, sides) for sides in (before, after))
            assert (was, now) == (not each.allowed, each.allowed)
    told = {each.allowed for each in changes}
    for method, path, host, tenant in product(METHODS, PATHS, HOSTS, TENANTS):
        lines = [f"{method} {path}", host and f"Host: {host}", tenant and f"X-Tenant: {tenant}"]
        text = "\n".join(filter(None, lines))
        was, now = (allowed(text, sides) for sides in (before, after))
        assert was is now or now in told


def test_rules_that_take_too_many_states_are_told_without_an_example() -> None:
    many = frozenset(HTTPRule(path=f".*word{at}.*") for at in range(40))
    (change,) = request_changes((many,), (many - {HTTPRule(path=".*word7.*")},))
    assert (change.allowed, change.requests, change.example) == (False, ("any method .*word7.*",), "")
    (change,) = request_changes((frozenset({NamePattern("a.example")}),), (many,))[:1]
    assert (change.allowed, change.requests, change.example) == (False, ("a.example",), "")


def test_the_command_has_a_column_for_requests(tmp_path: Path) -> None:
    metadata = "{{name: {0}, namespace: shop, labels: {{app: {0}}}}}"
    manifest = f"apiVersion: v1\nkind: Pod\nmetadata: {metadata}\nspec: {{{{}}}}\n---\n"
    pods = "".join(map(manifest.format, ("web", "api")))
    (tmp_path / "old.yaml").write_text(pods + cnp(http("path: /a", "path: /b")))
    (tmp_path / "new.yaml").write_text(pods + cnp(http("path: /a")))
    command = ["policy", "plan", "-f", str(tmp_path / "new.yaml"), "--instead-of", str(tmp_path / "old.yaml")]
    result = CliRunner().invoke(app, [*command, "-o", "json"])
    (row,) = json.loads(result.stdout)
    assert (row["then"], row["requests"]) == ("denied", "any method /b, such as 'GET /b'")
    assert "cells of automata" in CliRunner().invoke(app, command).stdout
