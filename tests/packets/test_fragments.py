"""Datagrams that come in fragments."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address

import pytest

from k8sdatapath.model import Protocol
from k8sdatapath.net.packet import checksum, fragment, parse
from tests.packets.rig import Rig, Sent, rig
from tests.packets.world import PROTOCOLS, TCP, UDP, V4, WORLDS, World

FAMILIES = pytest.mark.parametrize("world", WORLDS, ids=lambda world: world.name)
PAYLOAD = bytes(range(256)) * 3


@pytest.fixture
def datapath() -> Iterator[Rig]:
    with rig(redirect=False) as made:
        made.services.upsert(*(w.service("service", p, ["one"]) for w in WORLDS for p in PROTOCOLS))
        yield made


def whole(fragments: list[Sent]) -> bytes:
    """What the fragments carry, put together."""
    parts = [sent.packet for sent in fragments]
    assert all(part.checksums_ok for part in parts)
    return b"".join(part.payload for part in sorted(parts, key=lambda part: part.fragment or 0))


def is_right(
    datapath: Rig, world: World, fragments: list[bytes], src: str, dst: str, protocol: Protocol
) -> None:
    """They come out as fragments of a datagram from ``src`` to ``dst`` that has its right checksum."""
    sent = [datapath.send(frame) for frame in fragments]
    assert [each.outcome for each in sent] == ["TO_STACK"] * len(fragments)
    for each in sent:
        assert (str(each.packet.src), str(each.packet.dst)) == (world.address(src), world.address(dst))
    body = whole(sent)
    ports = int.from_bytes(body[:2]), int.from_bytes(body[2:4])
    assert ports == (world[src][1], world[dst][1])
    packet = sent[0].packet
    pseudo = packet.src.packed + packet.dst.packed + len(body).to_bytes(4) + protocol.to_bytes(4)
    assert checksum(pseudo + body) == 0
    assert body.endswith(PAYLOAD)


@FAMILIES
@pytest.mark.parametrize("size", [8, 104, 400])
def test_a_datagram_and_its_answer(datapath: Rig, world: World, size: int) -> None:
    asked = world.frame("client", "service", UDP, payload=PAYLOAD)
    is_right(
        datapath, world, fragment(asked, size, ident=70000 if world is not V4 else 7), "client", "one", UDP
    )
    answer = world.frame("one", "client", UDP, payload=PAYLOAD)
    is_right(datapath, world, fragment(answer, size, ident=8), "service", "client", UDP)


@FAMILIES
def test_segments_of_a_connection(datapath: Rig, world: World) -> None:
    datapath.send(world.frame("client", "service", TCP))
    segment = world.frame("client", "service", TCP, "A", PAYLOAD)
    is_right(datapath, world, fragment(segment, 200), "client", "one", TCP)


@FAMILIES
def test_two_datagrams_at_once(datapath: Rig, world: World) -> None:
    datapath.services.upsert(world.service("other", UDP, ["two"]))
    one = fragment(world.frame("client", "service", UDP, payload=PAYLOAD), 400, ident=1)
    two = fragment(world.frame("client", "other", UDP, payload=PAYLOAD), 400, ident=1)
    sent = [datapath.send(frame).packet for pair in zip(one, two, strict=True) for frame in pair]
    assert {str(packet.dst) for packet in sent[::2]} == {world.address("one")}
    assert {str(packet.dst) for packet in sent[1::2]} == {world.address("two")}


@FAMILIES
@pytest.mark.parametrize("protocol", PROTOCOLS, ids=lambda protocol: protocol.name)
def test_what_comes_before_the_first_to_an_address_of_services_is_dropped(
    datapath: Rig, world: World, protocol: Protocol
) -> None:
    first, second, third = fragment(world.frame("client", "service", protocol, payload=PAYLOAD), 200)[:3]
    for frame in (third, second):
        sent = datapath.send(frame)
        assert (sent.outcome, sent.frame) == ("DROP_FRAGMENT", frame)
    assert not dict(datapath.flows)
    datapath.send(world.frame("client", "service", protocol))
    assert datapath.send(first).outcome == "TO_STACK"
    assert [str(datapath.send(frame).packet.dst) for frame in (second, third)] == [world.address("one")] * 2
    sent = datapath.send(second, via="to_pod")
    assert (sent.outcome, sent.frame) == ("PASS", second)


@FAMILIES
def test_what_comes_before_the_first_to_an_address_of_the_node_is_left_alone(
    datapath: Rig, world: World
) -> None:
    datapath.services.set_node_addresses([ip_address(world.address("service"))])
    first, second, *_ = fragment(world.frame("client", "service", UDP, payload=PAYLOAD), 400)
    assert datapath.send(second).frame == second
    assert datapath.send(first).outcome == "TO_STACK"
    assert str(datapath.send(second).packet.dst) == world.address("one")


@FAMILIES
def test_what_follows_when_the_flow_is_gone_is_dropped(datapath: Rig, world: World) -> None:
    first, second, *_ = fragment(world.frame("client", "service", UDP, payload=PAYLOAD), 400)
    datapath.send(first)
    datapath.flows.clear()
    sent = datapath.send(second)
    assert (sent.outcome, sent.frame) == ("DROP_FRAGMENT", second)


@FAMILIES
def test_fragments_of_no_service_are_left_alone(datapath: Rig, world: World) -> None:
    for frame in fragment(world.frame("client", "stranger", UDP, payload=PAYLOAD), 400):
        assert (datapath.send(frame).outcome, datapath.send(frame).frame) == ("PASS", frame)
        assert parse(frame).fragment is not None


@FAMILIES
def test_a_first_fragment_without_the_checksum_ends_its_datagram(datapath: Rig, world: World) -> None:
    datapath.send(world.frame("client", "service", TCP))
    first, *_ = fragment(world.frame("client", "service", TCP, "A", PAYLOAD), 8)
    for padding in (b"", bytes(18)):  # of Ethernet, whose frames have 60 bytes
        sent = datapath.send(first + padding)
        assert (sent.outcome, sent.frame) == ("DROP_REWRITE", first + padding)
