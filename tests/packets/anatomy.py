"""What a translation may change in a frame, said without the programs: everything else stays, bit by bit.

A checksum and what it sums add up to the same before and after a translation, whether they were right or not.
That is all there is to check of it: :func:`residues` are these sums.
"""

from __future__ import annotations

from attrs import evolve, frozen

ETHERNET = 14
IPV4, IPV6 = 0x0800, 0x86DD
ICMP, TCP, UDP, ICMPV6 = 1, 6, 17, 58
HOP_BY_HOP, ROUTING, FRAGMENT, DESTINATION = 0, 43, 44, 60
SKIPPED = {HOP_BY_HOP, ROUTING, FRAGMENT, DESTINATION}
CHECKSUM_AT = {ICMP: 2, TCP: 16, UDP: 6, ICMPV6: 2}
ERRORS = {ICMP: {3, 11, 12}, ICMPV6: {1, 2, 3, 4}}


@frozen(slots=True)
class Anatomy:
    """Where the parts of a frame are.

    :ivar l4: where TCP, UDP or ICMP begins, or the payload of a later fragment.
    :ivar end: of the IP packet.
    """

    v6: bool
    protocol: int
    l4: int
    end: int
    fragment: bool
    later: bool
    sides: bytes
    ports: bytes = b""

    @property
    def src(self) -> bytes:
        return self.sides[: len(self.sides) // 2]

    @property
    def dst(self) -> bytes:
        return self.sides[len(self.sides) // 2 :]

    @property
    def flow(self) -> tuple[int, bytes, bytes]:
        return self.protocol, self.sides, self.ports


def dissect(frame: bytes) -> Anatomy | None:
    """None: no packet whose parts fit into it."""
    kind = frame[12] << 8 | frame[13]
    if kind == IPV4:
        return _ipv4(frame)
    return _ipv6(frame) if kind == IPV6 else None


def _ipv4(frame: bytes) -> Anatomy | None:
    if frame[14] >> 4 != 4 or frame[14] & 15 < 5:
        return None
    offset = frame[20] << 8 | frame[21]
    l4, end = ETHERNET + (frame[14] & 15) * 4, ETHERNET + (frame[16] << 8 | frame[17])
    sides = frame[26:34]
    return _with_ports(
        frame, Anatomy(False, frame[23], l4, end, bool(offset & 0x3FFF), bool(offset & 0x1FFF), sides)
    )


def _ipv6(frame: bytes) -> Anatomy | None:
    if frame[14] >> 4 != 6:
        return None
    following, at, end = frame[20], 54, 54 + (frame[18] << 8 | frame[19])
    fragment = later = False
    while following in SKIPPED and not later:
        if at + 8 > len(frame):
            return None
        size = 8 if following == FRAGMENT else (frame[at + 1] + 1) * 8
        if following == FRAGMENT:
            offset = frame[at + 2] << 8 | frame[at + 3]
            fragment, later = bool(offset & 0xFFF9), bool(offset & 0xFFF8)
        following, at = frame[at], at + size
    return _with_ports(frame, Anatomy(True, following, at, end, fragment, later, frame[22:54]))


def _with_ports(frame: bytes, at: Anatomy) -> Anatomy | None:
    if at.end > len(frame) or at.l4 > at.end:
        return None
    if at.later or at.protocol not in CHECKSUM_AT:
        return at
    if at.l4 + 8 > at.end:
        return None
    return evolve(at, ports=frame[at.l4 : at.l4 + 4]) if at.protocol in (TCP, UDP) else at


def total(data: bytes) -> int:
    """The Internet checksum's sum: a big-endian number modulo 0xffff is the sum of its 16-bit digits."""
    return int.from_bytes(data + b"\0" if len(data) % 2 else data) % 0xFFFF


def residues(frame: bytes, at: Anatomy) -> tuple[int, int]:
    """The sums of IP's header, and of what follows with its pseudo header: 0 where the checksum is right."""
    header = 0 if at.v6 else total(frame[ETHERNET : ETHERNET + (frame[14] & 15) * 4])
    if at.later or at.protocol not in CHECKSUM_AT:
        return header, 0
    size = at.end - at.l4
    pseudo = 0 if at.protocol == ICMP else total(at.sides) + size + at.protocol
    return header, (pseudo + total(frame[at.l4 : at.end])) % 0xFFFF


def is_right(frame: bytes, at: Anatomy) -> bool:
    """Whether the checksums are right; fragments have IP's only."""
    header, rest = residues(frame, at)
    if at.fragment or (at.protocol == UDP and not at.v6 and not any(frame[at.l4 + 6 : at.l4 + 8])):
        rest = 0
    return not header and not rest


def rightened(frame: bytes) -> bytes:
    """The frame with right checksums, as far as it has any."""
    at = dissect(frame)
    if at is None:
        return frame
    made = bytearray(frame)
    places = [] if at.v6 else [(24, 0)]
    if not at.fragment and at.protocol in CHECKSUM_AT:
        place = at.l4 + CHECKSUM_AT[at.protocol]
        if place + 2 <= at.end:
            places.append((place, 1))
    for place, which in places:
        made[place : place + 2] = bytes(2)
        value = 0xFFFF - residues(bytes(made), at)[which]
        made[place : place + 2] = value.to_bytes(2)
    return bytes(made)


def without(frame: bytes, at: Anatomy, *, macs: bool) -> bytes:
    """The frame without what a translation may change: addresses, ports, checksums.

    :param macs: and who carries it.
    """
    made = bytearray(frame)
    if macs:
        made[:12] = bytes(12)
        made[21 if at.v6 else 22] = 0  # its life is one hop shorter
    if at.v6:
        made[22:54] = bytes(32)
    else:
        made[24:34] = bytes(10)
    if at.protocol in (TCP, UDP) and not at.later:
        made[at.l4 : at.l4 + 4] = bytes(4)
        place = at.l4 + CHECKSUM_AT[at.protocol]
        made[place : place + 2] = bytes(2)
    return bytes(made)
