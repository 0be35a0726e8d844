"""Flows of datagrams that have only begun, when two CPUs come to one of them at the same moment.

An answer goes to the pod whose flow has that port, and none is lost; no two flows have one port, nor a flow
a socket's. ``tests/data/begun_race.bpf.c`` does it with what the programs are made of.
"""

from __future__ import annotations

import os
import socket
import struct
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from enum import IntEnum
from ipaddress import ip_interface
from typing import NamedTuple

import pytest

from k8sdatapath import ObjectSpec, compile, maps
from k8sdatapath.net.netlink import Netlink
from k8sdatapath.net.netns import NetNs
from k8sdatapath.objects import Object
from k8sdatapath.tables.begun import BEGUN_PAIRS
from tests.api.graph import ROOT

PORTS = range(5000, 5256)
NODE = "192.0.2.1"
ROUNDS = 16384
CPUS = sorted(os.sched_getaffinity(0))[:2]


class Act(IntEnum):
    """``enum act``."""

    LEAVE_FIRST = 0
    LEAVE_SECOND = 1
    ANSWER = 2
    SETTLE = 3
    ENTER = 4
    REPLACE = 5


class Outcome(NamedTuple):
    """``struct outcome``, and the port that the flow has by itself. Pods are 1 and 2, nobody is 0."""

    left: int
    right: int
    in_table: int
    in_row: int
    port: int

    @property
    def owner(self) -> int:
        """Who gets answers to that port, afterwards."""
        return self.in_table or self.in_row

    @property
    def one(self) -> bool:
        """There is not more than one to whom they could go."""
        return not (self.in_table and self.in_row) or self.in_table == self.in_row


def two_flows(seen: Outcome) -> bool:
    owners = {seen.left: 1, seen.right: 2}
    return (
        bool(seen.left and seen.right) and seen.left != seen.right and owners.get(seen.port, 0) == seen.owner
    )


def one_flow(seen: Outcome) -> bool:
    return bool(seen.left and seen.right) and seen.owner in (0, 1)


def a_flow_and_an_entry(seen: Outcome) -> bool:
    return seen.owner == (1 if seen.left == seen.port else 2 if seen.right else 0) and not (
        seen.left == seen.port and seen.right
    )


def a_socket(seen: Outcome) -> bool:
    return seen.left not in (0, seen.port) and not seen.owner


def answered(seen: Outcome) -> bool:
    return seen.left == seen.owner == 1


def both_answered(seen: Outcome) -> bool:
    return seen.left == seen.right == seen.owner == 1


def goes_on(seen: Outcome) -> bool:
    return (seen.left, seen.owner) == (seen.port, 1)


def goes_on_and_answered(seen: Outcome) -> bool:
    return goes_on(seen) and seen.right == 1


def in_the_way(seen: Outcome) -> bool:
    return seen.left not in (0, seen.port) and seen.owner == 1


def in_the_way_and_answered(seen: Outcome) -> bool:
    return in_the_way(seen) and seen.right == 1


def replaced(seen: Outcome) -> bool:
    """Or not, where the other side was about to settle it; or it was, and is forgotten."""
    return seen.owner == 2 if seen.right == seen.port else bool(seen.right) and seen.owner in (0, 1)


RACES: dict[str, tuple[Act, Act, bool, Callable[[Outcome], bool]]] = {
    "two flows begin": (Act.LEAVE_FIRST, Act.LEAVE_SECOND, False, two_flows),
    "one flow begins twice": (Act.LEAVE_FIRST, Act.LEAVE_FIRST, False, one_flow),
    "one begins, another is entered": (Act.LEAVE_FIRST, Act.ENTER, False, a_flow_and_an_entry),
    "one begins at a socket's port": (Act.LEAVE_FIRST, Act.SETTLE, False, a_socket),
    "one is answered and settled": (Act.ANSWER, Act.SETTLE, True, answered),
    "two answers": (Act.ANSWER, Act.ANSWER, True, both_answered),
    "a second packet, settled": (Act.LEAVE_FIRST, Act.SETTLE, True, goes_on),
    "a second packet and an answer": (Act.LEAVE_FIRST, Act.ANSWER, True, goes_on_and_answered),
    "another's packet, settled": (Act.LEAVE_SECOND, Act.SETTLE, True, in_the_way),
    "another's packet and an answer": (Act.LEAVE_SECOND, Act.ANSWER, True, in_the_way_and_answered),
    "settled twice, and another's": (Act.SETTLE, Act.REPLACE, True, replaced),
}


@pytest.fixture(scope="module")
def spec() -> ObjectSpec:
    compiled = compile(ROOT / "tests/data/begun_race.bpf.c", flags=["-Wextra", "-Werror"])
    return compiled.with_maps(kd_conntrack=1 << 18, kd_begun=BEGUN_PAIRS)


@pytest.fixture(scope="module")
def netns() -> Iterator[NetNs]:
    def wire() -> None:
        with Netlink() as net:
            net.set_up("lo")
            net.add_address("lo", ip_interface(f"{NODE}/32"))

    with NetNs.create(f"kddp-begun-{os.getpid()}") as made:
        made.call(wire)
        yield made


def bound(port: int) -> socket.socket:
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    made.bind((NODE, port))
    return made


def rounds(loaded: Object, netns: NetNs, wanted: int) -> list[Outcome]:
    """What became of so many, or of those that there were in ten seconds."""
    told = loaded.map("outcomes", maps.Array).view().cast("B")

    def run(side: str, cpu: int, mark: int) -> None:
        context = bytearray(192)
        struct.pack_into("=I", context, 8, mark)

        def inside() -> None:
            os.sched_setaffinity(0, {cpu})
            loaded.programs[side].run(bytes(64), ctx=bytes(context))

        netns.call(inside)

    seen: list[Outcome] = []
    deadline, mark = time.monotonic() + 10, 0
    with ThreadPoolExecutor(2) as pool:
        while len(seen) < wanted and time.monotonic() < deadline:
            mark += 4 * ROUNDS
            list(pool.map(run, ("left", "right"), (CPUS[0], CPUS[-1]), (mark, mark)))
            found = struct.iter_unpack("=2H3Bx", told)
            seen += [Outcome(*row[:4], PORTS[at % len(PORTS)]) for at, row in enumerate(found) if row[4]]
            told[:] = bytes(len(told))
    return seen


NOTED = [race for race, acts in RACES.items() if Act.ANSWER in acts]


@pytest.mark.parametrize(
    ("race", "noted"),
    [*((race, False) for race in RACES), *((race, True) for race in NOTED)],
    ids=[*RACES, *(f"{race}, noted" for race in NOTED)],
)
def test_what_two_cpus_make_of_one_flow(spec: ObjectSpec, netns: NetNs, race: str, noted: bool) -> None:
    left, right, prepared, holds = RACES[race]
    config = {"left_act": left, "right_act": right, "prepared": prepared, "noted": noted}
    with ExitStack() as own:
        for port in PORTS if holds is a_socket else ():
            own.enter_context(netns.call(bound, port))
        loaded = own.enter_context(spec.with_config(masquerade=True, **config).load())
        seen = rounds(loaded, netns, 2 * ROUNDS)
    assert len(CPUS) == 1 or len(seen) > ROUNDS
    assert Counter(each for each in seen if not (each.one and holds(each))) == {}
    if holds is one_flow:
        assert sum(each.left != each.right for each in seen) < len(seen) / 100
