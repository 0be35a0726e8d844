"""Policies become entries: they say what the rules say, and a change leads to what a fresh start does."""

from __future__ import annotations

import pytest
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st

from k8sdatapath.datapath.policy_compiler import EntryKey, PolicyCompiler
from k8sdatapath.datapath.policy_index import PeerIndex
from k8sdatapath.datapath.policy_oracle import allows, audits, requests_asked
from k8sdatapath.datapath.policy_rows import covers, port_keys
from k8sdatapath.datapath.policy_set import PolicySet
from k8sdatapath.datapath.policy_sides import world
from k8sdatapath.errors import ModelError
from k8sdatapath.model.policy import (
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
    prefixes,
)
from k8sdatapath.model.workload import NamedPort, Party, Workload
from tests.support.policies import PORTS, peers, policies, policy_lists, sides

WEB, DB = Party(["k8s:app=web"]), Party(["k8s:app=db"])


def app(name: str) -> Selector:
    return Selector([Requirement("k8s:app", Operator.IN, [name])])


@settings(max_examples=300)
@given(policy_lists, st.lists(sides, min_size=2, max_size=4), st.sampled_from((4, 6)))
def test_entries_say_what_the_rules_say(found, around, version):
    asked = PolicySet(found)
    for source in around:
        for destination in around:
            if {getattr(each, "version", version) for each in (source, destination)} != {version}:
                continue
            for port, protocol in (
                *((port, 6) for port in PORTS),
                (80, 17),
                (53, 17),
                (8, 1),
                (0, 1),
                (80, 132),
            ):
                verdict = asked.verdict(source, destination, port, protocol, version=version)
                told = allows(found, source, destination, port, protocol, version=version)
                assert verdict.allowed is told, (str(verdict), port, protocol)
                looked_at = audits(found, source, destination, port, protocol, version=version)
                assert {each.toward for each in verdict.decisions if each.audited} == looked_at
                assert all(each.causes or each.because != 0 for each in verdict.decisions)


@st.composite
def asking_for_requests(draw: st.DrawFn) -> list[Policy]:
    """Policies some of whose rules ask for requests."""
    found = []
    for policy in draw(policy_lists):
        if policy.tier is Tier.DEFAULT:
            requests = st.lists(st.sampled_from(("GET", "POST", "PUT")), max_size=2)
            allowing = [rule.action is Action.ALLOW for rule in policy.rules]
            rules = [
                evolve(rule, l7=draw(requests) if can else ())
                for rule, can in zip(policy.rules, allowing, strict=True)
            ]
            policy = evolve(policy, rules=rules)
        found.append(policy)
    return found


@settings(max_examples=300)
@given(asking_for_requests(), st.lists(sides, min_size=2, max_size=4), st.sampled_from((4, 6)))
def test_entries_ask_for_the_requests_that_rules_do(found, around, version):
    asked = PolicySet(found)
    for source in around:
        for destination in around:
            if source == destination or {
                getattr(each, "version", version) for each in (source, destination)
            } != {version}:
                continue
            for port, protocol in (*((port, 6) for port in PORTS), (80, 17)):
                verdict = asked.verdict(source, destination, port, protocol, version=version)
                assert verdict.allowed is allows(found, source, destination, port, protocol, version=version)
                told = requests_asked(found, source, destination, port, protocol, version=version)
                for each in verdict.decisions:
                    if each.allowed:
                        assert each.l7 == told.get(each.toward, frozenset()), (str(each), port, protocol)


def test_of_rules_that_ask_for_requests_one_is_enough_and_one_that_does_not_makes_up_for_all():
    def allow(name: str, peer: Selector, ports: PortMatch, *requests: str) -> Rule:
        return Rule(name, Toward.INGRESS, [peer], [ports], l7=requests)

    rules = [
        allow("web", app("web"), PortMatch(6, 80, 81), "GET"),
        allow("all", EVERYBODY, PortMatch(6, 80, 80), "POST"),
        allow("plain", app("web"), PortMatch(6, 81, 81)),
    ]
    asked = PolicySet([Policy("p", app("db"), rules, [Toward.INGRESS])])
    web, db = Workload("web", WEB.labels), Workload.pod("x/db", {"app": "db"})
    for source, port, requests in ((web, 80, {"GET", "POST"}), (web, 81, set()), (db, 80, {"POST"})):
        source = Workload.pod("x/other", {"app": "other"}) if source is db else source
        [decision] = [
            each for each in asked.verdict(source, db, port).decisions if each.toward is Toward.INGRESS
        ]
        assert decision.allowed
        assert decision.l7 == requests
    with pytest.raises(ModelError, match="only a rule that allows can ask for requests"):
        Rule("r", Toward.INGRESS, [EVERYBODY], action=Action.DENY, l7=["GET"])
    with pytest.raises(ModelError, match="only the rules of the default tier can ask for requests"):
        Policy("p", EVERYBODY, [allow("r", EVERYBODY, PortMatch(), "GET")], tier=Tier.ADMIN)


changes = st.lists(
    st.one_of(
        st.tuples(st.just("policy"), policies),
        st.tuples(st.just("drop"), st.integers(0, 5)),
        st.tuples(st.just("identity"), sides),
        st.tuples(st.just("gone"), st.integers(0, 5)),
        st.tuples(st.just("subject"), st.integers(0, 5)),
    ),
    max_size=14,
)


def known_as(side) -> Party:
    if isinstance(side, Workload):
        network = Block("10.1.2.0/24").network if side.addresses else None
        return Party(side.labels, network, side.ports)
    return Party(world(side.version), Block(side).network)


@settings(max_examples=100)
@given(st.lists(peers, max_size=4), st.lists(sides, max_size=6), st.booleans())
def test_a_selection_is_what_matches(wanted, around, peers_first):
    index = PeerIndex()
    parties = dict(enumerate(map(known_as, around), 300))
    for what in ("peers", "parties") if peers_first else ("parties", "peers"):
        for peer in wanted if what == "peers" else ():
            index.use(peer)
        for number, party in parties.items() if what == "parties" else ():
            index.add(number, party)
    for gone in list(parties)[::3]:
        index.remove(gone)
        del parties[gone]
    for peer in wanted:
        chosen = {n for n, party in parties.items() if matches(peer, party)}
        assert set(index.selected(peer)) == chosen
        assert {n for n in parties if peer in index.selecting(n)} == chosen


def matches(peer, party: Party) -> bool:
    if isinstance(peer, Block):
        return peer.matches(party.labels, party.network)
    return peer.matches(party.labels)


@settings(max_examples=100)
@given(st.lists(sides, min_size=2, max_size=4), changes)
def test_changes_lead_where_a_fresh_start_does(around, steps):
    """The maps, as they are after all the changes that were told, are those of a new compiler."""
    compiler = PolicyCompiler()
    wanted: dict[str, Policy] = {}
    identities = dict(enumerate(map(known_as, around), 300))
    subjects = set(identities)
    first = compiler.update(identities=identities, subjects=subjects)
    maps = {subject: dict(change.upserts) for subject, change in first.items()}
    for number, (what, value) in enumerate(steps, 1000):
        told = {}
        if what == "policy":
            wanted[value.name] = value
            told = compiler.update([value])
        elif what == "drop" and wanted:
            name = sorted(wanted)[value % len(wanted)]
            del wanted[name]
            told = compiler.update(removed=[name])
        elif what == "identity":
            party = known_as(value)
            identities[number] = party
            told = compiler.update(identities={number: party})
        elif what == "gone" and identities.keys() - subjects:
            gone = sorted(identities.keys() - subjects)[0]
            del identities[gone]
            told = compiler.update(gone=[gone])
        elif what == "subject" and identities:
            subject = sorted(identities)[value % len(identities)]
            if subject in subjects:
                subjects.remove(subject)
                del maps[subject]
                told = compiler.update(no_subjects=[subject])
            else:
                subjects.add(subject)
                told = compiler.update(subjects=[subject])
        for subject, change in told.items():
            there = maps.setdefault(subject, {})
            assert not change.upserts.keys() & set(change.removed)
            there.update(change.upserts)
            for key in change.removed:
                del there[key]
    fresh = PolicyCompiler()
    fresh.update(wanted.values(), identities=identities, subjects=subjects)
    for subject in subjects:
        assert maps[subject] == dict(compiler.table(subject).items()) == dict(fresh.table(subject).items())
    assert maps.keys() == subjects
    assert compiler.networks == fresh.networks


@given(st.integers(0, 65535), st.integers(0, 65535))
def test_a_range_is_few_prefixes_that_make_it_up(one, other):
    first, last = sorted((one, other))
    found = list(prefixes(first, last))
    assert len(found) <= 30
    sizes = [1 << 16 - bits for _, bits in found]
    assert sum(sizes) == last - first + 1
    assert all(port % size == 0 for (port, _), size in zip(found, sizes, strict=True))
    assert [port for port, _ in found] == sorted(port for port, _ in found)


def test_no_entry_is_covered_by_one_that_is_as_strong():
    rule = Rule(
        "r", Toward.INGRESS, [app("web")], [PortMatch(6, 80, 80), PortMatch(6), PortMatch(17, 53, 53)]
    )
    compiler = PolicyCompiler()
    compiler.update(
        [Policy("p", app("db"), [rule], [Toward.INGRESS])], identities={300: WEB, 301: DB}, subjects=[301]
    )
    keys = [key for key, _ in compiler.table(301).items() if key.identity == 300]
    assert sorted(key[2:] for key in keys) == [(6, 0, 0), (17, 53, 16)]
    assert covers((6, 0, 0), (6, 80, 16))


def test_what_is_no_policy_is_refused():
    with pytest.raises(ModelError, match="'p' is no Policy: parse_policies makes some of a text"):
        PolicySet("payments.yaml")


def test_an_allow_with_two_owners_stays_while_one_is_left():
    def allow(name: str) -> Policy:
        return Policy(name, app("db"), [Rule("r", Toward.INGRESS, [app("web")])], [Toward.INGRESS])

    compiler = PolicyCompiler()
    compiler.update([allow("a"), allow("b")], identities={300: WEB, 301: DB}, subjects=[301])
    [change] = compiler.update(removed=["a"]).values()
    assert change.removed == ()
    assert [str(cause) for cause in change.upserts[EntryKey(300, Toward.INGRESS, 0, 0, 0)].causes] == ["b r"]
    [change] = compiler.update(removed=["b"]).values()
    assert EntryKey(300, Toward.INGRESS, 0, 0, 0) in change.removed


def test_what_only_looks_on_neither_allows_nor_denies():
    def policy(name: str, *peers: Selector, audit: bool = False, action: Action = Action.ALLOW) -> Policy:
        isolates = [Toward.INGRESS] if action is Action.ALLOW else []
        rules = [Rule("r", Toward.INGRESS, [peer], action=action) for peer in peers]
        return Policy(name, app("db"), rules, isolates, audit=audit)

    pods = [Workload.pod(f"x/{name}", {"app": name}) for name in ("web", "db", "cart")]

    def ask(*policies: Policy, source: str = "x/web"):
        return PolicySet(policies, pods).why(source, "x/db", 80)

    staged = policy("staged", app("web"), audit=True)
    assert ask(staged)
    assert not ask(staged).verdict.audited
    looked_at = ask(staged, source="x/cart")
    assert looked_at.verdict.audited
    assert "ingress allowed, though it would be denied by default: staged isolates" in str(looked_at)
    assert "not by staged r: asks for k8s:app=web" in str(looked_at)
    nobody = policy("nobody")
    left_out = ask(staged, nobody)
    assert not left_out
    assert "not by staged r: only looks on, and others are in force" in str(left_out)
    open_ = policy("open", app("web"))
    refusal = policy("refusal", app("web"), audit=True, action=Action.DENY)
    assert ask(open_, refusal)
    assert not ask(open_, refusal).verdict.audited
    assert ask(refusal).verdict.audited
    pods[1] = evolve(pods[1], audit=True)
    assert ask(nobody).verdict.audited
    pods[1] = evolve(pods[1], audit=False)
    tier = Policy(
        "tier", app("db"), [Rule("r", Toward.INGRESS, [app("cart")], action=Action.DENY)], tier=Tier.BASELINE
    )
    assert not ask(tier, staged, source="x/cart")  # enforced, it would take the tier's place
    assert ask(evolve(tier, audit=True), source="x/cart").verdict.audited


def test_an_identity_that_no_rule_selects_changes_no_map():
    compiler = PolicyCompiler()
    policy = Policy("p", app("db"), [Rule("r", Toward.INGRESS, [app("web")])], [Toward.INGRESS])
    compiler.update([policy], identities={301: DB}, subjects=[301])
    assert compiler.update(identities={302: Party(["k8s:app=other"])}) == {}
    change = compiler.update(identities={300: WEB})[301]
    assert [key.identity for key in change.upserts] == [300]
    assert compiler.update(gone=[302]) == {}
    assert compiler.update(gone=[300])[301].removed == tuple(change.upserts)


def test_of_a_named_port_only_that_of_the_destination_counts():
    assert port_keys([PortMatch(6, name="http")], [NamedPort("http", 8080)]) == {(6, 8080, 16)}
    assert port_keys([PortMatch(17, name="http")], [NamedPort("http", 8080)]) == set()
    assert port_keys([PortMatch(name="dns")], [NamedPort("dns", 53), NamedPort("dns", 53, "UDP")]) == {
        (6, 53, 16),
        (17, 53, 16),
    }


@pytest.mark.parametrize("isolated", [False, True])
def test_a_pass_goes_to_the_next_tier(isolated):
    admin = Policy(
        "admin",
        EVERYBODY,
        [
            Rule("pass", Toward.INGRESS, [app("web")], [PortMatch(6, 80, 80)], Action.PASS),
            Rule("deny", Toward.INGRESS, [EVERYBODY], action=Action.DENY),
        ],
        tier=Tier.ADMIN,
    )
    isolating = Policy("np", EVERYBODY, isolates=[Toward.INGRESS])
    asked = PolicySet([admin, isolating] if isolated else [admin])
    web, db = Workload("web", WEB.labels), Workload("db", DB.labels)
    verdict = asked.verdict(web, db, 80)
    assert verdict.allowed is not isolated
    expected = "np isolates, and no rule allows it" if isolated else "no policy isolates"
    assert str(verdict).endswith(f"by default: {expected}")
    assert str(asked.verdict(web, db, 81)).endswith("ingress denied by admin deny")
