"""A flow is two entries or none, also where the table has room for the first of them only.

A flow table makes room by itself, so there is one in its place here that does not.
"""

from __future__ import annotations

import struct
from contextlib import ExitStack
from functools import partial
from ipaddress import ip_address
from unittest.mock import patch

import pytest

from k8sdatapath import maps
from k8sdatapath.datapath.service_table import ServiceTable
from k8sdatapath.layout import addr, u32
from k8sdatapath.net.netns import NetNs
from k8sdatapath.net.packet import tcp
from k8sdatapath.objects import ObjectSpec
from k8sdatapath.programs import TC
from k8sdatapath.tables.conntrack import ConntrackRow, FlowFlags, Tuple
from k8sdatapath.tables.counters import CounterRow, outcomes, read_counters
from k8sdatapath.tables.endpoints import EndpointRow
from k8sdatapath.tables.masquerade import MasqDeviceRow
from k8sdatapath.tables.moving import Step
from tests.packets.rig import HOST_MAC, POD_MAC, SIZES
from tests.packets.world import TCP, WORLDS, World

LOOPBACK = 1  # the device at which all happens
FLOWS = {
    "a pod to the world": ("to_uplink", "client", "stranger", "A", ("TO_STACK", "DROP_NO_MEMORY")),
    "the world to a pod": ("from_uplink", "stranger", "client", "S", ("PASS", "PASS")),
    "a pod to a service": ("from_pod", "client", "service", "S", ("TO_STACK", "DROP_NO_MEMORY")),
}


class Narrow:
    """A program whose flow table takes so many entries and no more; or that to which flows move."""

    def __init__(self, room: int, entry: str, step: Step | None, netns: NetNs, own: ExitStack) -> None:
        self._entry, self._netns = entry, netns
        self._table = own.enter_context(maps.Hash[Tuple, ConntrackRow].create("narrow", room))
        spec = ObjectSpec.from_file("pod" if entry == "from_pod" else "host").with_maps(**SIZES)
        spec = spec.with_config(masquerade=True, redirect=False, moving=step is not None)
        reused = {"kd_conntrack" if step is None else "kd_conntrack_to": self._table}
        with patch.object(ObjectSpec, "check_map"):  # which would not have it
            self._loaded = own.enter_context(spec.load(reuse=reused))
        if step is not None:
            self._loaded.map("kd_moving", maps.Array[u32])[0] = step
        pods = self._loaded.map("kd_endpoints", maps.Hash[addr, EndpointRow])
        row = EndpointRow(1, 0, POD_MAC, HOST_MAC)
        pods.update_many({ip_address(w.address("client")): row for w in WORLDS})
        device = MasqDeviceRow.of(tuple(ip_address(w.address("uplink")) for w in WORLDS))
        self._loaded.map("kd_masq_devices", maps.Hash[u32, MasqDeviceRow])[LOOPBACK] = device
        with ServiceTable.bind(self._loaded) as services:
            services.upsert(*(w.service("service", TCP, ["one"]) for w in WORLDS))

    def send(self, frame: bytes) -> str:
        """What becomes of a packet."""
        context = bytearray(192)
        struct.pack_into("=2I", context, 36, LOOPBACK, LOOPBACK)
        before = self._counted()
        program = self._loaded.program(self._entry, TC)
        self._netns.call(partial(program.run, frame, ctx=bytes(context)))
        (outcome,) = (name for name, packets in self._counted().items() if before.get(name) != packets)
        return outcome

    def _counted(self) -> dict[str, int]:
        counters = self._loaded.map("kd_counters", maps.PerCpuArray[CounterRow])
        found = read_counters(counters, outcomes(self._loaded.spec.btf))
        return {name: each.packets for name, each in found.items()}

    @property
    def flows(self) -> dict[Tuple, ConntrackRow]:
        """What counts: while tables move, what was removed may be there with a mark."""
        return {key: row for key, row in self._table.items() if not row.flags & FlowFlags.GONE}

    @property
    def left_behind(self) -> set[Tuple]:
        """What the table has that flows move from."""
        return set(self._loaded.map("kd_conntrack", maps.LRUHash[Tuple, ConntrackRow]))


@pytest.mark.parametrize("step", [None, Step.BOTH, Step.TAKING, Step.NEW])
@pytest.mark.parametrize("flow", FLOWS)
@pytest.mark.parametrize("world", WORLDS, ids=lambda world: world.name)
def test_a_flow_whose_second_half_finds_no_room_leaves_none(
    empty_netns: NetNs, world: World, flow: str, step: Step | None
) -> None:
    entry, src, dst, flags, (made, refused) = FLOWS[flow]
    frames = [
        tcp(world.address(src), world.address(dst), port, world[dst][1], flags) for port in (40000, 40001)
    ]
    with ExitStack() as own:
        narrow = Narrow(3, entry, step, empty_netns, own)
        assert narrow.send(frames[0]) == made
        first = narrow.flows
        (one, its), (other, answers) = first.items()
        assert (its.to.src, its.to.dport, answers.to.src) == (other.dst, other.sport, one.dst)
        assert narrow.send(frames[1]) == refused
        assert narrow.flows == first
        if step is not None:
            assert narrow.left_behind == (set(first) if step is Step.BOTH else set())
