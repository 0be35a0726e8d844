"""What agents tell Prometheus of policies."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from attrs import define, evolve

from k8sdatapath.agent.metrics import ENFORCEMENTS, PolicyMetrics, enforcement
from k8sdatapath.datapath.policy_maps import RuleCount
from k8sdatapath.datapath.policy_pairs import EndpointPolicy
from k8sdatapath.datapath.policy_rows import Because
from k8sdatapath.model.policy import Action, Policy, Toward

INGRESS, EGRESS = frozenset([Toward.INGRESS]), frozenset([Toward.EGRESS])


@define
class Enforced:
    """What is in force."""

    said: tuple[RuleCount, ...] = ()
    audit: bool = False
    revision: int = 7
    policies: tuple[Policy, ...] = ()
    endpoints: tuple[EndpointPolicy, ...] = ()

    def counts(self) -> tuple[RuleCount, ...]:
        return self.said


class Followed:
    waiting = errors = failures = ()
    synced = True


def told(metrics: Any) -> Iterator[tuple[str, tuple[str, ...], float]]:
    for family in metrics.collect():
        for sample in family.samples:
            yield sample.name.removeprefix("k8sdatapath_"), tuple(sample.labels.values()), sample.value


def test_counts_go_on_when_rules_have_gone() -> None:
    count = RuleCount(Toward.INGRESS, Action.DENY, Because.DEFAULT_DENY, (), 5, 500)
    let_out = RuleCount(Toward.EGRESS, Action.ALLOW, Because.RULE, (), 2, 200)
    enforced = Enforced((count, let_out, let_out))  # two that ask for different requests
    metrics = PolicyMetrics(Followed(), enforced)

    def packets() -> list[float]:
        return [value for name, _, value in told(metrics) if name == "policy_packets_total"]

    assert packets() == [0, 5, 4, 0]  # in and out, each allowed and denied
    assert packets() == [0, 5, 4, 0]
    enforced.said = (evolve(count, packets=8),)
    assert packets() == [0, 8, 4, 0]
    enforced.said = ()
    assert packets() == [0, 8, 4, 0]
    enforced.said = (evolve(count, packets=1), evolve(let_out, packets=1))
    assert packets() == [0, 9, 5, 0]
    assert ("policy_max_revision", (), 7) in told(metrics)


def test_endpoints_are_counted_in_ciliums_words() -> None:
    pod = EndpointPolicy("shop/web", (), 300, 2, frozenset(), 1)
    inward, both = evolve(pod, isolated=INGRESS), evolve(pod, isolated=INGRESS | EGRESS)
    assert enforcement(pod, audit=True) == "none"
    assert enforcement(inward, audit=False) == "ingress"
    assert enforcement(inward, audit=True) == "audit-ingress"
    assert enforcement(evolve(pod, isolated=EGRESS, audits=EGRESS), audit=False) == "audit-egress"
    assert enforcement(evolve(both, audits=EGRESS), audit=False) == "both"
    assert enforcement(evolve(both, audited=True), audit=False) == "audit-both"
    metrics = PolicyMetrics(Followed(), Enforced(endpoints=(pod, inward)))
    status = {
        labels[0]: value for name, labels, value in told(metrics) if name.endswith("enforcement_status")
    }
    assert tuple(status) == ENFORCEMENTS
    assert {word for word, value in status.items() if value} == {"none", "ingress"}
