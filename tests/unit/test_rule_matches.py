"""What of a rule decides, as flows tell it."""

from __future__ import annotations

import pytest

from k8sdatapath.datapath.policy_rows import Cause
from k8sdatapath.datapath.rule_matches import RuleMatches
from k8sdatapath.model.flow import PolicyMatch
from k8sdatapath.model.policy import EVERYBODY, Policy, PortMatch, Requirement, Rule, Selector, Toward

WEB = Selector([Requirement("k8s:app")])


@pytest.mark.parametrize(
    ("peers", "ports", "match"),
    [
        ([WEB], [PortMatch(6, 80, 80)], PolicyMatch.L3_L4),
        ([WEB], [PortMatch(6, name="http")], PolicyMatch.L3_L4),
        ([WEB], [PortMatch(6)], PolicyMatch.L3_PROTO),
        ([WEB], [PortMatch()], PolicyMatch.L3_ONLY),
        ([EVERYBODY], [PortMatch(6, 80, 80)], PolicyMatch.L4_ONLY),
        ([WEB, EVERYBODY], [PortMatch(6)], PolicyMatch.L4_PROTO_ONLY),
        ([EVERYBODY], [PortMatch()], PolicyMatch.ALL),
    ],
)
def test_what_a_rule_asks_for(peers: list[Selector], ports: list[PortMatch], match: PolicyMatch) -> None:
    rule = Rule("one", Toward.INGRESS, peers, ports)
    every = Rule("all", Toward.INGRESS, [EVERYBODY])
    policies = {"shop/a": Policy("shop/a", EVERYBODY, [every, rule])}
    matches = RuleMatches(policies)
    assert matches.of([Cause("shop/a", "all"), Cause("shop/a", "one"), Cause("gone")]) is match
    policies["shop/a"] = Policy("shop/a", EVERYBODY, [every])
    assert matches.of([Cause("shop/a", "all")]) is PolicyMatch.ALL
    assert matches.of([Cause("shop/a", "one"), Cause("shop/a")]) is PolicyMatch.NONE
