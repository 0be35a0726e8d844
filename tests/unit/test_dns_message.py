"""DNS messages: what is well-formed is read as others read it, and nothing else is."""

from __future__ import annotations

import contextlib
import time
from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from dnslib import AAAA, CNAME, MX, QTYPE, RR, A, DNSRecord
from hypothesis import example, given
from hypothesis import strategies as st

from k8sdatapath.errors import ModelError
from k8sdatapath.net.dns_message import DnsMessage
from tests.support.name_server import question, reply

LABEL = st.text("abcXYZ019-_", min_size=1, max_size=12)
NAME = st.lists(LABEL, min_size=1, max_size=5).map(lambda labels: ".".join([*labels, "example"]))


def test_a_question() -> None:
    found = DnsMessage.parse(question("Bank.Example.", "AAAA", ident=5))
    assert (found.id, found.answer, found.name, found.type) == (5, False, "bank.example", QTYPE.AAAA)
    assert DnsMessage.parse(question(".", "NS")).name == "."


def test_an_answer_is_followed_to_its_addresses() -> None:
    record = DNSRecord.question("www.bank.example").reply()
    record.add_answer(
        RR("stray.example", QTYPE.A, ttl=5, rdata=A("192.0.2.66")),
        RR("edge.example", QTYPE.A, ttl=30, rdata=A("192.0.2.1")),
        RR("www.bank.example", QTYPE.CNAME, ttl=20, rdata=CNAME("Edge.example")),
        RR("edge.example", QTYPE.A, ttl=40, rdata=A("192.0.2.2")),
        RR("edge.example", QTYPE.AAAA, ttl=40, rdata=AAAA("2001:db8::1")),
        RR("edge.example", QTYPE.AAAA, ttl=40, rdata=AAAA("::ffff:c000:209")),
        RR("bank.example", QTYPE.MX, ttl=1, rdata=MX("mail.example")),
    )
    found = DnsMessage.parse(bytes(record.pack()))
    assert found.addresses == tuple(map(ip_address, ("192.0.2.1", "192.0.2.2", "2001:db8::1")))
    assert (found.ttl, found.aliases) == (20, ("edge.example",))
    assert found.types == (QTYPE.A, QTYPE.CNAME, QTYPE.AAAA, QTYPE.MX)


def test_aliases_that_go_round() -> None:
    record = DNSRecord.question("a.example").reply()
    for one, other in ("ab", "ba"):
        record.add_answer(RR(f"{one}.example", QTYPE.CNAME, rdata=CNAME(f"{other}.example")))
    assert DnsMessage.parse(bytes(record.pack())).addresses == ()


@given(
    NAME,
    st.lists(st.ip_addresses(v=4), max_size=8, unique=True),
    st.lists(st.ip_addresses(v=6), max_size=4, unique=True),
)
def test_it_is_read_as_others_write_it(name: str, four: list[IPv4Address], six: list[IPv6Address]) -> None:
    zone = {name.lower(): [*map(str, four), *map(str, six)]}
    for kind, wanted in (("A", four), ("AAAA", [each for each in six if not each.ipv4_mapped])):
        asked = question(name, kind)
        found = DnsMessage.parse(reply(asked, zone))
        assert found.addresses == tuple(wanted)
        assert found.name == DnsMessage.parse(asked).name == name.lower()


@given(st.binary(max_size=600))
@example(b"")
@example(bytes(12))
def test_noise_is_refused_or_read(data: bytes) -> None:
    with contextlib.suppress(ModelError):
        DnsMessage.parse(data)


@given(st.data())
def test_damage_is_refused_or_read(data: st.DataObject) -> None:
    whole = bytearray(
        reply(question("a.b.example"), {"a.b.example": ["c.example"], "c.example": ["192.0.2.1"]})
    )
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(ModelError):
        DnsMessage.parse(bytes(whole[: data.draw(st.integers(0, len(whole)))]))


@pytest.mark.parametrize("at", range(12, 60))
def test_one_that_ends_too_early(at: int) -> None:
    whole = reply(question("bank.example"), {"bank.example": ["192.0.2.1"]})
    if at < len(whole):
        with pytest.raises(ModelError):
            DnsMessage.parse(whole[:at])


HEAD = b"\0\7\x80\0\0\1\0\1\0\0\0\0"
A_IN = b"\0\1\0\1"


@pytest.mark.parametrize(
    ("message", "why"),
    [
        (b"\0\7\0\0\0\2\0\0\0\0\0\0" + 2 * (b"\1a\0" + A_IN), "no single question"),
        (b"\0\7\0\0\0\0\0\0\0\0\0\0", "no single question"),
        (b"\0\7\x28\0\0\1\0\0\0\0\0\0\1a\0" + A_IN, "no single question"),
        (HEAD[:4] + b"\0\1\xff\xff\0\0\0\0\1a\0" + A_IN, "65535 records"),
        (HEAD + b"\xc0\x0c" + A_IN, "backwards"),
        (HEAD + b"\xc0\x20" + A_IN, "backwards"),
        (HEAD + b"\xc0\x00" + A_IN, "backwards"),
        (HEAD + b"\1a\xc0\x0c" + A_IN, "backwards"),
        (HEAD + b"\3a.b\0" + A_IN, "name that is none"),
        (HEAD + b"\1\0\0" + A_IN, "name that is none"),
        (HEAD + b"\x80a\0" + A_IN, "name that is none"),
        (HEAD + 130 * b"\1a" + b"\0" + A_IN, "name that is none"),
        (HEAD + b"\1a\0\0\1\0\3", "another class"),
        (HEAD + b"\1a\0" + A_IN + b"\xc0\x0c" + A_IN + b"\0\0\0\1\0\3abc", "address of 3 bytes"),
        (HEAD + b"\1a\0" + A_IN + b"\xc0\x0c\0\5\0\1\0\0\0\1\0\4\1b\0\0", "another length"),
    ],
)
def test_what_is_malformed_is_refused(message: bytes, why: str) -> None:
    with pytest.raises(ModelError, match=why):
        DnsMessage.parse(message)


def test_the_worst_one_takes_little_time() -> None:
    """As many records as may be, whose names are as long as may be and in as many pieces."""
    head = b"\0\7\x80\0\0\1\1\0\0\0\0\0"
    message = head + b"\1b\0" + A_IN
    chain = b""
    last = None
    for _ in range(120):
        here = len(message) + 12 + len(chain)
        chain += b"\1a" + (b"\0" if last is None else (0xC000 | last).to_bytes(2, "big"))
        last = here
    assert last is not None
    message += b"\xc0\x0c\0\x10\0\1\0\0\0\0" + len(chain).to_bytes(2, "big") + chain
    message += 255 * ((0xC000 | last).to_bytes(2, "big") + A_IN + b"\0\0\0\1\0\4abcd")
    began = time.thread_time()
    assert DnsMessage.parse(message).addresses == ()
    assert time.thread_time() - began < 0.5
