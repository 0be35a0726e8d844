"""Packets as bytes: build them, cut them into fragments, take them apart again.

::

    frame = tcp("10.244.1.2", "10.96.0.10", 40000, 80, "S")
    parse(frame)                # <TCP 10.244.1.2:40000 -> 10.96.0.10:80 [S] ttl=64>
    parse(frame).checksums_ok   # True

Frames begin with an Ethernet header. The addresses decide the family. Checksums come out right unless one
is asked for by value. Enough for tests of programs, not a packet library: the rest is made with ``bytes``.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from attrs import evolve, field, frozen

from k8sdatapath.errors import ModelError
from k8sdatapath.model.address import IPAddress, address

__all__ = [
    "Packet",
    "checksum",
    "crc32c",
    "fragment",
    "icmp_echo",
    "icmp_error",
    "parse",
    "quoted",
    "sctp",
    "tcp",
    "udp",
]

ETH_IPV4: Final = 0x0800
ETH_IPV6: Final = 0x86DD
HOP_BY_HOP: Final = 0
ICMP: Final = 1
TCP: Final = 6
UDP: Final = 17
ROUTING: Final = 43
FRAGMENT: Final = 44
ICMPV6: Final = 58
DESTINATION_OPTIONS: Final = 60
SCTP: Final = 132

_NAMES = {ICMP: "ICMP", TCP: "TCP", UDP: "UDP", ICMPV6: "ICMPv6", SCTP: "SCTP"}
_CHECKSUM_AT = {ICMP: 2, TCP: 16, UDP: 6, ICMPV6: 2, SCTP: 8}
_EXTENSIONS = {HOP_BY_HOP, ROUTING, DESTINATION_OPTIONS}
_FLAGS = "FSRPAUEC"  # from bit 0 up
_NO_MAC = "00:00:00:00:00:00"  # the loopback device's own: a test run takes such frames as addressed to it


@frozen
class Packet:
    """A frame taken apart.

    :ivar fragment: offset of this fragment's payload in the datagram, or None if it is a whole datagram.
    :ivar more_fragments: whether others follow.
    :ivar options: IPv4 options, as they stand in the header.
    :ivar extensions: numbers and contents of IPv6 extension headers, those of fragmentation left out.
    :ivar flags: TCP flags by their initials (``"SA"``), in the order FSRPAUEC.
    :ivar icmp: type and code of ICMP or ICMPv6.
    :ivar payload: what TCP, UDP, SCTP or ICMP carries; of a fragment all that follows the IP header.
    :ivar checksums_ok: those of IP and of TCP, UDP, SCTP or ICMP. A fragment has only IP's.
    """

    src: IPAddress
    dst: IPAddress
    protocol: int
    sport: int | None = None
    dport: int | None = None
    flags: str = ""
    icmp: tuple[int, int] | None = None
    payload: bytes = b""
    ttl: int = 64
    src_mac: str = _NO_MAC
    dst_mac: str = _NO_MAC
    fragment: int | None = None
    more_fragments: bool = False
    options: bytes = b""
    extensions: tuple[tuple[int, bytes], ...] = ()
    checksum: int | None = None
    checksums_ok: bool = field(default=True, eq=False)

    def __repr__(self) -> str:
        name = _NAMES.get(self.protocol, f"protocol {self.protocol}")
        parts = [name, f"{_end(self.src, self.sport)} -> {_end(self.dst, self.dport)}"]
        if self.flags:
            parts.append(f"[{self.flags}]")
        parts.append(f"ttl={self.ttl}")
        if self.payload:
            parts.append(f"payload={len(self.payload)}")
        if self.fragment is not None:
            parts.append(f"fragment={self.fragment}{'+' if self.more_fragments else ''}")
        if not self.checksums_ok:
            parts.append("BAD CHECKSUM")
        return f"<{' '.join(parts)}>"


def tcp(
    src: IPAddress | str,
    dst: IPAddress | str,
    sport: int,
    dport: int,
    flags: str = "S",
    payload: bytes = b"",
    *,
    seq: int = 0,
    ack: int = 0,
    ttl: int = 64,
    own_options: bytes = b"",
    options: bytes = b"",
    extensions: Iterable[tuple[int, bytes]] = (),
    checksum: int | None = None,
    src_mac: str = _NO_MAC,
    dst_mac: str = _NO_MAC,
) -> bytes:
    """A TCP segment.

    :param flags: initials of the flags, e.g. ``"SA"``.
    :param own_options: those of TCP, a multiple of 4 bytes.
    :param options: IPv4 options, a multiple of 4 bytes.
    :param extensions: IPv6 extension headers, as number and content (6 bytes, or 8 more, or ...).
    :param checksum: put this instead of the right one.
    """
    bits = sum(1 << _FLAGS.index(flag) for flag in flags)
    words = 5 + len(own_options) // 4
    header = struct.pack("!HHIIBBHHH", sport, dport, seq, ack, words << 4, bits, 65535, 0, 0)
    carrier = _Carrier(src, dst, ttl, options, extensions, src_mac, dst_mac)
    return _frame(carrier, TCP, header + own_options + payload, checksum)


def udp(
    src: IPAddress | str,
    dst: IPAddress | str,
    sport: int,
    dport: int,
    payload: bytes = b"",
    *,
    ttl: int = 64,
    options: bytes = b"",
    extensions: Iterable[tuple[int, bytes]] = (),
    checksum: int | None = None,
    src_mac: str = _NO_MAC,
    dst_mac: str = _NO_MAC,
) -> bytes:
    """A UDP datagram. ``checksum=0`` says that it has none, which IPv4 allows. Else as :func:`tcp`."""
    datagram = struct.pack("!HHHH", sport, dport, 8 + len(payload), 0) + payload
    carrier = _Carrier(src, dst, ttl, options, extensions, src_mac, dst_mac)
    return _frame(carrier, UDP, datagram, checksum)


def sctp(
    src: IPAddress | str,
    dst: IPAddress | str,
    sport: int,
    dport: int,
    chunk: int = 1,
    payload: bytes = b"",
    *,
    tag: int = 0,
    ttl: int = 64,
) -> bytes:
    """A packet of SCTP with one chunk.

    :param chunk: its type: 1 is INIT, 2 INIT ACK, 0 DATA, 6 ABORT, 14 SHUTDOWN COMPLETE.
    :param payload: the chunk's value.
    """
    body = struct.pack("!HHIIBBH", sport, dport, tag, 0, chunk, 0, 4 + len(payload)) + payload
    return _frame(_Carrier(src, dst, ttl), SCTP, body)


def icmp_echo(
    src: IPAddress | str, dst: IPAddress | str, ident: int = 1, payload: bytes = b"", *, ttl: int = 64
) -> bytes:
    """An echo request, of ICMP or ICMPv6."""
    v6 = address(src).version == 6
    message = struct.pack("!BBHHH", 128 if v6 else 8, 0, 0, ident, 1) + payload
    return _frame(_Carrier(src, dst, ttl), ICMPV6 if v6 else ICMP, message)


def icmp_error(
    src: IPAddress | str,
    dst: IPAddress | str,
    about: bytes,
    kind: tuple[int, int],
    rest: int = 0,
    *,
    ttl: int = 64,
) -> bytes:
    """An ICMP or ICMPv6 error.

    :param about: the frame that met the error; its first bytes are quoted.
    :param kind: type and code, e.g. ``(3, 4)``.
    :param rest: the second half of the header, e.g. the MTU of the next hop.
    """
    quote = about[14:][: 1232 if address(src).version == 6 else 548]
    message = struct.pack("!BBHI", *kind, 0, rest) + quote
    protocol = ICMPV6 if address(src).version == 6 else ICMP
    return _frame(_Carrier(src, dst, ttl), protocol, message)


def fragment(frame: bytes, size: int, *, ident: int = 1) -> list[bytes]:
    """Cut a frame as a router (IPv4) or its sender (IPv6) would.

    :param size: bytes of the datagram in each fragment but the last; a multiple of 8.
    """
    if size <= 0 or size % 8:
        raise ModelError(f"fragments of {size} bytes: must be a multiple of 8")
    ether, ip = frame[:14], frame[14:]
    v6 = ip[0] >> 4 == 6
    header_size = (
        40 + sum(2 + len(body) for _number, body in parse(frame).extensions) if v6 else (ip[0] & 15) * 4
    )
    header, body = (
        ip[:header_size],
        ip[header_size : 40 + int.from_bytes(ip[4:6])] if v6 else ip[header_size:],
    )
    frames = []
    for offset in range(0, len(body), size):
        piece, more = body[offset : offset + size], offset + size < len(body)
        if v6:
            frames.append(ether + _fragment_v6(header, piece, offset | more, ident))
        else:
            frames.append(ether + _fragment_v4(header, piece, offset // 8 | more << 13, ident))
    return frames


def parse(frame: bytes) -> Packet:
    """Take a frame apart.

    :raises ModelError: it is not IP, or shorter than its headers say.
    """
    try:
        kind = int.from_bytes(frame[12:14])
        if kind not in (ETH_IPV4, ETH_IPV6):
            raise ModelError(f"no IP packet: Ethernet type {kind:#06x}")
        macs = Packet(
            IPv4Address(0), IPv4Address(0), 0, src_mac=frame[6:12].hex(":"), dst_mac=frame[:6].hex(":")
        )
        return _parse_v4(macs, frame[14:]) if kind == ETH_IPV4 else _parse_v6(macs, frame[14:])
    except (struct.error, IndexError, ValueError) as error:
        if isinstance(error, ModelError):
            raise
        raise ModelError(f"truncated packet of {len(frame)} bytes") from None


def quoted(error: Packet) -> Packet:
    """What an ICMP error quotes: addresses, protocol and ports. The rest is rarely there as a whole.

    :raises ModelError: it quotes nothing.
    """
    ip = error.payload
    src: IPAddress
    dst: IPAddress
    try:
        if ip[0] >> 4 == 6:
            src, dst, protocol, at = IPv6Address(ip[8:24]), IPv6Address(ip[24:40]), ip[6], 40
        else:
            src, dst, protocol, at = IPv4Address(ip[12:16]), IPv4Address(ip[16:20]), ip[9], (ip[0] & 15) * 4
        sport, dport = struct.unpack_from("!HH", ip, at)
    except (struct.error, IndexError, ValueError):
        raise ModelError(f"no packet is quoted in {error}") from None
    return Packet(src, dst, protocol, sport, dport)


def crc32c(data: bytes) -> int:
    """The checksum of SCTP (RFC 9260, appendix A), over a packet in which its own field is zero."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def checksum(data: bytes) -> int:
    """The Internet checksum of RFC 1071: 0 over data that contains its own right one."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data[: len(data) & ~1]))
    if len(data) % 2:
        total += data[-1] << 8
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


@frozen
class _Carrier:
    """Ethernet and IP, as the caller wants them."""

    src: IPAddress = field(converter=address)
    dst: IPAddress = field(converter=address)
    ttl: int
    options: bytes = b""
    extensions: Iterable[tuple[int, bytes]] = ()
    src_mac: str = _NO_MAC
    dst_mac: str = _NO_MAC


def _frame(carrier: _Carrier, protocol: int, body: bytes, forced: int | None = None) -> bytes:
    """A whole packet.

    :param forced: put this instead of the right checksum.
    """
    src, dst, options = carrier.src, carrier.dst, carrier.options
    if src.version != dst.version:
        raise ModelError(f"{src} and {dst} are not of one family")
    at = _CHECKSUM_AT[protocol]
    value = _l4_checksum(src, dst, protocol, body) if forced is None else forced
    if protocol == UDP and forced is None:
        value = value or 0xFFFF  # 0 would say that there is none
    if protocol == SCTP:
        body = body[:at] + crc32c(body).to_bytes(4, "little") + body[at + 4 :]
    else:
        body = body[:at] + value.to_bytes(2) + body[at + 2 :]
    ether = bytes.fromhex((carrier.dst_mac + carrier.src_mac).replace(":", ""))
    if src.version == 6:
        first, chain = _chain(tuple(carrier.extensions), protocol)
        header = struct.pack("!IHBB", 6 << 28, len(chain) + len(body), first, carrier.ttl)
        header += src.packed + dst.packed
        return ether + ETH_IPV6.to_bytes(2) + header + chain + body
    if len(options) % 4 or len(options) > 40:
        raise ModelError(f"{len(options)} bytes of IPv4 options: must be a multiple of 4, 40 at most")
    header = struct.pack(
        "!BBHHHBBH",
        *(0x45 + len(options) // 4, 0, 20 + len(options) + len(body), 0, 0, carrier.ttl, protocol, 0),
    )
    header += src.packed + dst.packed + options
    return ether + ETH_IPV4.to_bytes(2) + _with_checksum(header) + body


def _chain(extensions: tuple[tuple[int, bytes], ...], protocol: int) -> tuple[int, bytes]:
    """The extension headers and the number of the first, or of what follows if there are none."""
    chain, following = b"", protocol
    for number, body in reversed(extensions):
        if len(body) % 8 != 6:
            raise ModelError(f"{len(body)} bytes in extension header {number}: must be 6, 14, 22, ...")
        chain = bytes((following, len(body) // 8)) + body + chain
        following = number
    return following, chain


def _with_checksum(header: bytes) -> bytes:
    header = header[:10] + bytes(2) + header[12:]
    return header[:10] + checksum(header).to_bytes(2) + header[12:]


def _l4_checksum(src: IPAddress, dst: IPAddress, protocol: int, body: bytes) -> int:
    """What belongs into the field of ``body`` if it is zero; 0 if ``body`` has its right checksum."""
    pseudo = b"" if protocol == ICMP else src.packed + dst.packed + struct.pack("!II", len(body), protocol)
    return checksum(pseudo + body)


def _fragment_v4(header: bytes, piece: bytes, offset: int, ident: int) -> bytes:
    length = len(header) + len(piece)
    header = header[:2] + struct.pack("!HHH", length, ident, offset) + header[8:]
    return _with_checksum(header) + piece


def _fragment_v6(header: bytes, piece: bytes, offset: int, ident: int) -> bytes:
    last = 6  # where the number of the header that follows stands: in the fixed one, or in the last extension
    following, at = header[6], 40
    while at < len(header):
        last, following, at = at, header[at], at + (header[at + 1] + 1) * 8
    length = len(header) - 40 + 8 + len(piece)
    header = header[:4] + length.to_bytes(2) + header[6:]
    header = header[:last] + bytes((FRAGMENT,)) + header[last + 1 :]
    return header + struct.pack("!BBHI", following, 0, offset, ident) + piece


def _parse_v4(packet: Packet, ip: bytes) -> Packet:
    first, _tos, length, _ident, offset, ttl, protocol = struct.unpack_from("!BBHHHBB", ip)
    header_size = (first & 15) * 4
    if first >> 4 != 4 or header_size < 20 or len(ip) < length or length < header_size:
        raise ModelError("truncated packet: the IPv4 header's lengths do not fit")
    part = bool(offset & 0x3FFF)
    packet = evolve(
        packet,
        src=IPv4Address(ip[12:16]),
        dst=IPv4Address(ip[16:20]),
        protocol=protocol,
        ttl=ttl,
        fragment=(offset & 0x1FFF) * 8 if part else None,
        more_fragments=bool(offset & 0x2000),
        options=ip[20:header_size],
        checksums_ok=checksum(ip[:header_size]) == 0,
    )
    return _parse_l4(packet, ip[header_size:length])


def _parse_v6(packet: Packet, ip: bytes) -> Packet:
    first, length, following, ttl = struct.unpack_from("!IHBB", ip)
    if first >> 28 != 6 or len(ip) < 40 + length:
        raise ModelError("truncated packet: the IPv6 header's length does not fit")
    body, extensions = ip[40 : 40 + length], []
    offset: int | None = None
    while following in _EXTENSIONS or (following == FRAGMENT and offset is None):
        size = 8 if following == FRAGMENT else (body[1] + 1) * 8
        if len(body) < size:
            raise ModelError("truncated packet: an IPv6 extension header does not fit")
        if following == FRAGMENT:
            offset = int.from_bytes(body[2:4])
        else:
            extensions.append((following, body[2:size]))
        following, body = body[0], body[size:]
        if offset is not None and offset & ~7:
            break
    part = offset & 0xFFF9 if offset is not None else 0
    packet = evolve(
        packet,
        src=IPv6Address(ip[8:24]),
        dst=IPv6Address(ip[24:40]),
        protocol=following,
        ttl=ttl,
        fragment=part & 0xFFF8 if part else None,
        more_fragments=bool(part & 1),
        extensions=tuple(extensions),
    )
    return _parse_l4(packet, body)


def _parse_l4(packet: Packet, body: bytes) -> Packet:
    protocol = packet.protocol
    if protocol not in _CHECKSUM_AT or packet.fragment:
        return evolve(packet, payload=body)
    if protocol in (TCP, UDP, SCTP):
        sport, dport = struct.unpack_from("!HH", body)
        packet = evolve(packet, sport=sport, dport=dport)
    if packet.fragment is not None:
        return evolve(packet, payload=body)
    if protocol == SCTP:
        (found,) = struct.unpack_from("<I", body, 8)
        right = crc32c(body[:8] + bytes(4) + body[12:]) == found
        return evolve(packet, checksum=found, payload=body[12:], checksums_ok=packet.checksums_ok and right)
    (found,) = struct.unpack_from("!H", body, _CHECKSUM_AT[protocol])
    absent = protocol == UDP and not found and packet.src.version == 4
    right = absent or _l4_checksum(packet.src, packet.dst, protocol, body) == 0
    packet = evolve(packet, checksum=found, checksums_ok=packet.checksums_ok and right)
    if protocol in (ICMP, ICMPV6):
        packet = evolve(packet, icmp=(body[0], body[1]))
    if protocol != TCP:
        return evolve(packet, payload=body[8:])
    flags = "".join(flag for bit, flag in enumerate(_FLAGS) if body[13] >> bit & 1)
    return evolve(packet, flags=flags, payload=body[(body[12] >> 4) * 4 :])


def _end(where: IPAddress, port: int | None) -> str:
    host = f"[{where}]" if where.version == 6 and port is not None else str(where)
    return host if port is None else f"{host}:{port}"
