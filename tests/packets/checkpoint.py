"""Pods under policy, and packets between them: out of one, and into another, as the programs judge."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from ipaddress import ip_address

from k8sdatapath import maps
from k8sdatapath.datapath.dns_rules import NameSets
from k8sdatapath.datapath.identity_policy import IdentityPolicy
from k8sdatapath.layout import addr
from k8sdatapath.model import IPAddress
from k8sdatapath.model.workload import Workload
from k8sdatapath.objects import ConfigValue
from k8sdatapath.tables.conntrack import Tuple
from k8sdatapath.tables.endpoints import EndpointRow
from k8sdatapath.tables.policy import PolicyRow, TalkRow
from tests.packets.rig import HOST_MAC, POD_MAC, Rig, Sent, rig

HERE, ELSEWHERE, UPLINK = 1, 2, 3  # devices: of the pod that acts, of all others, towards other nodes
_PASSED = ("PASS", "TO_STACK", "TO_POD", "TO_DEVICE", "ECHO")


class Checkpoint:
    """A node's programs, and its pods.

    :ivar policy: what they enforce.
    :ivar talks: what was allowed.
    """

    def __init__(
        self, datapath: Rig, names: NameSets | None = None, identities: Mapping[tuple[str, ...], int] = {}
    ) -> None:
        self.rig = datapath
        self.policy = IdentityPolicy.bind(datapath.loaded, names=names)
        self.talks = datapath.loaded.map("kd_talks", maps.LRUHash[Tuple, TalkRow])
        self._pods = datapath.loaded.map("kd_endpoints", maps.Hash[addr, EndpointRow])
        self.identities = dict(identities)

    def identity(self, workload: Workload) -> int:
        return self.identities.setdefault(workload.labels, 300 + len(self.identities))

    def attach(self, *pods: Workload) -> None:
        for pod in pods:
            number = self.policy.attach(pod, self.identity(pod))
            row = EndpointRow(ELSEWHERE, self.identity(pod), POD_MAC, HOST_MAC, number)
            self._pods.update_many(dict.fromkeys(pod.addresses, row))

    def learn(self, *others: Workload) -> None:
        self.policy.learn({each: self.identity(each) for each in others})

    def drop(self, pod: Workload) -> None:
        self._pods.delete_many(pod.addresses)
        self.policy.detach(pod.addresses)

    def policies(self) -> int:
        """How many there are in the kernel."""
        rows = self.rig.loaded.map("kd_policies", maps.Array[PolicyRow])
        return sum(1 for row in rows if row.table) // 2

    def leave(self, frame: bytes, source: str | IPAddress) -> Sent:
        """A packet comes from a pod."""
        with self.acting(source):
            return self.rig.send(frame, via="from_pod")

    @contextmanager
    def acting(self, source: str | IPAddress) -> Iterator[None]:
        """It is this pod whose device the programs run at."""
        address = ip_address(source)
        row = self._pods[address]
        self._pods[address] = EndpointRow(HERE, row.identity, row.pod_mac, row.host_mac, row.policy)
        try:
            yield
        finally:
            self._pods[address] = row

    def enter(self, frame: bytes, *, came_through: int = UPLINK) -> Sent:
        """The stack sends a packet to a pod."""
        return self.rig.send(frame, via="to_pod", ctx=context(came_through))

    def passes(self, frame: bytes, source: str | IPAddress, destination: str | IPAddress) -> bool:
        """Whether a packet that no service changes gets to its other end, as far as both are here."""
        if ip_address(source) in self._pods and self.leave(frame, source).outcome not in _PASSED:
            return False
        return ip_address(destination) not in self._pods or self.enter(frame).outcome in _PASSED


def context(came_through: int) -> bytes:
    """A ``struct __sk_buff`` of a packet that the node forwards; 0: that it sends itself."""
    return struct.pack("=36xII148x", came_through, HERE)


@contextmanager
def checkpoint(
    *pods: Workload, others: Mapping[Workload, int] = {}, **config: ConfigValue
) -> Iterator[Checkpoint]:
    with ExitStack() as own:
        datapath = own.enter_context(rig("from_pod", enforce=True, redirect=False, **config))
        names = own.enter_context(NameSets(datapath.loaded)) if config.get("dns") else None
        made = Checkpoint(datapath, names)
        with made.policy:
            made.policy.learn(others)
            made.attach(*pods)
            yield made
