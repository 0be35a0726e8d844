"""A million packets as nobody should send them, through every program that packets enter by.

Whatever comes: a program leaves the packet as it was, drops it, answers it with a packet that is right, or
translates it, wholly and as a flow in the table says. KD_NOISE_PACKETS makes it more or fewer.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator
from ipaddress import ip_address

import pytest
from attrs import define, field

from k8sdatapath.model import Backend, Exposure, FrontendKind, Service
from tests.packets.anatomy import ERRORS, ICMP, ICMPV6, Anatomy, dissect, is_right, residues, without
from tests.packets.noise import Noise
from tests.packets.station import NEXT_HOP, OURS, UPLINK, XDP_IN, Station, station
from tests.packets.world import PROTOCOLS, TCP, UDP, WORLDS, World

pytestmark = pytest.mark.packets

PACKETS = int(os.environ.get("KD_NOISE_PACKETS", "1000000"))
SEED = int(os.environ.get("KD_NOISE_SEED", "1"))
BATCH = 5000
LEFT, DROPPED, SENT = "left", "dropped", "sent"
ANSWERS = {False: {0xFFFFFFFF: LEFT, 2: DROPPED, 7: SENT}, True: {2: LEFT, 1: DROPPED, 3: SENT}}
Flow = tuple[int, bytes, bytes]


def services(world: World) -> Iterator[Service]:
    ranges = ["198.51.0.0/16"] if world.name == "IPv4" else ["2001:db8::/48"]
    for protocol in PROTOCOLS:
        yield Service(
            *world["service"],
            protocol,
            backends=[Backend(*world["one"], local=True)],
            exposed=[
                Exposure(FrontendKind.NODE_PORT, *world["node"]),
                Exposure(FrontendKind.LOAD_BALANCER, *world["balancer"]),
            ],
            external_local=True,
            source_ranges=ranges,
        )
        yield world.service("other", protocol, ["two"])
        yield world.service("mirror", protocol, [])
        yield Service(
            *world["external"],
            protocol,
            kind="external_ip",
            backends=[Backend(*world["two"])],
            external_local=True,
        )


@pytest.fixture(scope="module")
def node() -> Iterator[Station]:
    with station(reject_rate=0) as made:
        for world in WORLDS:
            made.services.upsert(*services(world))
            for pod in ("client", "one"):
                made.add_pod(world.address(pod))
            made.add_peer(world.address("one"), "192.0.2.3")
        yield made


@define
class Judge:
    """Says what became of a packet, and whether that may be.

    :ivar frontends: protocol, address and port of each, with its one backend.
    :ivar seen: what packets to frontends have become, and so what their answers become.
    :ivar sides: addresses of packets that were translated, before and after.
    """

    node: Station
    frontends: dict[tuple[int, bytes, bytes], tuple[bytes, bytes]] = field(factory=dict)
    seen: dict[Flow, set[Flow]] = field(factory=dict)
    sides: set[tuple[bytes, bytes]] = field(factory=set)

    def __attrs_post_init__(self) -> None:
        for service in self.node.services.dump():
            for frontend in service.frontends if service.backends else ():
                (backend,) = service.backends
                key = service.protocol, frontend.address.packed, frontend.port.to_bytes(2)
                self.frontends[key] = backend.address.packed, backend.port.to_bytes(2)

    def judge(self, word: str, before: bytes, after: bytes) -> str:
        """Of one that was changed, or sent on."""
        was, now = dissect(before), dissect(after)
        assert was is not None, "what is no packet was changed"
        assert now is not None, "a packet became none"
        if word == SENT and self._is_answer(before, was, after, now):
            return "answered"
        assert len(after) == len(before)
        if was.protocol in ERRORS and before[was.l4] in ERRORS[was.protocol]:
            self._error(before, was, after, now, macs=word == SENT)
            return "error"
        assert without(after, now, macs=word == SENT) == without(before, was, macs=word == SENT)
        self._sums(before, was, after, now)
        if word == SENT:
            life = 21 if was.v6 else 22
            assert after[life] == before[life] - 1
        if was.later:
            assert (was.sides, now.sides) in self.sides, "a fragment of another flow"
            return "translated"
        assert self._is_known(was.flow, now.flow) or self._begins(was, now), "not what its flow says"
        self.sides.add((was.sides, now.sides))
        return "translated"

    def _begins(self, was: Anatomy, now: Anatomy) -> bool:
        """Whether a packet to a frontend became one to its backend."""
        backend = self.frontends.get((was.protocol, was.dst, was.ports[2:]))
        if backend != (now.dst, now.ports[2:]):
            return False
        if now.src == was.src:
            port = int.from_bytes(now.ports[:2])
            fair = now.ports[:2] == was.ports[:2] or port >= 61000  # another flow has its own port there
        elif now.dst == was.src:  # it meets itself
            fair = now.src == was.dst
        else:
            fair = ip_address(now.src) == ip_address(UPLINK[6 if was.v6 else 4])
        if fair:
            self.seen.setdefault(was.flow, set()).add(now.flow)
            self.seen.setdefault(turned(now.flow), set()).add(turned(was.flow))
        return fair

    def _is_known(self, was: Flow, now: Flow) -> bool:
        """Whether it is of a flow that was translated so before."""
        return now in self.seen.get(was, ())

    def _sums(self, before: bytes, was: Anatomy, after: bytes, now: Anatomy) -> None:
        """As right as before, or as wrong."""
        had, has = residues(before, was), residues(after, now)
        if was.protocol == UDP and not was.later:
            at = slice(was.l4 + 6, was.l4 + 8)
            assert any(before[at]) == any(after[at]), "no checksum stays none"
            if not any(before[at]):
                had, has = had[:1], has[:1]
        assert had == has

    def _is_answer(self, before: bytes, was: Anatomy, after: bytes, now: Anatomy) -> bool:
        """Whether it came back to where it came from: as an ICMP message, or as a RST."""
        if now.sides != was.dst + was.src or after[:12] != before[6:12] + before[:6]:
            return False
        if was.protocol in (ICMP, ICMPV6):  # an echo
            assert residues(before, was) == residues(after, now)
            assert (before[was.l4], after[now.l4]) in ((8, 0), (128, 129))
            assert after[now.l4 + 4 :] == before[was.l4 + 4 :]
            return True
        assert is_right(after, now)
        assert len(after) == now.end
        if now.protocol == TCP:
            assert now.ports == was.ports[2:] + was.ports[:2]
            assert after[now.l4 + 13] & 4
        else:
            assert now.protocol == (ICMPV6 if was.v6 else ICMP)
            assert before[14:].startswith(after[now.l4 + 8 :])
        return True

    def _error(self, before: bytes, was: Anatomy, after: bytes, now: Anatomy, *, macs: bool) -> None:
        """An error goes to whom the answer would, and quotes what that one has sent."""
        assert residues(before, was) == residues(after, now)
        said, says = (
            frame[:12] + frame[12:14] + frame[at.l4 + 8 :] for frame, at in ((before, was), (after, now))
        )
        quoted, quotes = _quoted(said), _quoted(says)
        assert quoted.v6 == was.v6
        if not was.v6:
            assert residues(said, quoted)[0] == residues(says, quotes)[0]
        assert was.dst == quoted.src, "an error that is for somebody else"
        told, tells = turned(quoted.flow), turned(quotes.flow)
        assert self._is_known(told, tells), "an error of no flow was changed"
        assert now.dst == quotes.src
        assert now.src == (quotes.dst if was.src == quoted.dst else was.src)


def _quoted(frame: bytes) -> Anatomy:
    """The packet in an error, of which only the beginning is there."""
    v6 = frame[14] >> 4 == 6
    at = 54 if v6 else 14 + (frame[14] & 15) * 4
    sides = frame[22:54] if v6 else frame[26:34]
    return Anatomy(v6, frame[20 if v6 else 23], at, at, True, True, sides, frame[at : at + 4])


def turned(flow: Flow) -> Flow:
    """The other direction."""
    protocol, sides, ports = flow
    half = len(sides) // 2
    return protocol, sides[half:] + sides[:half], ports[2:] + ports[:2]


def counted(node: Station) -> Counter[str]:
    """Packets by what a program answers."""
    words: Counter[str] = Counter()
    for name, packets in node.read_counters().items():
        if name in ("PASS", "TO_STACK", "TO_PEER"):
            words[LEFT] += packets
        else:
            words[DROPPED if name.startswith("DROP") else SENT] += packets
    return words


@pytest.mark.timeout(1200 + PACKETS // 1000)
def test_no_packet_comes_out_half_done(node: Station) -> None:
    noise, judge = Noise(SEED, (OURS, NEXT_HOP)), Judge(node)
    became: dict[str, Counter[str]] = {entry: Counter() for entry in node.entries}
    started = time.monotonic()
    for _ in range(-(-PACKETS // BATCH)):
        frames = noise.take(BATCH)
        for entry, seen in became.items():
            before = counted(node)
            ran = node.run_many(entry, frames)
            after = counted(node)
            said = ANSWERS[entry == XDP_IN]
            words = Counter([said[answer] for answer, _ in ran])
            seen[DROPPED] += words[DROPPED]
            for frame, (answer, out) in zip(frames, ran, strict=True):
                word = said[answer]
                if word == DROPPED:
                    continue
                if word == LEFT and out == frame:
                    seen[LEFT] += 1
                    continue
                try:
                    seen[judge.judge(word, frame, out)] += 1
                except AssertionError as error:
                    pytest.fail(f"{entry}: {error}\n  in  {frame.hex()}\n  out {out.hex()} ({word})")
            if entry != XDP_IN:
                assert after - before == words, f"{entry} counts otherwise than it answers"
    seconds = time.monotonic() - started
    runs = sum(seen.total() for seen in became.values())
    print(f"\n{runs} runs of {runs // len(became)} packets in {seconds:.1f} s, {runs / seconds:.0f} a second")
    for entry, seen in became.items():
        print(f"  {entry:12} {', '.join(f'{word} {count}' for word, count in sorted(seen.items()))}")
        if entry not in node.overlay.spec.programs:  # these translate what came through a tunnel only
            assert seen["translated"] > 0.01 * seen.total(), "noise that nobody listens to"
    for entry in ("from_pod", "from_uplink"):
        assert became[entry]["answered"]
        assert became[entry]["error"]
        assert became[entry][DROPPED]
