"""Messages out of the bytes of TCP connections, however they come."""

from __future__ import annotations

from ipaddress import ip_address
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from k8sdatapath.datapath.dns_streams import DnsStreams
from k8sdatapath.tables.conntrack import Tuple
from k8sdatapath.tables.dns import DnsFlags, DnsHeadRow
from tests.support.name_server import framed

CLIENT, SERVER = ip_address("10.244.1.2"), ip_address("10.244.2.2")
FORTH = Tuple(CLIENT, SERVER, 40000, 53, 6)
BACK = Tuple(SERVER, CLIENT, 53, 40000, 6)
BEGIN = (1 << 32) - 20


def opens(streams: DnsStreams, seq: int = BEGIN) -> None:
    assert streams.take(DnsHeadRow(BACK, 0, DnsFlags.OPENS, 0, seq, 7), b"") == []


def take(streams: DnsStreams, data: bytes, position: int = 0, way: Tuple = BACK) -> list[bytes]:
    seq = (BEGIN + position) % (1 << 32) if way is BACK else 7 + position
    return streams.take(DnsHeadRow(way, 0, DnsFlags.ANSWERS, len(data), seq, 0), data)


@given(
    messages=st.lists(st.binary(min_size=1, max_size=60), min_size=1, max_size=8),
    cuts=st.lists(st.integers(0, 500), max_size=10),
    data=st.data(),
)
def test_each_message_once_and_in_order(messages: list[bytes], cuts: list[int], data: st.DataObject) -> None:
    stream = b"".join(map(framed, messages))
    ends = sorted({0, len(stream), *(each % len(stream) for each in cuts)})
    pieces = [(begin, stream[begin:end]) for begin, end in pairwise(ends)]
    again = data.draw(st.lists(st.sampled_from(pieces), max_size=5))
    streams = DnsStreams()
    opens(streams)
    order = data.draw(st.permutations([*pieces, *again]))
    assert [message for at, piece in order for message in take(streams, piece, at)] == messages


def test_what_overlaps_counts_once() -> None:
    streams = DnsStreams()
    opens(streams)
    stream = framed(b"one") + framed(b"three")
    assert take(streams, stream[:7]) == [b"one"]
    assert take(streams, stream[3:], 3) == [b"three"]


def test_both_directions_are_apart() -> None:
    streams = DnsStreams()
    opens(streams)
    assert take(streams, framed(b"asked"), way=FORTH) == [b"asked"]
    assert take(streams, framed(b"told")) == [b"told"]


def test_a_connection_is_known_from_its_beginning_only() -> None:
    assert take(DnsStreams(), framed(b"forged")) == []


def test_that_it_begins_is_said_twice() -> None:
    streams = DnsStreams()
    opens(streams)
    assert take(streams, framed(b"one")) == [b"one"]
    opens(streams)
    assert take(streams, framed(b"two"), 5) == [b"two"]
    opens(streams, BEGIN + 1)
    assert take(streams, framed(b"next"), 1) == [b"next"]


def test_nobody_keeps_what_never_fits() -> None:
    streams = DnsStreams()
    opens(streams)
    for number in range(1, 200):
        assert take(streams, bytes(1000), number * 1000) == []
    (half,) = (each for way, each in streams._halves.items() if way == BACK)
    assert sum(map(len, half.ahead.values())) <= 1 << 16


def test_the_oldest_are_forgotten() -> None:
    streams = DnsStreams()
    opens(streams)
    for port in range(600):
        way = Tuple(SERVER, CLIENT, 53, port, 6)
        assert streams.take(DnsHeadRow(way, 0, DnsFlags.OPENS, 0, 0, 0), b"") == []
    assert take(streams, framed(b"late")) == []
    assert len(streams._halves) == 1024
