"""What is kept of flows that leave under the node's address: begun, answered, half lost."""

from __future__ import annotations

import struct
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Address, ip_address
from itertools import islice

import pytest
from attrs import evolve

from k8sdatapath.datapath.conntrack_table import ConntrackTable
from k8sdatapath.datapath.flow import FlowLosses, Timeouts
from k8sdatapath.datapath.flow_reaper import FlowReaper
from k8sdatapath.net.netns import NetNs
from k8sdatapath.net.packet import fragment, icmp_error, parse, tcp, udp
from k8sdatapath.tables.begun import BEGUN_PAIRS
from k8sdatapath.tables.conntrack import FlowFlags
from tests.packets.uplink import PODS, PODS6, SOURCES, WORLD, Uplink, opened


def test_answers_come_back_also_when_half_of_the_flow_was_lost(uplink: Uplink) -> None:
    for frame, back in (
        (tcp("10.244.1.2", WORLD, 40000, 80, "S"), tcp(WORLD, "192.0.2.1", 80, 40000, "SA")),
        (udp("10.244.1.3", WORLD, 40000, 53), udp(WORLD, "192.0.2.1", 53, 40000)),
    ):
        uplink.send(frame)
        answered = uplink.answer(back)
        assert (answered.dst, answered.dport) == (parse(frame).src, 40000)
        assert answered.checksums_ok
        uplink.send(frame)
        (original,) = [key for key in uplink.flows if key.src == parse(frame).src]
        del uplink.flows[original]
        again = uplink.send(frame)
        assert again is not None
        assert (str(again.src), again.sport) == ("192.0.2.1", 40000)
        assert uplink.answer(back).dst == parse(frame).src


@pytest.mark.parametrize("world", [WORLD, "2001:db8:9::9"])
@pytest.mark.parametrize("build", [tcp, udp])
@pytest.mark.parametrize("begun", [BEGUN_PAIRS, 1], ids=["begun", "in the table"])
def test_a_first_packet_makes_one_entry_and_its_answer_the_other(
    uplink_netns: NetNs, build: Callable[..., bytes], world: str, begun: int
) -> None:
    pod, node = (PODS[0], SOURCES[4]) if world == WORLD else (PODS6[0], SOURCES[6])
    flags = (["S"], ["SA"]) if build is tcp else ([], [])
    with opened(uplink_netns, begun=begun) as uplink:
        assert uplink.passed(build(pod, world, 40000, 80, *flags[0])).sport == 40000
        in_row = begun > 1 and build is udp
        assert (len(uplink.begun), len(uplink.flows)) == ((1, 0) if in_row else (0, 1))
        ((reply, row),) = (uplink.begun or uplink.flows).items()
        assert (str(reply.dst), reply.dport, str(row.to.dst)) == (node, 40000, pod)
        (asked,) = uplink.masquerader.mappings()
        assert (asked.state, asked.packets) == ("opening" if build is tcp else "one-way", 1)
        assert str(uplink.answer(build(world, node, 80, 40000, *flags[1])).dst) == pod
        assert (len(uplink.begun), len(uplink.flows)) == ((1, 0) if in_row else (0, 2))
        (answered,) = uplink.masquerader.mappings()
        assert (answered.state, answered.packets) == ("established" if build is tcp else "answered", 2)
        assert (answered.pod, answered.leaves_as) == (asked.pod, asked.leaves_as)
        assert uplink.passed(build(pod, world, 40000, 80, *(["A"] if flags[0] else []))).sport == 40000
        assert (len(uplink.begun), len(uplink.flows)) == (0, 2)
        (third,) = uplink.masquerader.mappings()
        assert (third.state, third.packets) == (answered.state, 3)
        with ConntrackTable.bind(uplink.loaded) as table:
            assert table.losses() == FlowLosses()


def test_answered_flows_are_settled_whole(uplink: Uplink) -> None:
    for port in 40000, 40001:
        uplink.passed(udp(PODS[0], WORLD, port, 80))
    assert str(uplink.answer(udp(WORLD, SOURCES[4], 80, 40000)).dst) == PODS[0]
    uplink.plan(exclude=[WORLD])  # of others from now on
    assert (len(uplink.begun), len(uplink.flows)) == (0, 4)
    assert {mapping.state for mapping in uplink.masquerader.mappings()} == {"answered", "one-way"}
    for port in 40000, 40001:
        assert str(uplink.passed(udp(PODS[0], WORLD, port, 80)).src) == SOURCES[4]
        assert str(uplink.answer(udp(WORLD, SOURCES[4], 80, port)).dst) == PODS[0]


def test_flows_that_have_only_begun_are_collected_and_flushed_as_all_others(uplink: Uplink) -> None:
    begun = int(time.monotonic())
    for port, pod in enumerate(PODS, 40000):
        uplink.passed(udp(pod, WORLD, port, 80))
    assert (len(uplink.begun), len(uplink.flows)) == (len(PODS), 0)
    assert uplink.masquerader.flush(ip_address(PODS[0])) == 1
    assert (len(uplink.begun), len(uplink.flows)) == (0, len(PODS) - 1)
    assert str(uplink.answer(udp(WORLD, SOURCES[4], 80, 40001)).dst) == PODS[1]
    uplink.passed(udp(PODS[0], WORLD, 41000, 80))
    with ConntrackTable.bind(uplink.loaded, timeouts=Timeouts(one_way=30, answered=90)) as table:
        assert table.stats().entries == len(PODS) + 1
        assert [table.collect(begun + age) for age in (29, 35)] == [0, len(PODS) - 1]
        (left,) = table.flows()
    assert (str(left.client.address), len(uplink.begun)) == (PODS[1], 0)


def place(remote_port: int, port: int) -> int:
    """Where a flow to the world is among those that have begun (``kd_begun_at()``)."""
    low = 2**64 - 1
    hashed = (0xFFFF0000 << 32) | int.from_bytes(IPv4Address(WORLD).packed, "little")
    ports = int.from_bytes(struct.pack(">HH", remote_port, port), "little")
    hashed = ((hashed ^ hashed >> 29) * 0xBF58476D1CE4E5B9 + ports) & low
    hashed = ((hashed ^ hashed >> 32) * 0x94D049BB133111EB) & low
    return hashed >> 40 & BEGUN_PAIRS - 1


def test_flows_that_find_their_place_taken_begin_in_the_table(uplink: Uplink) -> None:
    there = place(80, 40000)
    others = ((remote, port) for remote in range(81, 2000) for port in range(2000, 4000))
    together = [(80, 40000), *islice((ends for ends in others if place(*ends) == there), 3)]
    for remote, port in together:
        assert uplink.passed(udp(PODS[0], WORLD, port, remote)).sport == port
    assert (len(uplink.begun), len(uplink.flows)) == (2, 2)
    for remote, port in together:
        assert uplink.passed(udp(PODS[1], WORLD, port, remote)).sport != port
        answered = uplink.answer(udp(WORLD, SOURCES[4], remote, port))
        assert (str(answered.dst), answered.dport) == (PODS[0], port)
    assert uplink.passed(udp(PODS[2], WORLD, 5000, 53)).sport == 5000
    assert len(uplink.begun) == 1


def test_a_lost_half_does_not_come_back_where_another_flow_has_begun(uplink: Uplink) -> None:
    for frame in udp(PODS[0], WORLD, 40000, 53), udp(PODS[0], WORLD, 40000, 53):
        uplink.passed(frame)
    (reply,) = (key for key, row in uplink.flows.items() if row.flags & FlowFlags.REPLY)
    del uplink.flows[reply]
    uplink.flows.update_many({key: evolve(row, last_seen=1) for key, row in uplink.flows.items()})
    assert uplink.passed(udp(PODS[1], WORLD, 40000, 53)).sport == 40000
    assert list(uplink.begun) == [reply]
    uplink.passed(udp(PODS[0], WORLD, 40000, 53))
    assert (list(uplink.begun), reply in uplink.flows) == ([reply], False)
    assert str(uplink.answer(udp(WORLD, SOURCES[4], 53, 40000)).dst) == PODS[1]


def test_of_flows_that_begin_at_once_no_two_have_the_same_port(uplink: Uplink) -> None:
    """Two CPUs, each with a pod's flows, from the same ports to the same ends."""
    ports = range(2000, 8000)
    frames = [[udp(pod, WORLD, port, 80 + port % 3) for port in ports] for pod in PODS[:2]]
    with ThreadPoolExecutor(len(frames)) as pool:
        sent = list(pool.map(lambda each: uplink.run("to_uplink", each), frames))
    seen = {(out[34:36], out[36:38]) for each in sent for _, out in each}
    assert len(seen) == len(PODS[:2]) * len(ports)
    assert not uplink.begun.keys() & set(uplink.flows)
    for pod, each in zip(PODS, sent, strict=False):
        for _, out in each[::20]:
            left = parse(out)
            back = uplink.answer(udp(WORLD, SOURCES[4], left.dport or 0, left.sport or 0))
            assert str(back.dst) == pod


@pytest.mark.parametrize("second", ["S", "R", ""])
def test_without_an_answer_the_second_packet_makes_the_other_entry(uplink: Uplink, second: str) -> None:
    frames = [tcp(PODS[0], WORLD, 40000, 80, flags) for flags in ("S", second)]
    if not second:
        frames = [udp(PODS[0], WORLD, 40000, 80)] * 2
    assert [str(uplink.passed(frame).src) for frame in frames] == [SOURCES[4]] * 2
    assert len(uplink.flows) == 2
    (mapping,) = uplink.masquerader.mappings()
    assert mapping.packets == 2
    with ConntrackTable.bind(uplink.loaded) as table:
        assert table.losses() == FlowLosses()


def test_a_fragment_that_begins_a_flow_is_followed_by_the_others(uplink: Uplink) -> None:
    pieces = fragment(udp(PODS[0], WORLD, 40000, 80, bytes(2000)), 1000)
    assert [str(uplink.passed(piece).src) for piece in pieces] == [SOURCES[4]] * len(pieces)


def test_a_flow_that_is_not_answered_keeps_its_port_as_long_as_others_would(uplink: Uplink) -> None:
    begun = int(time.monotonic())
    for build in tcp, udp:
        assert uplink.passed(build(PODS[0], WORLD, 40000, 80)).sport == 40000
        assert uplink.passed(build(PODS[1], WORLD, 40000, 80)).sport != 40000
    assert len(uplink.flows) == 6
    with ConntrackTable.bind(uplink.loaded, timeouts=Timeouts(opening=60, one_way=30)) as table:
        assert [table.collect(begun + age) for age in (29, 35, 59, 65)] == [0, 2, 0, 2]
    assert not len(uplink.flows)


def test_an_error_about_a_flow_that_is_not_answered_finds_its_pod(uplink: Uplink) -> None:
    sent = udp(PODS[0], WORLD, 40000, 33434, ttl=1)
    uplink.passed(sent)
    quoted = udp(SOURCES[4], WORLD, 40000, 33434, ttl=1)
    told = uplink.answer(icmp_error("203.0.113.9", SOURCES[4], quoted, (11, 0)))
    assert (str(told.src), str(told.dst)) == ("203.0.113.9", PODS[0])


EXTENSIONS = {"no extension": [], "one": [(0, bytes(6))], "two": [(0, bytes(6)), (60, bytes(14))]}


@pytest.mark.parametrize("extensions", EXTENSIONS.values(), ids=EXTENSIONS)
@pytest.mark.parametrize("size", [1000, 2000], ids=["whole", "in fragments"])
def test_an_error_finds_the_ports_behind_the_extension_headers_of_what_it_quotes(
    uplink: Uplink, extensions: list[tuple[int, bytes]], size: int
) -> None:
    """A pod whose datagrams travel in fragments learns so that these are too big for the way."""
    world, router = "2001:db8:ff::7", "2001:db8:ff::1"

    def sent_by(source: str) -> list[bytes]:
        frame = udp(source, world, 40000, 80, bytes(size), extensions=extensions, checksum=0x1234)
        return fragment(frame, 1200) if size > 1200 else [frame]

    uplink.passed(udp(PODS6[0], world, 40000, 80))
    (first, *later), (seen_by_pod, *_) = sent_by(SOURCES[6]), sent_by(PODS6[0])
    told = uplink.answer(icmp_error(router, SOURCES[6], first, (2, 0), 1100))
    assert (str(told.src), str(told.dst), told.checksums_ok) == (router, PODS6[0], True)
    assert told.payload == seen_by_pod[14:][: len(told.payload)]
    for each in later:  # nobody knows its ports
        assert str(uplink.answer(icmp_error(router, SOURCES[6], each, (2, 0), 1100)).dst) == SOURCES[6]


def test_the_half_of_the_answers_comes_back_within_a_second_when_it_was_lost(uplink: Uplink) -> None:
    """Both are as young as each other to the kernel, so to lose one alone is rare; and it does not last."""
    frame, back = udp(PODS[0], WORLD, 40000, 53), udp(WORLD, SOURCES[4], 53, 40000)
    for each in frame, frame:
        uplink.send(each)
    (reply,) = [key for key in uplink.flows if str(key.src) == WORLD]
    del uplink.flows[reply]
    deadline = time.monotonic() + 10
    while str(uplink.answer(back).dst) != PODS[0]:
        assert time.monotonic() < deadline
        again = uplink.send(frame)
        assert again is not None
        assert (str(again.src), again.sport) == (SOURCES[4], 40000)
        time.sleep(0.05)


def test_mappings_stay_when_services_have_changed(uplink: Uplink) -> None:
    """They are flows of no service, so no change of services ends them."""
    uplink.send(udp(PODS[0], WORLD, 40000, 53))
    with FlowReaper.bind(uplink.loaded) as reaper:
        assert reaper.reap() == 0
    assert len(list(uplink.masquerader.mappings())) == 1
