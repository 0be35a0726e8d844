"""Names that pods may ask for over TCP: whatever segments come, what the server puts together was read."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator

import pytest
from attrs import define
from dnslib import RCODE, DNSRecord

from k8sdatapath.kube.policy import parse_policies
from k8sdatapath.net.packet import fragment, tcp
from tests.packets.checkpoint import Checkpoint, checkpoint
from tests.packets.rig import Sent
from tests.packets.test_dns_rules import FAMILIES, NAMES, POLICY, WEB, at
from tests.support.name_server import framed, question

pytestmark = pytest.mark.packets

MPTCP = bytes.fromhex("1e0c0181") + bytes(8)
BEGIN = 0xFFFFFF00  # numbers begin again at 0 soon


def asks(name: str) -> bytes:
    """A question, as it stands in a connection."""
    return framed(question(name))


GOOD, EVIL = asks("bank.example"), asks("evil.example")


@pytest.fixture(scope="module")
def node() -> Iterator[Checkpoint]:
    with checkpoint(WEB, dns=True, reject_rate=0) as made:
        made.learn(NAMES)
        made.policy.upsert(*parse_policies(POLICY, names=True))
        yield made


@define
class Connection:
    """One of the pod's to its name server. Positions are counted from its first byte."""

    node: Checkpoint
    port: int
    family: int = 4
    begin: int = BEGIN

    def open(self, options: bytes = b"") -> Connection:
        assert self.segment("S", seq=-1) == "PASS"
        assert self.server("SA", options=options) == "PASS"
        return self

    def send(self, data: bytes, position: int = 0, flags: str = "PA", *, ack: int = 0) -> Sent:
        client, server = at(WEB, self.family), at(NAMES, self.family)
        seq = (self.begin + position) % (1 << 32)
        frame = tcp(client, server, self.port, 53, flags, data, seq=seq, ack=1 + ack)
        return self.node.leave(frame, client)

    def segment(self, flags: str, data: bytes = b"", *, seq: int = 0, ack: int = 0) -> str:
        return self.send(data, seq, flags, ack=ack).outcome

    def say(self, data: bytes, position: int = 0) -> str:
        return self.segment("PA", data, seq=position)

    def server(
        self, flags: str, data: bytes = b"", *, options: bytes = b"", seq: int = 0, ack: int = 0
    ) -> str:
        return self.node.enter(self.frame(flags, data, options=options, seq=seq, ack=ack)).outcome

    def frame(
        self, flags: str, data: bytes = b"", *, options: bytes = b"", seq: int = 0, ack: int = 0
    ) -> bytes:
        return tcp(
            at(NAMES, self.family),
            at(WEB, self.family),
            53,
            self.port,
            flags,
            data,
            own_options=options,
            seq=seq + ("S" not in flags),
            ack=(self.begin + ack) % (1 << 32),
        )


PORTS = iter(range(20000, 60000))


@pytest.fixture(params=[4, 6])
def connection(node: Checkpoint, request: pytest.FixtureRequest) -> Connection:
    return Connection(node, next(PORTS), request.param).open()


def test_what_is_asked_one_after_the_other(connection: Connection) -> None:
    more = asks("a.shop.example")
    assert connection.say(GOOD) == "PASS"
    assert connection.say(more, len(GOOD)) == "PASS"
    assert connection.say(GOOD + more, len(GOOD + more)) == "PASS"
    assert connection.say(EVIL, 2 * len(GOOD + more)) == "REJECT_NAME"


def test_a_refusal_ends_the_connection(connection: Connection) -> None:
    assert connection.say(GOOD) == "PASS"
    assert connection.server("PA", bytes(77), ack=len(GOOD)) == "PASS"
    sent = connection.send(EVIL, len(GOOD), ack=77)
    assert sent.outcome == "REJECT_NAME"
    answer = sent.packet
    said = DNSRecord.parse(answer.payload[2:])
    assert answer.checksums_ok
    assert (str(answer.src), str(answer.dst)) == (
        at(NAMES, connection.family),
        at(WEB, connection.family),
    )
    assert (answer.sport, answer.dport, answer.flags) == (53, connection.port, "FPA")
    assert (said.header.rcode, said.header.qr, said.header.id) == (RCODE.REFUSED, 1, 7)
    assert answer.payload[14:] == EVIL[14:]
    assert numbers(sent, connection.family) == (78, (BEGIN + len(GOOD + EVIL)) % (1 << 32))

    assert connection.server("PA", b"an answer to the first") == "DROP_NAME"
    done = 77 + len(answer.payload) + 1
    assert connection.segment("PA", GOOD, seq=len(GOOD + EVIL), ack=done) == "REJECT_DENIED"
    closes = connection.send(b"", len(GOOD + EVIL), "A", ack=done)
    assert (closes.outcome, closes.packet.flags, closes.packet.checksums_ok) == ("PASS", "R", True)
    assert numbers(closes, connection.family)[0] == (BEGIN + len(GOOD)) % (1 << 32)
    fin = connection.send(b"", len(GOOD + EVIL), "FA", ack=done)
    assert (fin.outcome, fin.packet.flags) == ("PASS", "FA")
    assert connection.server("R") == "PASS"
    assert connection.say(GOOD, len(GOOD)) == "REJECT_DENIED"


def numbers(sent: Sent, family: int) -> tuple[int, int]:
    """Sequence number and acknowledgement."""
    seq, ack = struct.unpack_from("!II", sent.frame, 14 + (20 if family == 4 else 40) + 4)
    return seq, ack


def test_a_refusal_that_was_lost_is_repeated(connection: Connection) -> None:
    first, second = connection.send(EVIL), connection.send(EVIL)
    assert first == second
    assert first.outcome == "REJECT_NAME"


@pytest.mark.parametrize("cut", range(1, len(EVIL)))
def test_wherever_it_is_cut(node: Checkpoint, cut: int) -> None:
    allowed = Connection(node, next(PORTS)).open()
    assert allowed.say(GOOD[:cut]) == allowed.server("A", ack=cut) == "PASS"
    assert allowed.say(GOOD[cut:], cut) == "PASS"
    denied = Connection(node, next(PORTS)).open()
    assert denied.say(EVIL[:cut]) == denied.server("A", ack=cut) == "PASS"
    sent = denied.send(EVIL[cut:], cut)
    assert sent.outcome == "REJECT_NAME"
    assert sent.packet.payload[14:] == EVIL[14:]


def test_byte_by_byte(node: Checkpoint) -> None:
    one = Connection(node, next(PORTS)).open()
    said = GOOD + EVIL
    outcomes = []
    for each in range(len(said)):
        outcomes.append(one.say(said[each : each + 1], each))
        assert one.server("A", ack=each + 1 if outcomes[-1] == "PASS" else 1) in ("PASS", "DROP_NAME")
    assert outcomes == ["PASS"] * (len(said) - 1) + ["REJECT_NAME"]


@pytest.mark.parametrize("late", [1, 2, 3])
@pytest.mark.parametrize("flags", ["A", "FA", "PA"])
def test_nothing_comes_first_that_begins_late(connection: Connection, late: int, flags: str) -> None:
    """A server that goes by a SYN cookie would begin there. It has begun when it acknowledges something."""
    assert connection.segment(flags, seq=late) == "DROP_NAME"
    assert connection.segment("A") == "PASS"
    assert connection.say(GOOD) == "PASS"  # and is lost, for its checksum perhaps
    for wrong in {"ack": 0}, {"ack": len(GOOD) + 1}, {"ack": 1, "seq": 1}:
        assert connection.server("A", **wrong) == "PASS"
        assert connection.segment(flags, GOOD[late:] if flags == "PA" else b"", seq=late) == "DROP_NAME"
    assert connection.say(GOOD[4:], 4) == "PASS"  # no cookie is good for this
    assert connection.server("A", ack=len(GOOD)) == "PASS"
    assert connection.segment(flags, GOOD[late:] if flags == "PA" else b"", seq=late) == "PASS"


def test_what_is_answered_in_pieces_may_be_acknowledged(connection: Connection) -> None:
    """Of the pieces behind the first nobody knows how much of a segment they are."""
    assert connection.say(GOOD) == "PASS"
    answer = connection.frame("PA", bytes(3000), ack=len(GOOD))
    for piece in fragment(answer, 1200):
        assert connection.node.enter(piece).outcome == "PASS"
    assert connection.segment("A", seq=len(GOOD), ack=3000) == "PASS"
    assert connection.segment("A", seq=len(GOOD), ack=70000) == "DROP_NAME"
    assert connection.say(EVIL, len(GOOD)) == "REJECT_NAME"


def test_what_follows_the_question_is_not_read(node: Checkpoint) -> None:
    one = Connection(node, next(PORTS)).open()
    padded = (len(GOOD) + 1500 - 2).to_bytes(2) + GOOD[2:] + bytes(1500)
    assert one.say(padded[:1200]) == "PASS"
    assert one.say(padded[1200:] + EVIL[:20], 1200) == "PASS"
    assert one.say(EVIL[20:], len(padded) + 20) == "REJECT_NAME"


def test_what_is_sent_again_is_the_same(connection: Connection) -> None:
    both = GOOD + asks("a.shop.example")
    assert connection.say(GOOD) == "PASS"
    assert connection.say(GOOD) == "PASS"
    assert connection.say(both) == "PASS"
    assert connection.say(both[10:30], 10) == "PASS"
    other = asks("b.shop.example")
    assert connection.say(other, len(GOOD)) == "DROP_NAME"
    assert connection.say(both[10:30][:-1] + b"X", 10) == "DROP_NAME"
    assert connection.say(GOOD, len(both)) == "PASS"


def test_what_leaves_a_gap_is_not_read(connection: Connection) -> None:
    assert connection.say(GOOD, 1) == "DROP_NAME"
    assert connection.say(GOOD, -1) == "DROP_NAME"
    assert connection.say(GOOD) == "PASS"


def test_what_is_not_kept_any_more_is_not_sent_again(node: Checkpoint) -> None:
    one = Connection(node, next(PORTS)).open()
    for number in range(60):
        assert one.say(GOOD, number * len(GOOD)) == "PASS"
    assert one.say(GOOD) == "DROP_NAME"
    assert one.say(GOOD, 59 * len(GOOD)) == "PASS"


@pytest.mark.parametrize("flags", ["PAU", "AU", "SP"])
def test_what_is_urgent_or_comes_too_early_is_dropped(node: Checkpoint, flags: str) -> None:
    one = Connection(node, next(PORTS))
    if "S" in flags:
        assert one.segment(flags, GOOD) == "DROP_NAME"
    one.open()
    assert one.segment(flags, GOOD if "P" in flags else b"") == "DROP_NAME"
    assert one.say(GOOD) == "PASS"


def test_a_connection_is_known_from_its_beginning_only(node: Checkpoint) -> None:
    one = Connection(node, next(PORTS))
    assert one.segment("S", seq=-1) == "PASS"
    assert one.say(GOOD) == "REJECT_DENIED"
    assert one.server("A") == "PASS"
    assert one.say(GOOD) == "REJECT_DENIED"
    assert one.server("SA") == "PASS"
    assert one.say(GOOD) == "PASS"


def test_nobody_but_the_server_says_where_it_begins(connection: Connection) -> None:
    assert connection.say(GOOD) == "PASS"
    assert connection.segment("S", seq=len(GOOD) - 12) == "PASS"
    assert connection.server("A", ack=len(GOOD) - 11) == "PASS"
    assert connection.say(EVIL[:11] + GOOD, len(GOOD) - 11) == "DROP_NAME"
    assert connection.server("SA") == "PASS"  # it has not got our last ACK
    assert connection.say(GOOD, len(GOOD)) == "PASS"


def test_the_next_connection_of_a_port(connection: Connection) -> None:
    assert connection.say(EVIL) == "REJECT_NAME"
    connection.begin = 4711
    connection.open()
    assert connection.say(GOOD) == "PASS"


def test_a_connection_that_begins_elsewhere_is_another(connection: Connection) -> None:
    """Servers that go by SYN cookies agree to several, and take up the one whose number is acknowledged."""
    other = Connection(connection.node, connection.port, connection.family, BEGIN + len(GOOD))
    assert other.segment("S", seq=-1) == "PASS"
    assert other.server("SA", seq=len(GOOD)) == "PASS"
    connection.open()
    assert other.segment("A", ack=len(GOOD)) == "DROP_NAME"
    assert other.say(EVIL) == "DROP_NAME"
    assert connection.segment("A") == "PASS"
    assert connection.say(GOOD) == "PASS"
    assert connection.server("PA", GOOD, ack=len(GOOD)) == "PASS"
    assert connection.segment("A", seq=len(GOOD), ack=len(GOOD)) == "PASS"


@pytest.mark.parametrize("closes", ["R", "server's R", "server's FA"])
def test_nothing_is_asked_behind_the_end(connection: Connection, closes: str) -> None:
    assert connection.say(GOOD) == "PASS"
    end = connection.server if closes.startswith("server") else connection.segment
    assert end(closes.split()[-1]) == "PASS"
    assert connection.say(GOOD) == "PASS"  # it was lost
    assert connection.say(GOOD, len(GOOD)) == "REJECT_DENIED"


def test_who_is_forgotten_does_not_become_who_was_dialled(connection: Connection) -> None:
    """Talks that are idle, or too many, are; what the server says then is no beginning of its own."""
    assert connection.say(GOOD) == "PASS"
    connection.node.talks.delete_many(list(connection.node.talks))
    for flags in "A", "PA", "SA", "FA", "R":
        assert connection.server(flags, ack=len(GOOD)) == "DROP_NAME"
    assert connection.say(EVIL, len(GOOD)) == "REJECT_NAME"
    connection.begin = 4711
    assert connection.server("S") == "PASS"  # it dials the pod
    assert connection.say(b"anything") == "PASS"


@FAMILIES
def test_several_paths_are_not_read(node: Checkpoint, family: int) -> None:
    several = Connection(node, next(PORTS), family).open(b"\1\1\1\1" + MPTCP)
    assert several.say(GOOD) == "REJECT_DENIED"
    for options in ("020405b40101080a" + 16 * "0", "220a" + 16 * "0" + "0101", "020405b400000000"):
        single = Connection(node, next(PORTS), family).open(bytes.fromhex(options))
        assert single.say(GOOD) == "PASS"
    broken = Connection(node, next(PORTS), family).open(bytes.fromhex("02000000"))
    assert broken.say(GOOD) == "REJECT_DENIED"


MALFORMED = [
    GOOD[:2] + GOOD[2:4] + b"\x81" + GOOD[5:],
    GOOD[:6] + b"\0\2" + GOOD[8:],
    GOOD[:14] + b"\xc0\x0c" + GOOD[-4:],
    (len(GOOD) - 3).to_bytes(2) + GOOD[2:],
    b"\0\0" + GOOD,
    b"GET / HTTP/1.1\r\n\r\n",
    (300).to_bytes(2) + GOOD[2:14] + (b"\x3f" + b"a" * 63) * 4 + bytes(40),
]


@pytest.mark.parametrize("data", MALFORMED)
def test_what_is_no_question_is_the_end(node: Checkpoint, data: bytes) -> None:
    one = Connection(node, next(PORTS)).open()
    assert one.say(data) == "REJECT_DENIED"
    assert one.say(GOOD) == "REJECT_DENIED"


def test_what_would_be_denied_passes_where_policies_look_on(node: Checkpoint) -> None:
    one, other, late = (Connection(node, next(PORTS)).open() for _ in range(3))
    node.policy.audit = True
    try:
        assert one.say(EVIL) == "PASS"
        assert one.say(GOOD, len(EVIL)) == "PASS"
        assert other.say(b"anything at all, that is not DNS") == "PASS"
        assert late.say(GOOD) == "PASS"
    finally:
        node.policy.audit = False
    assert one.say(EVIL, len(EVIL + GOOD)) == "REJECT_NAME"
    assert other.say(GOOD, 32) == "REJECT_DENIED"
    assert late.say(GOOD, len(GOOD)) == "PASS"


def test_who_sends_at_random_smuggles_nothing(node: Checkpoint) -> None:
    """The server takes what passes by its numbers, the first or the last copy of each byte."""
    chance = random.Random(4)
    hiding = framed(question("bank.example") + EVIL)  # no part of its question
    pieces = [GOOD, hiding, GOOD, hiding, asks("x.shop.example"), hiding[:20], EVIL[:17], EVIL, b"\0"]
    for _ in range(60):
        one = Connection(node, next(PORTS)).open()
        first: dict[int, int] = {}
        last: dict[int, int] = {}
        begun = [0]
        for _ in range(20):
            data = b"".join(chance.choices(pieces, k=chance.randint(1, 2)))
            position = chance.choice([len(first), len(first), chance.choice(begun)])
            if one.say(data, position) == "PASS":
                begun.append(position)
                for offset, byte in enumerate(data, position):
                    first.setdefault(offset, byte)
                    last[offset] = byte
        for copies in (first, last):
            stream = bytes(copies[each] for each in range(len(first)))
            assert {"bank.example", "x.shop.example"} >= set(questions(stream))


def questions(stream: bytes) -> Iterator[str]:
    """The names of all messages that are complete."""
    while len(stream) >= 2 and len(stream) >= 2 + (size := int.from_bytes(stream[:2])):
        yield str(DNSRecord.parse(stream[2 : 2 + size]).q.qname).rstrip(".").lower()
        stream = stream[2 + size :]
