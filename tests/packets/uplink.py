"""An uplink of a node whose pods leave under its addresses: its programs by themselves."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from ipaddress import ip_address

from k8sdatapath import maps
from k8sdatapath.datapath.masquerader import Masquerader
from k8sdatapath.layout import addr
from k8sdatapath.model import Masquerade
from k8sdatapath.net.netlink import Netlink
from k8sdatapath.net.netns import NetNs
from k8sdatapath.net.packet import Packet, parse
from k8sdatapath.objects import ObjectSpec
from k8sdatapath.programs import TC
from k8sdatapath.programs.base import device_index
from k8sdatapath.tables.begun import BEGUN_PAIRS, BegunPair, held
from k8sdatapath.tables.conntrack import ConntrackRow, Tuple
from k8sdatapath.tables.counters import CounterRow, outcomes, read_counters
from k8sdatapath.tables.endpoints import EndpointRow
from tests.packets.rig import HOST_MAC, POD_MAC

PODS = [f"10.244.1.{number}" for number in range(2, 6)]
PODS6 = ["fd00:244:1::2"]
SOURCES = {4: "192.0.2.1", 6: "2001:db8:1::1"}
WORLD = "198.51.100.7"
OURS = "02:00:00:00:02:01"
EXCLUDED = ["10.0.0.0/8", "fd00::/8"]


class Uplink:
    """Programs of an uplink by themselves; what pods send has come in through another device."""

    def __init__(self, netns: NetNs, own: ExitStack, begun: int = BEGUN_PAIRS, **config: int) -> None:
        self.netns = netns
        self.index = netns.call(device_index, "up0")
        spec = ObjectSpec.from_file("host").with_maps(kd_conntrack=1 << 18, kd_begun=begun)
        self.loaded = own.enter_context(spec.with_config(masquerade=True, redirect=False, **config).load())
        self.masquerader = own.enter_context(Masquerader.bind(self.loaded, netns=netns))
        pods = self.loaded.map("kd_endpoints", maps.Hash[addr, EndpointRow])
        pods.update_many({ip_address(pod): EndpointRow(1, 0, POD_MAC, HOST_MAC) for pod in (*PODS, *PODS6)})
        self.flows = self.loaded.map("kd_conntrack", maps.LRUHash[Tuple, ConntrackRow])
        self._begun = self.loaded.map("kd_begun", maps.Array[BegunPair])
        self.plan()

    @property
    def begun(self) -> dict[Tuple, ConntrackRow]:
        """Flows of which there is one packet, and nothing in the table of flows."""
        return dict(row.entry for row in held(self._begun.view()))

    def plan(self, **options: object) -> None:
        wanted = {"exclude": EXCLUDED, "sources": {"up0": SOURCES.values()}} | options
        self.masquerader.plan(Masquerade(devices="up0", **wanted)).apply()  # type: ignore[arg-type]

    def run(self, entry: str, frames: Sequence[bytes], came_in: int = 1) -> list[tuple[int, bytes]]:
        context = bytearray(192)
        struct.pack_into("=2I", context, 36, came_in, self.index)
        program = self.loaded.program(entry, TC)
        return self.netns.call(program.run_many, frames, ctxs=[bytes(context)] * len(frames))

    def send(self, frame: bytes) -> Packet | None:
        """What becomes of a packet on its way out; None if it is dropped."""
        ((answer, out),) = self.run("to_uplink", [frame])
        assert answer in (2, 0xFFFFFFFF)
        return None if answer == 2 else parse(out)

    def passed(self, frame: bytes) -> Packet:
        """A packet on its way out that is not dropped."""
        sent = self.send(frame)
        assert sent is not None
        return sent

    def answer(self, frame: bytes) -> Packet:
        ((answer, out),) = self.run("from_uplink", [bytes.fromhex(OURS.replace(":", "")) + frame[6:]])
        assert answer == 0xFFFFFFFF
        return parse(out)

    def count(self, outcome: str) -> int:
        table = self.loaded.map("kd_counters", maps.PerCpuArray[CounterRow])
        found = read_counters(table, outcomes(self.loaded.spec.btf)).get(outcome)
        return found.packets if found else 0


@contextmanager
def uplink_netns() -> Iterator[NetNs]:
    """A namespace with an uplink, and a device behind it."""

    def wire() -> None:
        with Netlink() as net:
            net.set_up("lo")
            net.create_veth("up0", "far", mac=OURS)
            net.set_up("far")
            net.set_up("up0")

    with NetNs.create(f"kddp-masq-{os.getpid()}") as made:
        made.call(wire)
        yield made


@contextmanager
def opened(netns: NetNs, **config: int) -> Iterator[Uplink]:
    with ExitStack() as own:
        yield Uplink(netns, own, **config)
