"""A pod comes to an address after policies were asked about who was there, before the packet is delivered."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from pathlib import Path

import pytest
from attrs import evolve

from k8sdatapath import maps
from k8sdatapath.compiler import compile
from k8sdatapath.layout import addr, u8
from k8sdatapath.model.service import Backend, Service
from k8sdatapath.net.packet import udp
from k8sdatapath.tables.endpoints import EndpointRow
from tests.packets.checkpoint import ELSEWHERE, Checkpoint
from tests.packets.rig import HOST_MAC, POD_MAC, SIZES, Rig
from tests.packets.shop import API, FAR, WEB
from tests.packets.test_policy_steps import NODE, Receiver

pytestmark = pytest.mark.packets

FAMILIES = pytest.mark.parametrize("family", [0, 1], ids=["IPv4", "IPv6"])
SERVICE = "10.96.0.1", "fd00:10:96::1"
DEVICE = 7
COMES = EndpointRow(DEVICE, 999, POD_MAC, HOST_MAC, 0)


@contextmanager
def loaded(name: str, entry: str) -> Iterator[Rig]:
    spec = compile(Path(__file__).parents[1] / "data" / f"{name}.bpf.c")
    with spec.with_config(enforce=True).with_maps(**SIZES).load() as made:
        rig = Rig(made, entry)
        with rig.services:
            yield rig


@pytest.fixture(scope="module")
def near() -> Iterator[Checkpoint]:
    """A node, whose pod dials a service on it."""
    with loaded("arrives", "from_pod") as rig, (node := Checkpoint(rig)).policy:
        node.attach(WEB)
        for vip, server in zip(SERVICE, API.addresses, strict=True):
            rig.services.upsert(Service(vip, 53, "UDP", backends=[Backend(str(server), 5353)]))
        yield node


@pytest.fixture(scope="module")
def far() -> Iterator[Receiver]:
    """A node that packets come to through a tunnel."""
    with loaded("told", "from_overlay") as rig:
        rig.loaded.map("kd_peer_nodes", maps.Hash[addr, u8])[ip_address(NODE)] = 1
        with (node := Receiver(rig)).policy:
            node.learn(FAR)
            yield node


@contextmanager
def coming(node: Checkpoint, family: int, row: EndpointRow = COMES) -> Iterator[None]:
    arrives = node.rig.loaded.map("arrives", maps.Hash[addr, EndpointRow])
    pods = node.rig.loaded.map("kd_endpoints", maps.Hash[addr, EndpointRow])
    address = API.addresses[family]
    before = pods.get(address)
    arrives[address] = row
    try:
        yield
        assert pods[address] == row
    finally:
        del arrives[address]
        pods.delete_many([address])
        if before is not None:
            pods[address] = before


@FAMILIES
@pytest.mark.parametrize("before", ["nobody", "somebody else"])
def test_what_a_pod_sends_is_not_delivered_to_who_comes_meanwhile(
    near: Checkpoint, family: int, before: str
) -> None:
    """The node's stack leads there, and who has come is asked at its device."""
    client = str(WEB.addresses[family])
    if before == "somebody else":
        near.attach(API)
        assert near.leave(udp(client, SERVICE[family], 1024, 53, b"?"), client).outcome == "TO_POD"
    with coming(near, family):
        sent = near.leave(udp(client, SERVICE[family], 1025, 53, b"?"), client)
        assert sent.outcome == "TO_STACK"
        assert near.enter(sent.frame).outcome == "DROP_POLICY_DENIED"
    near.drop(API)


@FAMILIES
@pytest.mark.parametrize("before", ["nobody", "somebody else"])
def test_what_a_tunnel_brings_is_dropped_if_somebody_comes_meanwhile(
    far: Receiver, family: int, before: str
) -> None:
    """At a device nobody knows any more what the tunnel has said."""
    if before == "somebody else":
        far.attach(API)
        assert outcome(far, family, 1024) == "TO_POD"
    with coming(far, family):
        assert outcome(far, family, 1025) == "DROP_POLICY_DENIED"
    far.drop(API)


@FAMILIES
def test_other_labels_change_nothing_for_what_was_asked_before(far: Receiver, family: int) -> None:
    far.attach(API)
    with coming(far, family, evolve(COMES, ifindex=ELSEWHERE)):
        assert outcome(far, family, 1026) == "TO_POD"
    far.drop(API)


def outcome(node: Receiver, family: int, port: int) -> str:
    client, server = (str(each.addresses[family]) for each in (FAR, API))
    node.tell(FAR)
    return node.rig.send(udp(client, server, port, 5353, b"?")).outcome
