"""How long policies take to become entries: all of them at once, one identity more, one policy more."""

from __future__ import annotations

import gc
import random
import statistics
import time

from attrs import frozen

from benchmarks import harness
from benchmarks.harness import Figure, median, say
from k8sdatapath.datapath.identity_policy import IdentityPolicy
from k8sdatapath.datapath.policy_compiler import PolicyCompiler
from k8sdatapath.model.policy import (
    POD_NAMESPACE,
    Operator,
    Policy,
    PortMatch,
    Requirement,
    Rule,
    Selector,
    Toward,
    attributes,
)
from k8sdatapath.model.workload import Party, Workload
from k8sdatapath.objects import ObjectSpec

BENCH = "policy_compile"
ROUNDS = 7
IDENTITIES, POLICIES = 10_000, 1_000
LOCAL = 100
NAMESPACES, APPS, TIERS = 200, 2_000, 7
NEW = 400  # identities a round
CHANGES = 20  # of labels, a round


@frozen
class Round:
    """Seconds of one round."""

    compiled: float
    all_tables: float
    policy: float
    new: list[float]


def main() -> None:
    print(f"{BENCH}: {IDENTITIES:,} identities x {POLICIES:,} policies, {ROUNDS} rounds\n")
    with harness.pinned():
        rounds = [once(number) for number in range(ROUNDS)]
        changes = relabelled()
    times = [seconds for each in rounds for seconds in each.new]
    harness.table(
        [f"{IDENTITIES:,} identities x {POLICIES:,} policies", "median", "slowest"],
        [
            (f"s, with the tables of {LOCAL} identities", *ends([each.compiled for each in rounds])),
            ("s, with those of all", *ends([each.all_tables for each in rounds])),
            (
                f"ms, one pod relabelled, enforced on {LOCAL}",
                *ends([each for own in changes for each in own]),
            ),
            ("us, one identity more", *ends([seconds * 1e6 for seconds in times])),
            (
                f"ms, one policy more for {IDENTITIES // TIERS:,}",
                *ends([each.policy * 1e3 for each in rounds]),
            ),
        ],
    )
    harness.report(BENCH, ROUNDS, figures(rounds, changes))


def figures(rounds: list[Round], changes: list[list[float]]) -> dict[str, Figure]:
    return {
        "compile_s_10k_x_1k": Figure(
            tuple(each.compiled for each in rounds),
            "s",
            f"every identity and policy taken in, and the tables of {LOCAL} identities",
            "none",
            at_most=1.0,
        ),
        "compile_all_s_10k_x_1k": Figure(
            tuple(each.all_tables for each in rounds),
            "s",
            "the same with the tables of all identities, which no node has",
            "none",
            at_most=3.0,
        ),
        "new_identity_us": Figure(
            tuple(statistics.quantiles(each.new, n=100)[98] * 1e6 for each in rounds),
            "us",
            "99th percentile: one identity more, for all tables",
            "none",
            at_most=1000.0,
        ),
        "relabel_enforced_ms_100": Figure(
            tuple(map(median, changes)),
            "ms",
            f"another label of one pod, in the kernel's policies of {LOCAL} others",
            "none",
            at_most=50.0,
        ),
    }


def once(number: int) -> Round:
    chance = random.Random(number)
    identities = {256 + each: party(each) for each in range(IDENTITIES)}
    policies = [policy(each, chance) for each in range(POLICIES)]
    local = chance.sample(sorted(identities), LOCAL)
    forget()
    began = time.perf_counter()
    compiler = PolicyCompiler()
    compiler.update(policies, identities=identities, subjects=local)
    compiled = time.perf_counter() - began
    new = []
    for each in range(NEW):
        another = party(each, extra=f"n{each}")
        began = time.perf_counter()
        compiler.update(identities={256 + IDENTITIES + each: another})
        new.append(time.perf_counter() - began)
    compiler = PolicyCompiler()
    forget()
    began = time.perf_counter()
    compiler.update(policies, identities=identities, subjects=identities)
    everything = time.perf_counter() - began
    every = Policy("every", Selector([equals("k8s:tier", "t1")]), [rule(chance)], [Toward.INGRESS])
    began = time.perf_counter()
    compiler.update([every])
    changed = time.perf_counter() - began
    say(f"round {number}: {compiled:.3f} s, all tables {everything:.3f} s")
    return Round(compiled, everything, changed, new)


def forget() -> None:
    """Nothing is known of the labels of an earlier round."""
    attributes.cache_clear()
    gc.collect()


def relabelled() -> list[list[float]]:
    """Milliseconds until the programs judge a pod by its new labels, in the policies of 100 other pods.

    Each of these has an identity of its own, with a policy that selects the labels that come and go.
    """
    wanted = [
        Policy(
            f"p{number}",
            Selector([equals("k8s:app", f"local{number}")]),
            [
                Rule(
                    "r",
                    Toward.INGRESS,
                    [Selector([equals("k8s:role", role)]) for role in ("one", "two", f"own{number}")],
                    [PortMatch(6, 8000 + number, 8000 + number)],
                )
            ],
            [Toward.INGRESS],
        )
        for number in range(LOCAL)
    ]
    times = []
    with (
        ObjectSpec.from_file("pod").with_config(enforce=True).load() as loaded,
        IdentityPolicy.bind(loaded) as policy,
    ):
        policy.upsert(*wanted)
        for number in range(LOCAL):
            local = Workload(
                f"local{number}", [f"k8s:app=local{number}"], addresses=[f"10.244.0.{number + 2}"]
            )
            policy.attach(local, 300 + number)
        for _ in range(ROUNDS):
            own = []
            for change in range(CHANGES):
                role = ("one", "two")[change % 2]
                pod = Workload("peer", [f"k8s:role={role}"], addresses=["10.244.9.9"])
                began = time.perf_counter()
                policy.learn({pod: 1000 + change % 2})
                own.append((time.perf_counter() - began) * 1e3)
            times.append(own)
        assert sum(each.peer == 1000 + change % 2 for each in policy.dump()) == LOCAL
    return times


def equals(key: str, value: str) -> Requirement:
    return Requirement(key, Operator.IN, [value])


def party(number: int, extra: str = "") -> Party:
    """A deployment of its own, in one of the namespaces, with nine labels."""
    return Party(
        [
            f"k8s:app=a{number % APPS}",
            f"{POD_NAMESPACE}=ns{number % NAMESPACES}",
            f"k8s:tier=t{number % TIERS}",
            f"k8s:instance=i{number}{extra}",
            *(f"k8s:label{each}=value{each}" for each in range(5)),
        ]
    )


def policy(number: int, chance: random.Random) -> Policy:
    """One for a part of a namespace: from one deployment and from its neighbours, to two sets of ports."""
    space = equals(POD_NAMESPACE, f"ns{number % NAMESPACES}")
    subject = Selector([space, equals("k8s:tier", f"t{number % TIERS}")])
    return Policy(f"p{number}", subject, [rule(chance, Selector([space]))], [Toward.INGRESS])


def rule(chance: random.Random, *more: Selector) -> Rule:
    app = Selector([equals("k8s:app", f"a{chance.randrange(APPS)}")])
    return Rule("r", Toward.INGRESS, [app, *more], [PortMatch(6, 8080, 8080), PortMatch(6, 9000, 9100)])


def ends(samples: list[float]) -> tuple[float, float]:
    return median(samples), max(samples)
