"""Packets as nobody should send them: valid ones of flows that live, damaged in every way there is."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

from k8sdatapath.net.packet import fragment, icmp_echo, icmp_error
from tests.packets.anatomy import ETHERNET, FRAGMENT, IPV4, IPV6, rightened
from tests.packets.world import PROTOCOLS, TCP, UDP, V4, WORLDS, World

#: Numbers that code compares with.
EDGES = bytes(
    (0, 1, 4, 5, 6, 7, 8, 15, 16, 17, 20, 39, 40, 41, 43, 44, 50, 51, 58, 59, 60, 64, 127, 128, 132)
)
EDGES += bytes((0x45, 0x46, 0x4F, 0x60, 0x80, 0xFE, 0xFF))
#: Bytes of an IP header that say what is where: version, lengths, fragments, what follows.
TELLING = {4: (14, 16, 17, 20, 21, 22, 23), 6: (14, 18, 19, 20, 21, 54, 55, 56, 57)}
PAYLOADS = (b"", b"x", b"words", bytes(range(100)))
MOST = 1400


def flows(macs: tuple[str, str]) -> list[bytes]:
    """Every kind of packet that the programs know, of both families."""
    there = {"dst_mac": macs[0], "src_mac": macs[1]}
    frames: list[bytes] = []
    for world in WORLDS:
        for protocol in PROTOCOLS:
            for src, dst in (
                ("client", "service"),
                ("stranger", "service"),
                ("stranger", "node"),
                ("stranger", "balancer"),
                ("client", "external"),
                ("client", "other"),
                ("client", "mirror"),
                ("client", "stranger"),
                ("one", "service"),
                ("one", "client"),
                ("one", "stranger"),
                ("two", "client"),
            ):
                for flags in ("S", "SA", "A", "PA", "FA", "R") if protocol is TCP else ("",):
                    for payload in PAYLOADS[1:3]:
                        frames.append(world.frame(src, dst, protocol, flags, payload, **there))  # noqa: PERF401
            frames += _odd(world, protocol, there)
        frames += _icmp(world, macs)
    return [frame if len(frame) >= ETHERNET + 40 else frame + bytes(40) for frame in frames]


def _odd(world: World, protocol: int, there: dict[str, str]) -> Iterator[bytes]:
    """Options, extension headers, fragments, no checksum."""
    kind = TCP if protocol == TCP else UDP
    long = world.frame("client", "service", kind, "A", bytes(range(200)), **there)
    yield from fragment(long, 64, ident=7)
    yield from fragment(world.frame("one", "client", kind, "A", bytes(150), **there), 80, ident=8)
    if world is V4:
        yield world.frame("client", "service", kind, "A", b"o", options=bytes([1] * 8), **there)
    else:
        yield world.frame("client", "service", kind, "A", b"o", extensions=[(0, bytes(6))], **there)
        yield world.frame(
            "client", "service", kind, "A", b"o", extensions=[(60, bytes(14)), (43, bytes(22))], **there
        )
    if kind is UDP:
        yield world.frame("client", "service", UDP, payload=b"none", checksum=0, **there)


def _icmp(world: World, macs: tuple[str, str]) -> Iterator[bytes]:
    head = bytes.fromhex("".join(macs).replace(":", ""))
    kinds = [(3, 3), (3, 4), (11, 0), (12, 0)] if world is V4 else [(1, 4), (2, 0), (3, 0), (4, 1)]
    for to in ("service", "stranger", "one", "balancer"):
        yield head + icmp_echo(world.address("client"), world.address(to), payload=b"echo")[12:]
    for protocol in PROTOCOLS:
        for kind in kinds:
            asked = world.frame("client", "one", protocol, "A", bytes(60))
            answered = world.frame("service", "client", protocol, "A", bytes(60))
            for who, to, about in (
                ("stranger", "client", asked),
                ("one", "client", asked),
                ("client", "service", answered),
            ):
                yield head + icmp_error(world.address(who), world.address(to), about, kind, 1300)[12:]


class Noise:
    """An endless supply of frames that a test run takes, the same for the same seed."""

    def __init__(self, seed: int, macs: tuple[str, str]) -> None:
        self._chance = random.Random(seed)
        self._whole = flows(macs)
        self._head = self._whole[0][:12]
        self._ways: list[Callable[[bytes], bytes]] = [
            lambda frame: frame,
            self._scribble,
            self._scribble,
            self._misleading,
            self._misleading,
            self._cut,
            self._shifted,
            self._wrapped,
            self._nonsense,
            self._tagged,
        ]

    def take(self, count: int) -> list[bytes]:
        choice, ways, whole, chance = self._chance.choice, self._ways, self._whole, self._chance.random
        frames = []
        for _ in range(count):
            frame = choice(ways)(choice(whole))
            if chance() < 0.2:
                frame = choice(ways)(_whole(frame))
            if chance() < 0.4:
                frame = rightened(_whole(frame))
            frames.append(_whole(frame)[: ETHERNET + MOST])
        return frames

    def _scribble(self, frame: bytes) -> bytes:
        made = bytearray(frame)
        for _ in range(self._chance.randrange(1, 4)):
            made[self._chance.randrange(ETHERNET, len(made))] = self._chance.randrange(256)
        return bytes(made)

    def _misleading(self, frame: bytes) -> bytes:
        made = bytearray(frame)
        places = TELLING.get(frame[ETHERNET] >> 4, TELLING[4])
        for _ in range(self._chance.randrange(1, 3)):
            place = self._chance.choice(places)
            if place < len(made):
                made[place] = self._chance.choice(EDGES)
        return bytes(made)

    def _cut(self, frame: bytes) -> bytes:
        made = frame[: self._chance.randrange(ETHERNET, len(frame) + 1)]
        if self._chance.random() < 0.5 and len(made) >= ETHERNET + 40:  # and say so
            v6 = frame[ETHERNET] >> 4 == 6
            at, length = (18, len(made) - ETHERNET - 40) if v6 else (16, len(made) - ETHERNET)
            made = made[:at] + length.to_bytes(2) + made[at + 2 :]
        return made

    def _shifted(self, frame: bytes) -> bytes:
        at = self._chance.randrange(ETHERNET, len(frame))
        if self._chance.random() < 0.5:
            return frame[:at] + frame[at + self._chance.choice((1, 4, 8, 20)) :]
        return frame[:at] + self._chance.randbytes(self._chance.choice((1, 4, 8, 20))) + frame[at:]

    def _wrapped(self, frame: bytes) -> bytes:
        """With extension headers, or options, that may be anything."""
        chance = self._chance
        if frame[12] != IPV6 >> 8:
            words = chance.randrange(1, 11)
            length = min(ETHERNET + MOST, len(frame) + words * 4) - ETHERNET
            header = bytes((0x45 + words, 0)) + length.to_bytes(2) + frame[18:34]
            return frame[:ETHERNET] + header + chance.randbytes(words * 4) + frame[34:]
        chain, following = b"", frame[20]
        for _ in range(chance.randrange(1, 8)):
            number = chance.choice((0, 43, 44, 51, 60, 60, 135))
            size = 0 if chance.random() < 0.7 else chance.choice((1, 2, 255))
            body = chance.randbytes(6 + 8 * size) if chance.random() < 0.8 else chance.randbytes(6)
            if number == FRAGMENT:
                body = bytes((0, chance.choice((0, 1, 8, 9)))) + bytes(4)
            elif number == 43:
                body = bytes((0, chance.choice((0, 0, 1)))) + body[2:]
            chain, following = bytes((following, size)) + body + chain, number
        body = (chain + frame[54:])[: MOST - 40]
        return frame[:18] + len(body).to_bytes(2) + bytes((following,)) + frame[21:54] + body

    def _nonsense(self, frame: bytes) -> bytes:
        kind = self._chance.choice((IPV4, IPV6, IPV4, IPV6, 0x0806, self._chance.randrange(1 << 16)))
        first = {IPV4: 0x45, IPV6: 0x60}.get(kind, 0)
        return (
            self._head
            + kind.to_bytes(2)
            + bytes((first,))
            + self._chance.randbytes(self._chance.randrange(40, 200))
        )

    def _tagged(self, frame: bytes) -> bytes:
        """Of a VLAN, for somebody else, or to an odd port."""
        way = self._chance.randrange(3)
        if way == 0:
            return frame[:12] + b"\x81\x00\x00\x07" + frame[12:]
        if way == 1:
            return self._chance.randbytes(6) + frame[6:]
        made, at = bytearray(frame), 34 if frame[12] == IPV4 >> 8 else 54
        made[at : at + 4] = self._chance.choice(
            (bytes(4), b"\0\0\0\x50", b"\x9c\x40\0\0", b"\xff\xff\xff\xff")
        )
        return bytes(made)


def _whole(frame: bytes) -> bytes:
    """As long as a test run wants frames: with a whole IP header."""
    needed = ETHERNET + {IPV4: 20, IPV6: 40}.get(frame[12] << 8 | frame[13], 1) - len(frame)
    return frame + bytes(needed) if needed > 0 else frame
