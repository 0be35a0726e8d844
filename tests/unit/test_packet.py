"""Packets: built with right checksums, taken apart, cut; wrong ones are noticed."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from k8sdatapath.errors import ModelError
from k8sdatapath.net.packet import Packet, checksum, fragment, icmp_echo, parse, tcp, udp

V4 = ("10.244.1.2", "10.96.0.10")
V6 = ("fd00:1::2", "fd00:96::a")
FAMILIES = pytest.mark.parametrize("ends", [V4, V6], ids=["IPv4", "IPv6"])
HOP_BY_HOP, DESTINATION_OPTIONS = 0, 60


def test_the_example_of_rfc_1071() -> None:
    assert checksum(bytes.fromhex("0001f203f4f5f6f7")) == ~0xDDF2 & 0xFFFF


def test_an_odd_last_byte_counts_as_the_high_one() -> None:
    assert checksum(b"\x01\x02\x03") == checksum(b"\x01\x02\x03\x00")


def test_an_ipv4_header_as_it_was_seen_on_a_wire() -> None:
    header = bytes.fromhex("45000073000040004011b861c0a80001c0a800c7")
    assert checksum(header) == 0
    assert checksum(header[:10] + bytes(2) + header[12:]) == 0xB861


@FAMILIES
def test_a_segment_reads_as_it_was_built(ends: tuple[str, str]) -> None:
    packet = parse(tcp(*ends, 40000, 80, "SA", b"hello", ttl=7, src_mac="02:00:00:00:00:01"))
    assert (str(packet.src), str(packet.dst), packet.sport, packet.dport) == (*ends, 40000, 80)
    assert (packet.flags, packet.payload, packet.ttl) == ("SA", b"hello", 7)
    assert (packet.src_mac, packet.dst_mac) == ("02:00:00:00:00:01", "00:00:00:00:00:00")
    assert packet.checksums_ok


@FAMILIES
@pytest.mark.parametrize(
    "build", [lambda *ends: udp(*ends, 5000, 53, b"odd"), icmp_echo], ids=["UDP", "ICMP"]
)
def test_other_protocols_have_right_checksums_too(ends: tuple[str, str], build: Callable[..., bytes]) -> None:
    packet = parse(build(*ends))
    assert packet.checksums_ok
    assert packet.checksum


@FAMILIES
def test_every_flipped_bit_after_the_ethernet_header_is_noticed(ends: tuple[str, str]) -> None:
    frame = tcp(*ends, 40000, 80, "S", b"data")
    covered = range(14, len(frame)) if ends is V4 else range(22, len(frame))  # IPv6 sums addresses and L4
    for at in covered:
        broken = bytearray(frame)
        broken[at] ^= 0x40
        with suppress(ModelError):
            assert not parse(bytes(broken)).checksums_ok, f"byte {at}"


@pytest.mark.parametrize(
    ("frame", "text"),
    [
        (tcp(*V4, 40000, 80), "<TCP 10.244.1.2:40000 -> 10.96.0.10:80 [S] ttl=64>"),
        (udp(*V6, 5000, 53, b"abc"), "<UDP [fd00:1::2]:5000 -> [fd00:96::a]:53 ttl=64 payload=3>"),
        (icmp_echo(*V6), "<ICMPv6 fd00:1::2 -> fd00:96::a ttl=64>"),
        (udp(*V4, 5000, 53, checksum=1), "<UDP 10.244.1.2:5000 -> 10.96.0.10:53 ttl=64 BAD CHECKSUM>"),
        (
            fragment(udp(*V4, 5000, 53, bytes(32)), 16)[1],
            "<UDP 10.244.1.2 -> 10.96.0.10 ttl=64 payload=16 fragment=16+>",
        ),
    ],
)
def test_a_packet_says_what_it_is(frame: bytes, text: str) -> None:
    assert repr(parse(frame)) == text


def test_udp_without_checksum_is_right_in_ipv4_only() -> None:
    assert parse(udp(*V4, 5000, 53, checksum=0)).checksums_ok
    assert not parse(udp(*V6, 5000, 53, checksum=0)).checksums_ok


def test_a_udp_checksum_that_sums_to_zero_is_sent_as_ones() -> None:
    rest = parse(udp(*V4, 5000, 53, bytes(2))).checksum
    assert rest
    assert parse(udp(*V4, 5000, 53, rest.to_bytes(2))).checksum == 0xFFFF


def test_options_and_extension_headers_are_kept() -> None:
    assert parse(tcp(*V4, 1, 2, options=bytes([1] * 8))).options == bytes([1] * 8)
    extensions = ((HOP_BY_HOP, bytes(6)), (DESTINATION_OPTIONS, bytes(14)))
    packet = parse(tcp(*V6, 1, 2, payload=b"x", extensions=extensions))
    assert (packet.extensions, packet.payload, packet.checksums_ok) == (extensions, b"x", True)


@pytest.mark.parametrize(
    "frame",
    [
        udp(*V4, 5000, 53, bytes(range(100)), options=bytes([1] * 4)),
        udp(*V6, 5000, 53, bytes(range(100))),
        udp(
            *V6,
            5000,
            53,
            bytes(range(100)),
            extensions=[(HOP_BY_HOP, bytes(6)), (DESTINATION_OPTIONS, bytes(6))],
        ),
    ],
    ids=["IPv4", "IPv6", "IPv6 behind extension headers"],
)
def test_fragments_make_up_the_datagram(frame: bytes) -> None:
    pieces = [parse(piece) for piece in fragment(frame, 24)]
    assert [piece.fragment for piece in pieces] == [0, 24, 48, 72, 96]
    assert [piece.more_fragments for piece in pieces] == [True] * 4 + [False]
    assert pieces[0].sport == 5000
    assert pieces[1].sport is None
    assert all(piece.checksums_ok for piece in pieces)
    assert b"".join(piece.payload for piece in pieces)[8:] == bytes(range(100))


@pytest.mark.parametrize(
    "frame", [tcp(*V4, 1, 2), udp(*V6, 1, 2, b"x", extensions=[(HOP_BY_HOP, bytes(6))]), icmp_echo(*V4)]
)
def test_no_truncated_frame_is_taken_for_a_packet(frame: bytes) -> None:
    for length in range(len(frame)):
        with pytest.raises(ModelError):
            parse(frame[:length])


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: tcp(V4[0], V6[0], 1, 2), "one family"),
        (lambda: tcp(*V4, 1, 2, options=b"abc"), "multiple of 4"),
        (lambda: tcp(*V6, 1, 2, extensions=[(0, b"")]), "must be 6"),
        (lambda: fragment(udp(*V4, 1, 2), 10), "multiple of 8"),
        (lambda: parse(bytes(12) + b"\x08\x06" + bytes(28)), "0x0806"),
    ],
    ids=["families mixed", "odd options", "odd extension", "odd fragments", "ARP"],
)
def test_what_cannot_be_is_refused(build: Callable[[], Packet], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        build()


@given(st.binary(max_size=128))
def test_noise_is_refused_or_parsed_but_never_crashes(noise: bytes) -> None:
    for kind in (b"\x08\x00", b"\x86\xdd"):
        with suppress(ModelError):
            parse(bytes(12) + kind + noise)
