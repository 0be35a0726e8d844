"""A production program with maps of its own: services in, packets through, and what became of each."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address

from attrs import evolve, frozen

from k8sdatapath import maps, programs
from k8sdatapath.datapath.service_table import ServiceTable
from k8sdatapath.layout import addr
from k8sdatapath.net.netns import NetNs
from k8sdatapath.net.packet import Packet, parse
from k8sdatapath.objects import ConfigValue, Object, ObjectSpec
from k8sdatapath.programs.base import in_netns
from k8sdatapath.tables.affinity import AffinityKey, AffinityRow
from k8sdatapath.tables.conntrack import ConntrackRow, Tuple
from k8sdatapath.tables.counters import Counter, CounterRow, outcomes, read_counters
from k8sdatapath.tables.endpoints import EndpointRow

POD_MAC, HOST_MAC = "02:00:00:00:00:0a", "02:00:00:00:00:0b"
SIZES = {
    "kd_frontends": 64,
    "kd_sets": 192,
    "kd_slots": 1024,
    "kd_backends": 1024,
    "kd_conntrack": 65536,
    "kd_talks": 4096,
    "kd_connections": 4096,
    "kd_names": 4096,
}

#: What a tc program answers for each outcome that is not a drop.
ACTIONS = {
    "PASS": 0xFFFFFFFF,
    "TO_STACK": 0xFFFFFFFF,
    "TO_POD": 7,
    "TO_DEVICE": 7,
    "REJECT_NO_BACKEND": 7,
    "REJECT_NO_SERVICE": 7,
    "REJECT_DENIED": 7,
    "REJECT_NAME": 7,
    "ECHO": 7,
}
SHOT = 2


@frozen
class Sent:
    """What became of a packet: the program's own word for it, and the frame that it left."""

    outcome: str
    frame: bytes

    @property
    def packet(self) -> Packet:
        return parse(self.frame)


class Rig:
    """One loaded object and its tables.

    :ivar services: the service table over the object's maps.
    :ivar flows: kd_conntrack.
    """

    def __init__(self, loaded: Object, entry: str) -> None:
        self.loaded = loaded
        self._entry = entry
        self._known = outcomes(loaded.spec.btf)
        self._counters = loaded.map("kd_counters", maps.PerCpuArray[CounterRow])
        self._pods = loaded.map("kd_endpoints", maps.Hash[addr, EndpointRow])
        self.services = ServiceTable.bind(loaded)
        self.flows = loaded.map("kd_conntrack", maps.LRUHash[Tuple, ConntrackRow])

    def add_pod(self, address: str) -> None:
        """Make an address one of a pod of this node."""
        self._pods[ip_address(address)] = EndpointRow(1, 0, POD_MAC, HOST_MAC)

    def send(
        self, frame: bytes, *, via: str = "", netns: NetNs | None = None, ctx: bytes | None = None
    ) -> Sent:
        """Run a packet through the entry, or the one named by ``via``; ``ctx`` says where it is met."""
        program = self.loaded.program(via or self._entry, programs.TC)
        before = self.read_counters()
        result = in_netns(netns, lambda: program.run(frame, ctx=ctx))
        (outcome,) = (name for name, count in self.read_counters().items() if count != before.get(name))
        assert result.retval == ACTIONS.get(outcome, SHOT), f"{outcome} answered {result.retval}"
        return Sent(outcome, result.data)

    def read_counters(self) -> dict[str, Counter]:
        return read_counters(self._counters, self._known)

    def let_time_pass(self) -> None:
        """No flow has been seen in this second, nor in many before."""
        self.flows.update_many({key: evolve(row, last_seen=1) for key, row in self.flows.items()})


def let_clients_wait(loaded: Object, seconds: int) -> None:
    """Time passes for all clients with affinity."""
    pins = loaded.map("kd_affinity", maps.LRUHash[AffinityKey, AffinityRow])
    pins.update_many({key: evolve(pin, last_seen=pin.last_seen - seconds) for key, pin in pins.items()})


@contextmanager
def one_cpu() -> Iterator[None]:
    """Each has room for events, and a rate, of its own."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


@contextmanager
def rig(entry: str = "from_pod", **config: ConfigValue) -> Iterator[Rig]:
    spec = ObjectSpec.from_file("host" if entry == "from_uplink" else "pod")
    with spec.with_config(**config).with_maps(**SIZES).load() as loaded:
        made = Rig(loaded, entry)
        with made.services:
            yield made
