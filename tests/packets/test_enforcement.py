"""Policies as the programs enforce them: what the rules say, who answers, and what always passes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Iterator
from ipaddress import ip_address

import pytest
from attrs import evolve

from k8sdatapath import maps
from k8sdatapath.datapath.explainer import Explainer
from k8sdatapath.datapath.identity_policy import IdentityPolicy
from k8sdatapath.errors import CapacityError, ModelError
from k8sdatapath.kube.policy import parse_policies
from k8sdatapath.model import Backend, Protocol, Service
from k8sdatapath.model.policy import EVERYBODY, Action, Policy, PortMatch, Rule, Toward
from k8sdatapath.model.workload import Workload
from k8sdatapath.net.packet import fragment, icmp_echo, icmp_error, sctp, tcp, udp
from k8sdatapath.tables.policy import RuleKey, RuleRow
from tests.packets.checkpoint import Checkpoint, checkpoint
from tests.packets.shop import API, FAMILIES, ONLY_WEB, STRANGERS, WEB, at

pytestmark = pytest.mark.packets

FAR = Workload.pod("shop/far", {"app": "web"}, addresses=["10.244.2.2", "fd00:10:244:2::2"])
SHOP_WEB = "k8s:app=web, k8s:io.kubernetes.pod.namespace=shop"


@pytest.fixture
def node() -> Iterator[Checkpoint]:
    with checkpoint(WEB, API) as made:
        made.learn(FAR)
        made.policy.upsert(*parse_policies(ONLY_WEB))
        yield made


@FAMILIES
@pytest.mark.parametrize("peer", [WEB, FAR], ids=lambda each: each.name)
def test_a_peer_that_is_named_and_its_answers(node: Checkpoint, peer: Workload, family: int) -> None:
    client, server = at(peer, family), at(API, family)
    assert node.passes(tcp(client, server, 40000, 8080, "S"), client, server)
    assert node.passes(tcp(server, client, 8080, 40000, "SA"), server, client)
    assert node.passes(tcp(client, server, 40000, 8080, "A", b"x"), client, server)
    assert not node.passes(tcp(client, server, 40000, 8081, "S"), client, server)
    assert not node.passes(udp(client, server, 40000, 8080, b"x"), client, server)
    assert not node.passes(sctp(client, server, 40000, 8080), client, server)


@FAMILIES
def test_who_is_isolated_both_ways_begins_nothing(node: Checkpoint, family: int) -> None:
    server, client = at(API, family), at(WEB, family)
    assert not node.passes(tcp(server, client, 8080, 40000, "S"), server, client)
    assert not node.passes(udp(server, client, 53, 40000, b"x"), server, client)
    assert not node.passes(tcp(server, client, 8080, 40000, "SA"), server, client)  # an answer to nothing
    assert node.leave(tcp(server, client, 1, 1, "S"), server).outcome == "DROP_POLICY_DENIED"


@FAMILIES
def test_a_pod_lies_about_its_address(node: Checkpoint, family: int) -> None:
    liar = tcp(at(FAR, family), at(API, family), 40000, 8080, "S")
    assert node.leave(liar, at(WEB, family)).outcome == "DROP_INVALID_SOURCE_IP"


@FAMILIES
def test_the_node_itself_reaches_its_pods_and_nobody_else_in_its_name(node: Checkpoint, family: int) -> None:
    own = {4: "192.0.2.11", 6: "2001:db8::11"}[family]
    node.policy.learn({Workload.node("this", addresses=[own], remote=False): 1})
    probe = tcp(own, at(API, family), 40000, 9000, "S")
    assert node.enter(probe).outcome == "DROP_POLICY_DENIED"  # IPv6 lets others forge it
    assert node.enter(probe, came_through=0).outcome == "PASS"
    assert node.passes(tcp(at(API, family), own, 9000, 40000, "SA"), at(API, family), own)
    assert (
        node.enter(tcp(STRANGERS[family], at(API, family), 40000, 9000, "S")).outcome == "DROP_POLICY_DENIED"
    )


@FAMILIES
def test_errors_pass_if_they_are_about_a_talk(node: Checkpoint, family: int) -> None:
    client, server = at(FAR, family), at(API, family)
    assert node.passes(udp(client, server, 40000, 53, b"x"), client, server)
    answer = udp(server, client, 53, 40000, b"y")
    assert node.passes(answer, server, client)
    unreachable = {4: (3, 1), 6: (1, 0)}[family]
    assert node.enter(icmp_error(STRANGERS[family], server, answer, unreachable)).outcome == "PASS"
    other = udp(server, client, 53, 40001, b"y")
    assert (
        node.enter(icmp_error(STRANGERS[family], server, other, unreachable)).outcome == "DROP_POLICY_DENIED"
    )
    too_big = {4: (3, 4), 6: (2, 0)}[family]
    assert node.enter(icmp_error(STRANGERS[family], server, other, too_big)).outcome == "PASS"


@FAMILIES
def test_echo_needs_a_rule_of_its_own(node: Checkpoint, family: int) -> None:
    client, server = at(FAR, family), at(API, family)
    request, reply = icmp_echo(client, server, 7), bytearray(icmp_echo(server, client, 7))
    reply[{4: 34, 6: 54}[family]] = {4: 0, 6: 129}[family]
    assert not node.passes(request, client, server)
    protocol, kind = {4: (1, 8), 6: (58, 128)}[family]
    ping = Rule("ping", Toward.INGRESS, [EVERYBODY], [PortMatch(protocol, kind, kind)])
    node.policy.upsert(Policy("ping", EVERYBODY, [ping]))
    assert not node.passes(bytes(reply), server, client)  # nobody has asked
    assert node.passes(request, client, server)
    assert node.passes(bytes(reply), server, client)
    assert not node.passes(icmp_echo(server, client, 7), server, client)


@FAMILIES
def test_fragments_follow_their_first(node: Checkpoint, family: int) -> None:
    client, server = at(FAR, family), at(API, family)
    for port, passes in (53, True), (54, False):
        first, *later = fragment(udp(client, server, 40000, port, bytes(3000)), 1200, ident=port)
        assert node.passes(first, client, server) is passes
        assert [node.passes(each, client, server) for each in later] == [passes] * len(later)
    _, *lost = fragment(udp(client, server, 40000, 53, bytes(3000)), 1200, ident=99)
    assert node.enter(lost[0]).outcome == "DROP_FRAGMENT"


@FAMILIES
def test_a_service_is_judged_by_its_backend(node: Checkpoint, family: int) -> None:
    client, server, vip = at(WEB, family), at(API, family), {4: "10.96.0.9", 6: "fd00:10:96::9"}[family]
    for port in 80, 81:
        node.rig.services.upsert(Service(vip, port, backends=[Backend(server, port + 8000)]))
    there = node.leave(tcp(client, vip, 40000, 80, "S"), client)
    assert there.outcome == "TO_STACK"
    assert node.enter(there.frame).outcome == "PASS"
    back = node.leave(tcp(server, client, 8080, 40000, "SA"), server)
    assert (back.outcome, str(back.packet.src), back.packet.sport) == ("TO_STACK", vip, 80)
    assert node.leave(tcp(client, vip, 40000, 81, "S"), client).outcome == "DROP_POLICY_DENIED"


@FAMILIES
def test_datagrams_of_both_sides_on_the_same_ports(node: Checkpoint, family: int) -> None:
    """Web may not begin with API's port 5000, but another pod may begin with web's, from its own 5000."""
    server, other = at(API, family), at(WEB, family)
    rule = Rule("gossip", Toward.EGRESS, [EVERYBODY], [PortMatch(17, 5000, 5000)])
    node.policy.upsert(Policy("gossip", EVERYBODY, [rule]))
    assert not node.passes(udp(other, server, 5000, 5000, b"x"), other, server)
    assert node.passes(udp(server, other, 5000, 5000, b"x"), server, other)
    assert node.passes(udp(other, server, 5000, 5000, b"x"), other, server)  # an answer, now


@FAMILIES
def test_a_talk_ends_after_a_silence(node: Checkpoint, family: int) -> None:
    client, server = at(FAR, family), at(API, family)
    assert node.passes(udp(client, server, 40000, 53, b"x"), client, server)
    assert node.passes(udp(server, client, 53, 40000, b"y"), server, client)
    node.talks.update_many(
        {key: evolve(row, last_seen=row.last_seen - 121) for key, row in node.talks.items()}
    )
    assert not node.passes(udp(server, client, 53, 40000, b"y"), server, client)


@FAMILIES
def test_live_talks_feel_a_change_or_do_not(node: Checkpoint, family: int) -> None:
    client, server = at(FAR, family), at(API, family)
    assert node.passes(tcp(client, server, 40000, 8080, "S"), client, server)
    (closed,) = parse_policies(ONLY_WEB.replace("8080", "8081"))
    node.policy.upsert(closed, existing="keep")
    node.policy.learn({})  # nothing new, as a node's upkeep says every few seconds
    assert node.passes(tcp(client, server, 40000, 8080, "A"), client, server)
    assert node.passes(tcp(server, client, 8080, 40000, "A"), server, client)
    assert not node.passes(tcp(client, server, 40000, 8080, "S"), client, server)
    node.policy.upsert(*parse_policies(ONLY_WEB.replace("8080", "8082")))
    assert not node.passes(tcp(client, server, 40000, 8080, "A"), client, server)
    assert not node.passes(tcp(server, client, 8080, 40000, "A"), server, client)


@FAMILIES
def test_what_was_kept_goes_on_until_another_comes_to_one_of_its_addresses(
    node: Checkpoint, family: int
) -> None:
    near, far, server = at(WEB, family), at(FAR, family), at(API, family)
    for client in near, far:
        assert node.passes(tcp(client, server, 40000, 8080, "S"), client, server)
    (closed,) = parse_policies(ONLY_WEB.replace("8080", "8081"))
    node.policy.upsert(closed, existing="keep")

    def go_on(client: str) -> bool:
        there = node.passes(tcp(client, server, 40000, 8080, "A"), client, server)
        assert node.passes(tcp(server, client, 8080, 40000, "A"), server, client) is there
        return there

    node.learn(Workload.pod("shop/another", {"app": "web"}, addresses=["10.244.2.9"]))
    node.learn(Workload.node("other", addresses=["192.0.2.12"]))
    assert go_on(near)
    assert go_on(far)
    node.learn(Workload.pod("shop/new", {"app": "new"}, addresses=FAR.addresses))
    assert go_on(near)
    assert not go_on(far)
    node.policy.upsert(*parse_policies(ONLY_WEB))
    assert go_on(near)


@FAMILIES
def test_an_address_that_gets_another_owner(node: Checkpoint, family: int) -> None:
    """Of two that claim it the later is believed, and the earlier takes nothing away when it goes."""
    client, server = at(FAR, family), at(API, family)
    assert node.passes(tcp(client, server, 40000, 8080, "S"), client, server)
    node.learn(Workload.pod("shop/new", {"app": "db"}, addresses=FAR.addresses))
    node.policy.forget("shop/far")
    assert not node.passes(tcp(client, server, 40000, 8080, "A"), client, server)
    assert not node.passes(tcp(client, server, 40001, 8080, "S"), client, server)


@FAMILIES
def test_what_a_bridge_hands_over_is_judged_too(node: Checkpoint, family: int) -> None:
    """Such a frame has the pod's own link address, and so seems to be for somebody else."""
    stranger = tcp(STRANGERS[family], at(API, family), 40000, 8080, "S", dst_mac="02:00:00:00:00:0a")
    assert node.enter(stranger).outcome == "DROP_POLICY_DENIED"
    friend = tcp(at(FAR, family), at(API, family), 40000, 8080, "S", dst_mac="02:00:00:00:00:0a")
    assert node.enter(friend).outcome == "PASS"


@FAMILIES
def test_a_process_that_takes_over_and_what_it_was_not_told_again(node: Checkpoint, family: int) -> None:
    client, server = at(FAR, family), at(API, family)
    node.policy.close()
    with IdentityPolicy.bind(node.rig.loaded) as node.policy:
        assert node.passes(tcp(client, server, 40000, 8080, "S"), client, server)
        assert not node.passes(tcp(client, server, 40000, 8081, "S"), client, server)
        node.attach(WEB, API)
        node.policy.upsert(*parse_policies(ONLY_WEB))
        assert node.passes(tcp(client, server, 40000, 8080, "A"), client, server)
        node.policy.forget_strangers()
        assert not node.passes(tcp(client, server, 40000, 8080, "A"), client, server)
        node.learn(FAR)
        assert node.passes(tcp(client, server, 40000, 8080, "A"), client, server)
        assert not node.passes(tcp(client, server, 40001, 8081, "S"), client, server)


def test_neighbours_are_always_found(node: Checkpoint) -> None:
    server = at(API, 6)
    solicitation = bytearray(icmp_echo(server, "ff02::1:ff00:2", 1))
    solicitation[54] = 135
    assert node.leave(bytes(solicitation), server).outcome == "PASS"
    assert node.leave(icmp_echo(server, "ff02::1:ff00:2", 1), server).outcome == "DROP_POLICY_DENIED"


@FAMILIES
def test_icmp_of_the_other_family_is_no_icmp(node: Checkpoint, family: int) -> None:
    """Nothing in front of it is taken for its type: 2 would be of a packet too big."""
    frame = bytearray(
        udp(STRANGERS[family], at(API, family), 40000, 53, bytes(8), dst_mac="02:00:00:00:00:0a")
    )
    frame[14 + (9 if family == 4 else 6)] = 58 if family == 4 else 1
    assert node.enter(bytes(frame)).outcome == "DROP_POLICY_DENIED"


def test_what_is_neither_ip_nor_arp_stays_with_the_pod(node: Checkpoint) -> None:
    client, server = at(WEB, 4), at(API, 4)
    frame = tcp(client, server, 40000, 8080, "S")
    arp = bytes(12) + b"\x08\x06" + bytes(28)
    assert node.leave(arp, client).outcome == node.enter(arp).outcome == "PASS"
    for strange in (frame[:12] + b"\x81\0\0\0" + frame[12:], frame[:12] + b"\x88\xb5" + frame[14:]):
        assert node.leave(strange, client).outcome == "DROP_POLICY_DENIED"
        assert node.enter(strange).outcome == "DROP_POLICY_DENIED"
        assert node.enter(strange, came_through=0).outcome == "PASS"


def test_a_pod_of_unknown_labels_is_cut_off(node: Checkpoint) -> None:
    node.rig.add_pod("10.244.1.9")
    assert node.leave(tcp("10.244.1.9", at(WEB, 4), 1, 80), "10.244.1.9").outcome == "DROP_POLICY_DENIED"
    assert node.enter(tcp(at(WEB, 4), "10.244.1.9", 1, 80)).outcome == "DROP_POLICY_DENIED"


@FAMILIES
def test_explanations_name_the_rule_that_decides_and_those_nearest_to_it(
    node: Checkpoint, family: int
) -> None:
    web, api, far = (ip_address(at(each, family)) for each in (WEB, API, FAR))
    name = "NetworkPolicy shop/api"
    with Explainer.bind(node.rig.loaded) as explainer:
        with node.acting(web):
            (first, second) = explainer.verdict(web, api, 8080).judgements
        assert (first.toward, first.pod, first.allowed, first.rule) == (
            Toward.EGRESS,
            web,
            True,
            "no policy isolates",
        )
        assert (second.toward, second.pod, second.peer) == (Toward.INGRESS, api, web)
        assert (second.allowed, second.rule, second.near) == (True, f"{name} spec.ingress[0]", ())

        denied = explainer.verdict(far, api, 8081)  # as it comes to its device, from another node
        assert denied.outcome.name == "DROP_POLICY_DENIED"
        (judged,) = denied.judgements
        assert (judged.toward, judged.allowed) == (Toward.INGRESS, False)
        assert judged.rule == f"default deny: {name}"
        (near, *_) = judged.near
        assert near == f"{name} spec.ingress[0] allows {SHOP_WEB}, 8080 of TCP"
        assert str(judged) in str(denied)
        assert denied.as_dict()["policy"][0]["near"] == list(judged.near)

        (sent,) = explainer.verdict(api, far, 443).judgements
        assert (sent.toward, sent.pod, sent.rule) == (Toward.EGRESS, api, f"default deny: {name}")
        node.policy.audit = True
        looked_on = explainer.verdict(api, far, 443)
        assert looked_on.outcome.name == "PASS"
        assert (looked_on.judgements[0].allowed, looked_on.judgements[0].audited) == (True, True)
        once, again = (explainer.verdict(api, far, 443, Protocol.UDP) for _ in range(2))
        assert once.judgements == again.judgements != ()  # nothing was begun
        with pytest.raises(ModelError, match="is a pod of this node"):
            explainer.verdict(far, ip_address(STRANGERS[family]), 80)
    assert sum(each.packets for each in node.policy.counts()) == 0, "explaining counts nothing"


@pytest.mark.parametrize("alone", [True, False], ids=["a pod", "all"])
@FAMILIES
def test_policies_that_only_look_on_count_what_they_would_deny(
    node: Checkpoint, family: int, alone: bool
) -> None:
    client, server = at(FAR, family), at(API, family)
    assert not node.passes(tcp(client, server, 40000, 9090, "S"), client, server)
    before = denials(node)

    def look_on(on: bool) -> None:
        if alone:
            node.attach(evolve(API, audit=on))
        else:
            node.policy.audit = on

    look_on(True)
    assert node.passes(tcp(client, server, 40000, 9090, "S"), client, server)
    assert node.passes(tcp(server, client, 9090, 40000, "SA"), server, client)
    assert node.passes(tcp(client, server, 40000, 9090, "A"), client, server)
    assert denials(node) - before == 3
    assert [each.audited for each in node.policy.endpoints] == [False, alone]
    assert alone or node.policy.audit
    look_on(False)
    assert not node.passes(tcp(client, server, 40000, 9090, "A"), client, server)
    assert node.passes(tcp(client, server, 40001, 8080, "S"), client, server)


@FAMILIES
def test_a_policy_that_only_looks_on_is_told_and_one_beside_it_leaves_it_out(
    node: Checkpoint, family: int
) -> None:
    client, server = at(FAR, family), at(API, family)
    (enforced,) = node.policy.policies.values()
    staged = evolve(enforced, audit=True)
    refusal = Policy(
        "refusal", enforced.subject, [Rule("r", Toward.INGRESS, [EVERYBODY], action=Action.DENY)]
    )

    def passes(port: int, number: int) -> bool:
        return node.passes(tcp(client, server, number, port, "S"), client, server)

    def audits() -> frozenset[Toward]:
        return next(each.audits for each in node.policy.endpoints if each.identity == node.identity(API))

    assert not passes(9090, 41000)
    node.policy.upsert(staged)  # its rules are the same
    before = denials(node)
    assert passes(9090, 41000)
    assert denials(node) - before == 1
    assert audits() == {Toward.INGRESS, Toward.EGRESS}
    assert any(each.audited and not each.allowed for each in node.policy.dump())
    assert node.passes(tcp(server, client, 41001, 443, "S"), server, client)

    node.policy.upsert(refusal)  # no denial in force is softened, and nothing staged allows
    assert not passes(8080, 41002)
    assert not passes(9090, 41000)
    assert audits() == {Toward.EGRESS}
    assert node.passes(tcp(server, client, 41003, 443, "S"), server, client)
    node.policy.upsert(evolve(refusal, audit=True))
    assert passes(8080, 41002)

    node.policy.apply([enforced])
    assert not passes(9090, 41000)
    assert passes(8080, 41004)
    assert audits() == frozenset()


def denials(node: Checkpoint) -> int:
    return sum(each.packets for each in node.policy.counts() if each.action is Action.DENY)


class Requests:
    """Numbers of what requests have to be, with nobody to enforce it."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.numbers: dict[frozenset[Hashable], int] = {}
        self.uses = Counter[frozenset[Hashable]]()

    def check(self, sets: Iterable[frozenset[Hashable]]) -> None:
        if len({*sets, *self.numbers}) > self.room:
            raise CapacityError("requests", len({*sets, *self.numbers}), self.room)

    def use(self, requests: frozenset[Hashable]) -> int:
        self.uses[requests] += 1
        return self.numbers.setdefault(requests, len(self.numbers) + 1)

    def drop(self, requests: frozenset[Hashable]) -> None:
        self.uses[requests] -= 1

    def forget_strangers(self) -> None:
        pass


def test_rules_lead_to_what_requests_have_to_be(node: Checkpoint) -> None:
    def asking(*requests: str) -> Policy:
        rule = Rule("r", Toward.INGRESS, [EVERYBODY], [PortMatch(6, 8080, 8081)], l7=requests)
        return Policy("l7", EVERYBODY, [rule], [Toward.INGRESS])

    with pytest.raises(ModelError, match="l7, r: asks for requests, which nothing here enforces"):
        node.policy.upsert(asking("GET"))
    node.policy.close()
    requests = Requests(room=2)
    rules = node.rig.loaded.map("kd_rules", maps.Hash[RuleKey, RuleRow])
    with IdentityPolicy.bind(node.rig.loaded, l7=requests) as node.policy:
        node.attach(WEB, API)
        node.policy.upsert(asking("GET"))
        node.policy.forget_strangers()
        assert {key.port: row.l7 for key, row in rules.items() if row.l7} == {8080: 1}
        assert {pair.l7 for pair in node.policy.dump() if pair.l7} == {frozenset({"GET"})}
        assert node.passes(tcp(at(WEB, 4), at(API, 4), 1, 8080), at(WEB, 4), at(API, 4))
        node.policy.upsert(asking("GET", "POST"))
        assert {row.l7 for row in rules.values()} == {0, 2}
        with pytest.raises(CapacityError):
            node.policy.upsert(asking("PUT"))
        assert {row.l7 for row in rules.values()} == {0, 2}
        node.policy.remove("l7")
        assert not +requests.uses
        assert {row.l7 for row in rules.values()} == {0}


@FAMILIES
def test_who_gets_other_labels_is_somebody_all_the_time(node: Checkpoint, family: int) -> None:
    """Until its row in kd_endpoints has the number of its new policy, packets are judged by the old one."""
    client, server = at(WEB, family), at(API, family)
    other = Workload.pod("shop/web", {"app": "web", "tier": "gold"}, addresses=WEB.addresses)
    before = node.policies()
    node.policy.attach(other, node.identity(other))  # and its row in kd_endpoints is as it was
    assert node.passes(tcp(client, server, 40000, 8080, "S"), client, server)
    assert node.policies() == before + 1
    node.attach(other)
    node.policy.release()
    assert node.policies() == before
    assert node.passes(tcp(client, server, 40001, 8080, "S"), client, server)
