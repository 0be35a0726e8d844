"""Names that pods may ask name servers for: what the programs make of any message, and what they answer."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest
from dnslib import EDNS0, RCODE, DNSRecord
from hypothesis import given, settings
from hypothesis import strategies as st

from k8sdatapath import maps
from k8sdatapath.datapath.dns_rules import NameSets
from k8sdatapath.errors import CapacityError
from k8sdatapath.kube.policy import parse_policies
from k8sdatapath.model import Backend, Protocol, Service
from k8sdatapath.model.dns_rules import NameVerdict, judge_question
from k8sdatapath.model.names import NamePattern
from k8sdatapath.model.policy import EVERYBODY, Policy, PortMatch, Rule, Selector, Toward
from k8sdatapath.model.workload import Workload
from k8sdatapath.net.packet import fragment, tcp, udp
from k8sdatapath.tables.dns import DnsSetRow
from k8sdatapath.tables.policy import NAMES as OF_NAMES
from tests.packets.checkpoint import Checkpoint, checkpoint
from tests.packets.rig import one_cpu
from tests.packets.shop import FAMILIES, WEB, at
from tests.support.name_server import question

pytestmark = pytest.mark.packets

NAMES = Workload.pod("kube-system/dns", {"app": "dns"}, addresses=["10.244.2.2", "fd00:10:244:2::2"])
BECOMES = {
    NameVerdict.ALLOWED: "PASS",
    NameVerdict.REFUSED: "REJECT_NAME",
    NameVerdict.NO_QUESTION: "DROP_NAME",
}

POLICY = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: web, namespace: shop}
spec:
  endpointSelector: {matchLabels: {app: web}}
  egress:
  - toEndpoints: [{matchLabels: {app: dns, io.kubernetes.pod.namespace: kube-system}}]
    toPorts:
    - ports: [{port: "53", protocol: ANY}]
      rules: {dns: [{matchName: bank.example}, {matchPattern: "*.shop.example"}]}
"""


@pytest.fixture(scope="module")
def node() -> Iterator[Checkpoint]:
    with checkpoint(WEB, dns=True, reject_rate=0) as made:
        made.learn(NAMES)
        made.policy.upsert(*parse_policies(POLICY, names=True))
        yield made


@pytest.fixture(scope="module")
def plain() -> Iterator[Checkpoint]:
    with checkpoint(WEB, dns=True, reject_rate=0) as made:
        yield made


def ask(node: Checkpoint, message: bytes, family: int = 4, *, to: str = "", sport: int = 40000) -> str:
    return send(node, udp(at(WEB, family), to or at(NAMES, family), sport, 53, message), family)


def send(node: Checkpoint, frame: bytes, family: int = 4) -> str:
    return node.leave(frame, at(WEB, family)).outcome


def hold_to(node: Checkpoint, *patterns: str) -> None:
    """Policies that hold the pod to some names and nothing else."""
    rule = Rule("names", Toward.EGRESS, [EVERYBODY], [PortMatch(17, 53, 53)], l7=map(NamePattern, patterns))
    node.policy.apply([Policy("any", Selector(), [rule], [Toward.EGRESS])])


@FAMILIES
@pytest.mark.parametrize("name", ["bank.example", "BANK.Example", "a.shop.example", "A-_9.shop.EXAMPLE"])
def test_a_name_that_is_allowed(node: Checkpoint, name: str, family: int) -> None:
    assert ask(node, question(name), family) == "PASS"
    assert ask(node, question(name, "AAAA"), family) == "PASS"


@FAMILIES
@pytest.mark.parametrize("name", ["evil.example", "xbank.example", "a.b.shop.example", "shop.example", "."])
def test_a_name_that_is_not_is_refused(node: Checkpoint, name: str, family: int) -> None:
    asked = question(name, ident=4711)
    sent = node.leave(udp(at(WEB, family), at(NAMES, family), 40000, 53, asked), at(WEB, family))
    assert sent.outcome == "REJECT_NAME"
    answer, said = sent.packet, DNSRecord.parse(sent.packet.payload)
    assert answer.checksums_ok
    assert (str(answer.src), str(answer.dst)) == (at(NAMES, family), at(WEB, family))
    assert (answer.sport, answer.dport) == (53, 40000)
    assert (said.header.id, said.header.qr, said.header.rcode, said.header.rd) == (4711, 1, RCODE.REFUSED, 1)
    assert answer.payload[12:] == asked[12:]  # the question, and no records


@FAMILIES
def test_what_else_the_question_had_is_left_out_of_the_answer(node: Checkpoint, family: int) -> None:
    record = DNSRecord.parse(question("evil.example"))
    record.add_ar(EDNS0(udp_len=1232))
    asked = bytes(record.pack())
    answer = node.leave(udp(at(WEB, family), at(NAMES, family), 40000, 53, asked), at(WEB, family)).packet
    assert answer.checksums_ok
    assert answer.payload[12:] == question("evil.example")[12:]


@FAMILIES
def test_a_service_answers_under_the_address_that_was_asked(node: Checkpoint, family: int) -> None:
    vip = {4: "10.96.0.10", 6: "fd00:10:96::a"}[family]
    one = [Backend(at(NAMES, family), 53)]
    node.rig.services.upsert(Service(vip, 5353, protocol=Protocol.UDP, backends=one))
    frames = [
        udp(at(WEB, family), vip, 40001, 5353, question(name)) for name in ("bank.example", "no.example")
    ]
    assert send(node, frames[0], family) == "TO_STACK"
    refused = node.leave(frames[1], at(WEB, family))
    assert refused.outcome == "REJECT_NAME"
    assert (str(refused.packet.src), refused.packet.sport) == (vip, 5353)
    assert refused.packet.checksums_ok


QUESTION = question("bank.example")


@pytest.mark.parametrize(
    "message",
    [
        b"",
        QUESTION[:11],
        QUESTION[:-1],
        QUESTION[:4] + b"\0\2" + QUESTION[6:],
        QUESTION[:4] + b"\0\0" + QUESTION[6:],
        QUESTION[:2] + b"\x81" + QUESTION[3:],
        QUESTION[:2] + b"\x29" + QUESTION[3:],
        QUESTION[:12] + b"\xc0\x0c" + QUESTION[-4:],
        QUESTION[:12] + b"\x40" + b"a" * 64 + QUESTION[-5:],
        QUESTION[:12] + (b"\x3f" + b"a" * 63) * 4 + QUESTION[-5:],
    ],
)
def test_what_is_no_question_is_dropped(node: Checkpoint, message: bytes) -> None:
    assert judge_question(message, [NamePattern("*")]) is NameVerdict.NO_QUESTION
    assert ask(node, message) == "DROP_NAME"


def test_a_dot_inside_of_a_label_is_no_dot(node: Checkpoint) -> None:
    assert ask(node, QUESTION[:12] + b"\x0cbank.example\0" + QUESTION[-4:]) == "REJECT_NAME"


@FAMILIES
def test_a_question_in_pieces_is_none(node: Checkpoint, family: int) -> None:
    whole = udp(at(WEB, family), at(NAMES, family), 40000, 53, QUESTION + bytes(900))
    first, *_ = fragment(whole, 400)
    assert send(node, first, family) == "DROP_NAME"


def test_a_length_that_is_not_the_datagrams(node: Checkpoint) -> None:
    frame = bytearray(udp(at(WEB, 4), at(NAMES, 4), 40000, 53, QUESTION))
    frame[38:40] = struct.pack("!H", 8 + len(QUESTION) - 1)
    assert send(node, bytes(frame)) == "DROP_NAME"


def test_who_may_be_talked_to_anyhow_may_be_asked_anything(node: Checkpoint) -> None:
    before = tuple(node.policy.policies.values())
    try:
        node.policy.upsert(
            *parse_policies(POLICY.replace("      rules:", "#").replace("name: web", "name: all"), names=True)
        )
        assert ask(node, question("evil.example")) == "PASS"
        assert ask(node, b"anything") == "PASS"
        assert send(node, tcp(at(WEB, 4), at(NAMES, 4), 40000, 53, "S")) == "PASS"
    finally:
        node.policy.apply(before)
    assert ask(node, question("evil.example")) == "REJECT_NAME"  # the talk has begun


def test_rules_of_two_policies_add_up(node: Checkpoint) -> None:
    before = tuple(node.policy.policies.values())
    other = POLICY.replace("name: web", "name: other").replace("bank.example", "more.example")
    assert ask(node, question("more.example")) == "REJECT_NAME"
    try:
        node.policy.upsert(*parse_policies(other, names=True))
        assert ask(node, question("more.example")) == "PASS"
        assert ask(node, question("bank.example")) == "PASS"
        assert ask(node, question("evil.example")) == "REJECT_NAME"
    finally:
        node.policy.apply(before)
    assert ask(node, question("more.example")) == "REJECT_NAME"


def test_what_would_be_refused_passes_where_policies_look_on(node: Checkpoint) -> None:
    node.policy.audit = True
    try:
        assert ask(node, question("evil.example")) == "PASS"
        assert ask(node, b"nothing") == "PASS"
    finally:
        node.policy.audit = False
    assert ask(node, question("evil.example")) == "REJECT_NAME"


def test_not_more_answers_than_allowed() -> None:
    with checkpoint(WEB, dns=True, reject_rate=1) as node, one_cpu():
        hold_to(node, "bank.example")
        outcomes = [ask(node, question("evil.example")) for _ in range(150)]
    assert {*outcomes} == {"REJECT_NAME", "DROP_NAME"}


LABELS = st.text("abAB-_1", min_size=1, max_size=4)
WILD = st.text("ab-_1*", min_size=1, max_size=4)
PATTERNS = st.one_of(
    st.just("*"),
    st.just("."),
    st.lists(WILD, min_size=1, max_size=4).map(".".join),
    st.lists(WILD, min_size=1, max_size=3).map(lambda labels: ".".join(["**", *labels])),
)
WIRE_LABELS = st.one_of(LABELS.map(str.encode), st.binary(min_size=1, max_size=5))


@st.composite
def messages(draw: st.DrawFn) -> bytes:
    """Mostly questions, some of which are changed somewhere, or cut."""
    labels = draw(st.lists(WIRE_LABELS, max_size=5))
    name = b"".join(bytes([len(each)]) + each for each in labels)
    message = bytearray(b"\0\7\1\0\0\1\0\0\0\0\0\0" + name + b"\0\0\1\0\1" + draw(st.binary(max_size=12)))
    for index in draw(st.lists(st.integers(0, len(message) - 1), max_size=2)):
        message[index] = draw(st.integers(0, 255))
    return bytes(message[: draw(st.one_of(st.none(), st.integers(0, len(message))))])


def test_the_root_is_no_name_of_one_label(plain: Checkpoint) -> None:
    hold_to(plain, "**")
    assert ask(plain, question("example")) == "PASS"
    assert ask(plain, question(".")) == ask(plain, question("a.example")) == "REJECT_NAME"


@settings(max_examples=20)
@given(
    patterns=st.lists(PATTERNS, min_size=1, max_size=5),
    asked=st.lists(messages(), min_size=10, max_size=40),
    data=st.data(),
)
def test_the_kernel_says_what_the_oracle_says(
    plain: Checkpoint, patterns: list[str], asked: list[bytes], data: st.DataObject
) -> None:
    hold_to(plain, *patterns)
    rules = [NamePattern(each) for each in patterns]
    near = [
        each.replace("**", "a.b").replace("*", data.draw(st.text("ab1", max_size=3))) for each in patterns
    ]
    asked = [*asked, *(question(each.strip(".") or ".") for each in near if ".." not in each)]
    for message in asked:
        assert ask(plain, message) == BECOMES[judge_question(message, rules)], message


def test_a_thousand_names(plain: Checkpoint) -> None:
    names = [f"host-{number}.zone{number % 7}.example" for number in range(1000)]
    hold_to(plain, *names, "**.open.example")
    assert {ask(plain, question(each)) for each in names[::37]} == {"PASS"}
    assert ask(plain, question("a.b.c.open.example")) == "PASS"
    assert ask(plain, question("host-1.zone2.example")) == "REJECT_NAME"


def test_names_that_do_not_fit_change_nothing(node: Checkpoint) -> None:
    before = tuple(node.policy.policies.values())
    with pytest.raises(CapacityError):
        hold_to(node, *(f"{number:x}-{number * 7919:x}.{number % 97}.example" for number in range(8_000)))
    assert tuple(node.policy.policies.values()) == before
    assert ask(node, question("bank.example")) == "PASS"
    assert ask(node, question("evil.example")) == "REJECT_NAME"


def test_another_process_goes_on_with_what_is_there(plain: Checkpoint) -> None:
    loaded = plain.rig.loaded
    bank, shop = frozenset([NamePattern("bank.example")]), frozenset([NamePattern("*.shop.example")])
    with NameSets(loaded) as first:
        before = [first.use(each) for each in (bank, shop)]
    with NameSets(loaded) as second:
        new = frozenset([NamePattern("new.example")])
        assert second.use(bank) == before[0]
        assert second.use(new) not in before
        second.forget_strangers()
        second.drop(bank)
        second.drop(new)
        second.check([shop])
    rows = loaded.map("kd_dns_sets", maps.Array[DnsSetRow])
    assert not any(rows[number & ~OF_NAMES].size for number in before)


def test_what_has_no_number_any_more_allows_nothing(plain: Checkpoint) -> None:
    hold_to(plain, "bank.example")
    rows = plain.rig.loaded.map("kd_dns_sets", maps.Array[DnsSetRow])
    (number,) = (number for number, row in enumerate(rows) if row.size)
    row = rows[number]
    try:
        rows[number] = DnsSetRow()
        assert ask(plain, question("bank.example")) == "DROP_NAME"
    finally:
        rows[number] = row
    assert ask(plain, question("bank.example")) == "PASS"


@FAMILIES
def test_what_a_server_began_before_there_were_rules_is_held_to_them(plain: Checkpoint, family: int) -> None:
    """Else the pod could answer it with any question."""
    web, names = at(WEB, family), at(NAMES, family)
    plain.policy.apply([])
    plain.learn(NAMES)
    stray = udp(names, web, 53, 45000, b"something")
    evil, good = (udp(web, names, 45000, 53, question(each)) for each in ("evil.example", "bank.example"))
    assert plain.enter(stray).outcome == "PASS"
    assert send(plain, evil, family) == "PASS"
    plain.policy.apply(parse_policies(POLICY, names=True))
    for _ in range(2):
        assert plain.enter(stray).outcome == "PASS"
        assert send(plain, evil, family) == "REJECT_NAME"
    assert send(plain, good, family) == "PASS"
