"""Packets between any two writes of a change: each is judged as before it, or as after it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from ipaddress import ip_address
from itertools import count, pairwise
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from attrs import evolve, frozen
from hypothesis import example, given, settings
from hypothesis import strategies as st

from k8sdatapath import maps
from k8sdatapath.compiler import compile
from k8sdatapath.datapath.policy_oracle import allows
from k8sdatapath.layout import addr, struct, u8, u32
from k8sdatapath.model.policy import (
    ALL_PORTS,
    EVERYBODY,
    Action,
    Block,
    Operator,
    Policy,
    PortMatch,
    Requirement,
    Rule,
    Selector,
    Toward,
)
from k8sdatapath.model.workload import Workload
from k8sdatapath.net.packet import udp
from k8sdatapath.pybpf.maps import KernelMap, MapType
from tests.packets.checkpoint import Checkpoint, checkpoint
from tests.packets.rig import SIZES, Rig

pytestmark = pytest.mark.packets

NODE = "192.0.2.12"
PORTS = (53, 5353)
API = Workload.pod("shop/api", {"app": "api"}, addresses=["10.244.1.3"])
FAR = "10.244.2.2"
FRESH = count(1024)


@struct
class Told:
    identity: u32
    node: u32


class Receiver(Checkpoint):
    """A node that packets come to, by a tunnel whose header says who has sent them, or as they are."""

    @cached_property
    def _told(self) -> maps.Array[Told]:
        return self.rig.loaded.map("told", maps.Array[Told])

    def tell(self, sender: Workload) -> None:
        """Whom the tunnel's header speaks of from now on."""
        self._told[0] = Told(self.identity(sender), int(ip_address(NODE)))

    def arrives(self, frame: bytes, sender: Workload) -> bool:
        if "told" not in self.rig.loaded.map_fds:
            return self.enter(frame).outcome == "PASS"
        self.tell(sender)
        return self.rig.send(frame).outcome == "PASS"


@contextmanager
def receiver(routing: str) -> Iterator[Receiver]:
    if routing == "native":
        with checkpoint() as made:
            made.policy.close()
            with (receiving := Receiver(made.rig)).policy:
                yield receiving
        return
    spec = compile(Path(__file__).parents[1] / "data" / "told.bpf.c")
    with spec.with_config(enforce=True, redirect=False).with_maps(**SIZES).load() as loaded:
        loaded.map("kd_peer_nodes", maps.Hash[addr, u8])[ip_address(NODE)] = 1
        with (receiving := Receiver(Rig(loaded, "from_overlay"))).policy:
            yield receiving


@contextmanager
def between_writes(look: Callable[[], None]) -> Iterator[None]:
    """Write one element at a time, those of arrays word by word as the kernel does, and look after each."""
    looking = False

    def seen(result: Any) -> Any:
        nonlocal looking
        if not looking:
            looking = True
            try:
                look()
            finally:
                looking = False
        return result

    def pieces(data: Any, size: int, number: int) -> list[bytes]:
        raw = bytes(data)
        return [raw[at * size : (at + 1) * size] for at in range(number)]

    def words(table: KernelMap, key: bytes, row: bytes) -> Iterator[bytes]:
        """All that a row is before it is whole."""
        before = table.lookup(key) if table.info.type == MapType.ARRAY else None
        if before is not None:
            ends = (at for at in range(4, len(row), 4) if before[at - 4 : at] != row[at - 4 : at])
            yield from (row[:end] + before[end:] for end in ends)
        yield row

    update, delete = KernelMap.update, KernelMap.delete
    update_many, delete_many = KernelMap.update_many, KernelMap.delete_many

    def updates(self: KernelMap, keys: Any, values: Any, number: int, flags: int = 0) -> tuple[int, int]:
        rows = zip(
            pieces(keys, self.info.key_size, number), pieces(values, self.info.stride, number), strict=True
        )
        for done, (key, row) in enumerate(rows):
            for written in words(self, key, row):
                error, _ = seen(update_many(self, key, written, 1, flags))
                if error:
                    return error, done
        return 0, number

    def deletes(self: KernelMap, keys: Any, number: int) -> int:
        return sum(seen(delete_many(self, key, 1)) for key in pieces(keys, self.info.key_size, number))

    with (
        patch.object(KernelMap, "update", lambda *given: seen(update(*given))),
        patch.object(KernelMap, "delete", lambda *given: seen(delete(*given))),
        patch.object(KernelMap, "update_many", updates),
        patch.object(KernelMap, "delete_many", deletes),
    ):
        yield


def far(**labels: str) -> Workload:
    return Workload.pod("shop/far", labels, addresses=[FAR])


@frozen
class World:
    """What the node is told: policies, and who is at the other node's address."""

    policies: tuple[Policy, ...]
    peer: Workload

    def allows(self, sender: Workload, port: int) -> bool:
        return allows(self.policies, sender, API, port, 17)


class Traffic:
    """Datagrams to a pod of the node, from who is at the address before a change and after."""

    def __init__(self, node: Receiver, before: World, after: World) -> None:
        self.node, self.before, self.after = node, before, after
        self.tunnelled = "told" in node.rig.loaded.map_fds
        self.wrong: list[str] = []

    def look(self, *worlds: World) -> None:
        """Each is judged as in one of these worlds: through a tunnel as who has sent it, else as who is
        there.

        Whom the node knows no more, or not yet, may be denied though the header says who it is.
        """
        worlds = worlds or (self.before, self.after)
        for sender in {self.before.peer, self.after.peer}:
            known = not self.tunnelled or all(world.peer == sender for world in worlds)
            for port in PORTS:
                passes = self.node.arrives(
                    udp(FAR, str(API.addresses[0]), 1024 + next(FRESH) % 60000, port, b"?"), sender
                )
                said = {world.allows(sender if self.tunnelled else world.peer, port) for world in worlds}
                if passes not in said and (passes or known):
                    self.wrong.append(f"{sender.labels} {'passed' if passes else 'was denied'} at {port}")


def selects(**labels: str) -> Selector:
    return Selector([Requirement(f"k8s:{key}", Operator.IN, [value]) for key, value in labels.items()])


def policy(name: str, *rules: tuple[Any, PortMatch, Action]) -> Policy:
    made = [
        Rule(str(at), Toward.INGRESS, [peer], [port], action) for at, (peer, port, action) in enumerate(rules)
    ]
    return Policy(name, selects(app="api"), made, {Toward.INGRESS})


NARROW = PortMatch(17, 5300, 5399)
EVIL_IS_KEPT_OUT = policy(
    "deny", (selects(tier="evil"), NARROW, Action.DENY), (EVERYBODY, ALL_PORTS, Action.ALLOW)
)
WEB_BUT_NOT_EVIL = policy(
    "web", (selects(app="web"), ALL_PORTS, Action.ALLOW), (selects(tier="evil"), NARROW, Action.DENY)
)
NETWORK_IS_KEPT_OUT = policy(
    "net", (selects(app="web"), ALL_PORTS, Action.ALLOW), (Block("10.244.2.0/24"), NARROW, Action.DENY)
)
ONLY_WEB = policy("web", (selects(app="web"), ALL_PORTS, Action.ALLOW))
ONLY_WEB_AT_SOME_PORTS = policy("web", (selects(app="web"), NARROW, Action.ALLOW))
ONLY_DB = policy("deny", (selects(app="db"), ALL_PORTS, Action.ALLOW))
ONE = far(app="web", tier="evil", n="1")
OTHER = far(app="web", tier="evil", n="2")

peers = st.one_of(
    st.just(EVERYBODY),
    st.builds(selects, app=st.sampled_from(("web", "db"))),
    st.builds(selects, tier=st.sampled_from(("evil", "good"))),
    st.builds(Block, st.sampled_from(("10.244.2.0/24", "10.244.2.2/32", "0.0.0.0/0"))),
)
rules = st.tuples(peers, st.sampled_from((ALL_PORTS, NARROW)), st.sampled_from((Action.ALLOW, Action.DENY)))
policies = st.lists(
    st.builds(lambda name, rules: policy(name, *rules), st.sampled_from("ab"), st.lists(rules, max_size=3)),
    max_size=2,
    unique_by=lambda each: each.name,
).map(tuple)
fars = st.builds(
    far, app=st.sampled_from(("web", "db")), tier=st.sampled_from(("evil", "good")), n=st.sampled_from("12")
)


@pytest.fixture(scope="module", params=["native", "vxlan"])
def node(request: pytest.FixtureRequest) -> Iterator[Receiver]:
    with receiver(request.param) as made:
        made.attach(API)
        yield made


@settings(max_examples=5)
@given(policies, policies, fars, fars)
@example((EVIL_IS_KEPT_OUT,), (EVIL_IS_KEPT_OUT,), ONE, OTHER)
@example((WEB_BUT_NOT_EVIL,), (WEB_BUT_NOT_EVIL,), ONE, OTHER)
@example((NETWORK_IS_KEPT_OUT,), (NETWORK_IS_KEPT_OUT,), ONE, OTHER)
@example((WEB_BUT_NOT_EVIL,), (NETWORK_IS_KEPT_OUT,), ONE, ONE)
@example((ONLY_WEB,), (ONLY_WEB_AT_SOME_PORTS,), ONE, ONE)
@example((ONLY_DB,), (EVIL_IS_KEPT_OUT,), ONE, ONE)
def test_a_change_is_felt_whole_or_not_at_all(
    node: Receiver, before: tuple[Policy, ...], after: tuple[Policy, ...], one: Workload, other: Workload
) -> None:
    one, other = (evolve(each, name="shop/far") for each in (one, other))
    worlds = [World((), one), World(before, one), World(before, other), World(after, other)]
    changes: list[Callable[[], object]] = [
        lambda: node.policy.apply(before),
        lambda: node.learn(other),
        lambda: node.policy.apply(after),
    ]
    node.policy.apply(())
    node.learn(one)
    for (first, then), change in zip(pairwise(worlds), changes, strict=True):
        traffic = Traffic(node, first, then)
        traffic.look(first)
        with between_writes(traffic.look):
            change()
        traffic.look(then)
        assert not traffic.wrong, (Counter(traffic.wrong), first, then)
