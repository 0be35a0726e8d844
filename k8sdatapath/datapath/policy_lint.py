"""What in policies does nothing: rules that match nobody, that others hide, or that change nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from enum import StrEnum
from typing import Any

from attrs import evolve, frozen

from k8sdatapath.datapath.policy_compiler import PolicyCompiler, PolicyTable
from k8sdatapath.datapath.policy_parties import Parties
from k8sdatapath.datapath.policy_plan import port_ranges
from k8sdatapath.datapath.policy_rows import Cause, port_keys
from k8sdatapath.model.host_firewall import HostFirewall, for_nodes
from k8sdatapath.model.policy import Action, Policy, Rule, Toward
from k8sdatapath.model.workload import NamedPort, Party, Workload

__all__ = ["Finding", "Fruitless", "lint"]


class Fruitless(StrEnum):
    """In which way something does nothing."""

    DEAD = "dead"
    """It matches nobody, or no port."""
    SHADOWED = "shadowed"
    """Wherever it matches, something else decides."""
    INERT = "inert"
    """It decides, and without it the same would be allowed."""


@frozen
class Finding:
    """A policy, or a rule of one, that does nothing among these workloads."""

    kind: Fruitless
    cause: Cause
    reason: str

    def __str__(self) -> str:
        return f"{self.cause} is {self.kind}: {self.reason}"


def lint(
    policies: Iterable[Policy],
    workloads: Iterable[Workload],
    *,
    names: Mapping[str, Iterable[Any]] = {},
    host_firewall: HostFirewall | bool | None = None,
) -> tuple[Finding, ...]:
    """What does nothing, in the order of the policies.

    It is judged by the workloads that are given, and by the world outside: with few of them much is dead.

    :param names: the addresses of DNS names, for policies by name.
    :param host_firewall: policies are for nodes as well, as for :class:`PolicySet`.
    """
    known = list(policies)
    parties = Parties(known, workloads, names, host_firewall)
    compiler = parties.compiled(known)
    deciding = {
        cause
        for each in parties.subjects
        for _, entry in compiler.table(parties.numbers[each]).items()
        for cause in entry.causes
    }
    return tuple(
        finding for policy in known for finding in _findings(policy, parties, compiler, frozenset(deciding))
    )


def _findings(
    policy: Policy, parties: Parties, compiler: PolicyCompiler, deciding: frozenset[Cause]
) -> Iterator[Finding]:
    subjects = [each for each in parties.subjects if policy.subject.matches(each.labels)]
    if not subjects:
        kind = "node" if for_nodes([policy]) else "pod"
        yield Finding(
            Fruitless.DEAD, Cause(policy.name), f"it is for {policy.subject}, and no {kind} is that"
        )
        return
    if not policy.rules and not policy.isolates:
        yield Finding(Fruitless.INERT, Cause(policy.name), "it has no rules, and isolates nothing")
    for rule in policy.rules:
        cause = Cause(policy.name, rule.name)
        selected = compiler.selected(rule)
        peers = [each for each, number in parties.numbers.items() if number in selected]
        if not peers:
            who = ", ".join(map(str, rule.peers)) or "nobody at all"
            yield Finding(Fruitless.DEAD, cause, f"its peers are {who}, and nobody is that")
        elif not any(port_keys(rule.ports, ports) for ports in _named(rule, subjects, peers)):
            wanted = ", ".join(str(each) for each in rule.ports)
            yield Finding(Fruitless.DEAD, cause, f"it is for {wanted}, which no destination has")
        elif policy.audit and not any(
            compiler.table(parties.numbers[each]).audits(rule.toward) for each in subjects
        ):
            reason = "it only looks on, where others are in force or nothing would be denied"
            yield Finding(Fruitless.INERT, cause, reason)
        elif cause not in deciding and rule.action is not Action.PASS:  # a pass never decides itself
            yield Finding(Fruitless.SHADOWED, cause, _instead(rule, parties, compiler, subjects, peers))
        elif (same := _without(policy, rule, parties, compiler, subjects)) is not None:
            yield Finding(Fruitless.INERT, cause, same)


def _named(rule: Rule, subjects: list[Party], peers: list[Party]) -> set[tuple[NamedPort, ...]]:
    """The named ports of the destinations."""
    return {each.ports for each in (subjects if rule.toward is Toward.INGRESS else peers)}


def _instead(
    rule: Rule, parties: Parties, compiler: PolicyCompiler, subjects: list[Party], peers: list[Party]
) -> str:
    """What decides where a rule matches."""
    for subject in subjects:
        for peer in peers:
            ports = subject.ports if rule.toward is Toward.INGRESS else peer.ports
            for protocol, port, _ in sorted(port_keys(rule.ports, ports)):
                table = compiler.table(parties.numbers[subject])
                _, entry = table.find(rule.toward, parties.numbers[peer], protocol, port)
                causes = ", ".join(map(str, entry.causes)) or entry.because.name.lower().replace("_", " ")
                return f"{'allowed' if entry.action is Action.ALLOW else 'denied'} by {causes}"
    return "something else decides"


def _without(
    policy: Policy, rule: Rule, parties: Parties, compiler: PolicyCompiler, subjects: list[Party]
) -> str | None:
    """What decides if the rule is not there, where that is the same; None: it would make a difference."""
    before = {each: _copy(compiler.table(parties.numbers[each])) for each in subjects}
    compiler.update([evolve(policy, rules=[each for each in policy.rules if each is not rule])])
    try:
        reasons = set[str]()
        for each in subjects:
            after = compiler.table(parties.numbers[each])
            if after.audits(rule.toward) != before[each].audits(rule.toward):
                return None  # what is denied passes
            for number in parties.numbers.values():
                found = _same(before[each], after, rule, number, policy)
                if found is None:
                    return None
                reasons |= found
        return f"without it the same is {', '.join(sorted(reasons)[:3]) or 'decided'}"
    finally:
        compiler.update([policy])


def _copy(table: PolicyTable) -> PolicyTable:
    ingress, egress = table.halves
    return PolicyTable((dict(ingress), dict(egress)))


def _same(
    before: PolicyTable, after: PolicyTable, rule: Rule, number: int, policy: Policy
) -> set[str] | None:
    rows = [row for table in (before, after) for row in _rows(table, rule.toward, number)]
    if rows[:2] == rows[2:]:
        return set()
    reasons = set[str]()
    for protocol, first, _ in port_ranges(rows):
        _, was = before.find(rule.toward, number, protocol, first)
        _, now = after.find(rule.toward, number, protocol, first)
        if was.action is not now.action or was.l7 != now.l7:
            return None
        if was != now and Cause(policy.name, rule.name) in was.causes:
            word = "allowed" if now.action is Action.ALLOW else "denied"
            causes = ", ".join(map(str, now.causes[:2]))
            reasons.add(f"{word} by {causes}" if causes else f"{word}: no policy isolates")
    return reasons


def _rows(table: PolicyTable, toward: Toward, number: int) -> tuple[Any, Any]:
    half = table.halves[toward]
    return half.get(number, {}), half[0]
