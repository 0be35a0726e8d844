"""A node with all its programs over one set of maps: pods, an uplink, and the world behind it."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property
from ipaddress import ip_address, ip_interface, ip_network
from typing import Final, TypeVar

from attrs import define

from k8sdatapath import maps
from k8sdatapath.datapath.service_table import ServiceTable
from k8sdatapath.layout import addr
from k8sdatapath.net.netlink import Netlink, set_sysctl
from k8sdatapath.net.netns import NetNs
from k8sdatapath.objects import Object, ObjectSpec
from k8sdatapath.programs import TC, XDP
from k8sdatapath.programs.base import Program, device_index
from k8sdatapath.tables.affinity import AffinityKey, AffinityRow
from k8sdatapath.tables.backends import BackendRow
from k8sdatapath.tables.conntrack import ConntrackRow, Tuple
from k8sdatapath.tables.counters import CounterRow, Outcome, outcomes, read_counters
from k8sdatapath.tables.endpoints import EndpointRow
from k8sdatapath.tables.peers import PeerKey, PeerRow
from tests.packets.rig import HOST_MAC, POD_MAC, SIZES
from tests.packets.world import V4, V6

T = TypeVar("T")
OURS: Final = "02:00:00:00:02:01"
NEXT_HOP: Final = "02:00:00:00:02:02"
UPLINK: Final = {4: "192.0.2.1", 6: "2001:db8:1::1"}
XDP_IN: Final = "xdp_in"


@define
class Station:
    """One node. All frames are as seen at its uplink: to :data:`OURS`, from :data:`NEXT_HOP`.

    :ivar entries: every program that packets enter by.
    :ivar inside: all that happens now happens in its namespace.
    """

    netns: NetNs
    index: int
    pod: Object
    host: Object
    early: Object
    overlay: Object
    services: ServiceTable
    inside: bool = False

    @property
    def entries(self) -> tuple[str, ...]:
        return (*(name for loaded in self._at_tc for name in loaded.spec.programs), XDP_IN)

    @property
    def _at_tc(self) -> tuple[Object, ...]:
        return self.pod, self.host, self.overlay

    def run_many(self, entry: str, frames: Sequence[bytes]) -> list[tuple[int, bytes]]:
        if entry == XDP_IN:
            contexts = [struct.pack("=6I", 0, len(frame), 0, self.index, 0, 0) for frame in frames]
            return self._run(self.early.program(entry, XDP), frames, contexts)
        (loaded,) = (each for each in self._at_tc if entry in each.spec.programs)
        context = bytearray(192)
        struct.pack_into("=I", context, 40, self.index)
        return self._run(loaded.program(entry, TC), frames, [bytes(context)] * len(frames))

    def _run(
        self, program: Program, frames: Sequence[bytes], contexts: list[bytes]
    ) -> list[tuple[int, bytes]]:
        if self.inside:
            return program.run_many(frames, ctxs=contexts)
        return self.netns.call(program.run_many, frames, ctxs=contexts)

    def call(self, function: Callable[[], T]) -> T:
        """Run a function on the node: packets that it sends need not go there one by one."""
        self.inside = True
        try:
            return self.netns.call(function)
        finally:
            self.inside = False

    @cached_property
    def flows(self) -> maps.LRUHash[Tuple, ConntrackRow]:
        return self.host.map("kd_conntrack", maps.LRUHash[Tuple, ConntrackRow])

    @cached_property
    def pins(self) -> maps.LRUHash[AffinityKey, AffinityRow]:
        return self.host.map("kd_affinity", maps.LRUHash[AffinityKey, AffinityRow])

    @cached_property
    def backends(self) -> maps.Array[BackendRow]:
        return self.host.map("kd_backends", maps.Array[BackendRow])

    @cached_property
    def _counters(self) -> maps.PerCpuArray[CounterRow]:
        return self.host.map("kd_counters", maps.PerCpuArray[CounterRow])

    @cached_property
    def _outcomes(self) -> tuple[Outcome, ...]:
        return outcomes(self.host.spec.btf)

    def add_pod(self, address: str) -> None:
        pods = self.host.map("kd_endpoints", maps.Hash[addr, EndpointRow])
        pods[ip_address(address)] = EndpointRow(1, 0, POD_MAC, HOST_MAC)

    def add_peer(self, address: str, node: str) -> None:
        """Make an address one of a pod of another node."""
        peers = self.overlay.map("kd_peers", maps.LPMTrie[PeerKey, PeerRow])
        peers[PeerKey.of(ip_network(address))] = PeerRow(ip_address(node))

    def read_counters(self) -> dict[str, int]:
        counters = read_counters(self._counters, self._outcomes)
        return {name: counter.packets for name, counter in counters.items()}


def _wire() -> int:
    for name in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
        set_sysctl(name, 1)
    with Netlink() as net:
        net.set_up("lo")
        net.create_veth("up0", "far", mac=OURS)
        net.set_up("far")
        for world, mask, router in ((V4, "/24", "192.0.2.2"), (V6, "/64", "2001:db8:1::2")):
            net.add_address("up0", ip_interface(UPLINK[4 if world is V4 else 6] + mask))
            net.add_neighbour("up0", ip_address(router), NEXT_HOP)
            everything = ip_network("0.0.0.0/0" if world is V4 else "::/0")
            net.add_route(everything, via=ip_address(router))
        net.wait_up("up0")
    return device_index("up0")


@contextmanager
def station(**config: int) -> Iterator[Station]:
    """A node without services or pods."""
    with ExitStack() as own:
        netns = own.enter_context(NetNs.create(f"kdst-{os.getpid()}"))
        index = netns.call(_wire)
        specs = {name: ObjectSpec.from_file(name) for name in ("pod", "host", "xdp", "overlay")}
        pod = own.enter_context(specs["pod"].with_config(**config).with_maps(**SIZES).load())
        host = own.enter_context(specs["host"].with_config(**config).load(reuse=pod.maps))
        known = {name: value for name, value in config.items() if name in specs["xdp"].config}
        early = own.enter_context(specs["xdp"].with_config(**known).load(reuse=host.maps))
        overlay = own.enter_context(specs["overlay"].load(reuse=host.maps))
        services = own.enter_context(ServiceTable.bind(host))
        own.enter_context(early.program(XDP_IN, XDP).attach("up0", netns=netns))
        yield Station(netns, index, pod, host, early, overlay, services)
