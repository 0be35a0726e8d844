"""Small worlds of pods, addresses and policies, in which nearly everything meets: hypothesis draws them."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address

from attrs import evolve
from hypothesis import strategies as st

from k8sdatapath.model.policy import (
    ALL_PORTS,
    EVERYBODY,
    Action,
    Block,
    Operator,
    Policy,
    PortMatch,
    Requirement,
    Rule,
    Selector,
    Tier,
    Toward,
)
from k8sdatapath.model.workload import NamedPort, Workload

PORTS = (79, 80, 81, 443, 8080, 8081, 8090)
NETWORKS = ("0.0.0.0/0", "10.0.0.0/8", "10.1.0.0/16", "10.1.2.0/24", "10.1.2.3/32", "::/0", "fd00::/16")
ADDRESSES = tuple(map(IPv4Address, ("10.1.2.3", "10.1.2.4", "10.1.9.9", "10.9.9.9", "192.0.2.1"))) + tuple(
    map(IPv6Address, ("fd00::1", "2001:db8::1"))
)

named = st.sampled_from((NamedPort("http", 80), NamedPort("http", 8080), NamedPort("dns", 53, "UDP")))


@st.composite
def pods(draw: st.DrawFn, number: int) -> Workload:
    space = draw(st.sampled_from(("a", "b")))
    labels = draw(st.dictionaries(st.sampled_from(("app", "role")), st.sampled_from(("x", "y", ""))))
    addresses = draw(
        st.sampled_from(((), (f"10.1.2.{number + 3}", f"fd00::{number + 1}"), (f"10.2.0.{number + 1}",)))
    )
    around = draw(st.sampled_from(({}, {"team": "x"})))
    ports = draw(st.lists(named, max_size=2))
    return Workload.pod(
        f"{space}/{number}", labels, namespace_labels=around, addresses=addresses, ports=ports
    )


keys = st.sampled_from(
    ("k8s:app", "k8s:role", "any:app", "k8s:io.kubernetes.pod.namespace", "reserved:world", "reserved:host")
)
values = st.sets(st.sampled_from(("x", "y", "", "a", "b")), min_size=1, max_size=2)
requirements = st.one_of(
    st.builds(Requirement, keys, st.sampled_from((Operator.IN, Operator.NOT_IN)), values),
    st.builds(Requirement, keys, st.sampled_from((Operator.EXISTS, Operator.ABSENT))),
)
selectors = st.builds(Selector, st.lists(requirements, max_size=2))


@st.composite
def blocks(draw: st.DrawFn) -> Block:
    network = draw(st.sampled_from(NETWORKS))
    outer = Block(network).network
    inside = [each for each in NETWORKS if (inner := Block(each).network) != outer and _inside(inner, outer)]
    excepts = draw(st.sets(st.sampled_from(inside), max_size=2)) if inside else ()
    return Block(outer, excepts, draw(st.booleans()))


def _inside(inner: object, outer: object) -> bool:
    return inner.version == outer.version and inner.subnet_of(outer)  # type: ignore[attr-defined]


@st.composite
def ranges(draw: st.DrawFn) -> PortMatch:
    first, last = sorted(draw(st.tuples(st.sampled_from(PORTS), st.sampled_from(PORTS))))
    return PortMatch(draw(st.sampled_from((6, 17))), first, last)


matches = st.one_of(
    ranges(),
    st.builds(PortMatch, st.sampled_from((6, 17, 1))),
    st.builds(PortMatch, st.sampled_from((None, 6, 17)), name=st.sampled_from(("http", "dns", "none"))),
    st.just(ALL_PORTS),
    st.builds(PortMatch, st.just(1), st.just(8), st.just(8)),
)
peers = st.one_of(selectors, blocks(), st.just(EVERYBODY))


subjects = st.one_of(st.just(EVERYBODY), selectors)


def rules(actions: Sequence[Action]) -> st.SearchStrategy[Rule]:
    return st.builds(
        Rule,
        st.sampled_from(("one", "two")),
        st.sampled_from(Toward),
        st.lists(peers, max_size=2),
        st.lists(matches, min_size=1, max_size=2),
        st.sampled_from(actions),
    )


def broad(toward: Toward) -> st.SearchStrategy[list[Rule]]:
    """Rules that match much the same packets, so that their order is what counts."""
    each = st.builds(
        Rule,
        st.just("broad"),
        st.just(toward),
        st.lists(st.sampled_from((EVERYBODY, APP_X, IN_A)), min_size=1, max_size=2),
        st.lists(st.sampled_from((ALL_PORTS, PortMatch(6, 79, 81))), min_size=1, max_size=2),
        st.sampled_from((Action.PASS, Action.DENY, Action.ALLOW)),
    )
    return st.lists(each, min_size=2, max_size=4)


APP_X = Selector([Requirement("any:app", Operator.IN, ["x"])])
IN_A = Selector([Requirement("k8s:io.kubernetes.pod.namespace", Operator.IN, ["a"])])
names = st.sampled_from([f"p{number}" for number in range(6)])
ordered = st.one_of(st.lists(rules(tuple(Action)), max_size=3), broad(Toward.INGRESS), broad(Toward.EGRESS))
enforced = st.one_of(
    st.builds(
        Policy,
        names,
        subjects,
        st.lists(rules((Action.ALLOW, Action.ALLOW, Action.DENY)), max_size=3),
        st.sets(st.sampled_from(Toward)),
    ),
    st.builds(
        Policy,
        names,
        subjects,
        ordered,
        tier=st.sampled_from((Tier.ADMIN, Tier.BASELINE)),
        priority=st.integers(0, 3),
    ),
)
policies = st.builds(evolve, enforced, audit=st.sampled_from((False, False, True)))
policy_lists = st.lists(policies, min_size=1, max_size=6, unique_by=lambda each: each.name)
sides = st.one_of(
    st.integers(0, 3).flatmap(pods), st.sampled_from(ADDRESSES), st.just(Workload("node", ["reserved:host"]))
)
