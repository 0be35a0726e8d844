"""All whom policies can tell apart: pods, nodes, and the world by its networks and names."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from k8sdatapath.datapath.policy_compiler import PolicyCompiler, networks_of
from k8sdatapath.datapath.policy_networks import Networks
from k8sdatapath.datapath.policy_sides import world
from k8sdatapath.model import IPAddress, address
from k8sdatapath.model.host_firewall import HostFirewall, to_host_firewall
from k8sdatapath.model.identity import LOCAL_NUMBERS, Reserved
from k8sdatapath.model.names import name_labels, name_patterns
from k8sdatapath.model.policy import Policy
from k8sdatapath.model.workload import Party, Workload

__all__ = ["Parties"]

_NODE = Workload.node("another node")


class Parties:
    """All whom some policies can tell apart among some workloads and in the world, by number.

    Nodes are known as their pods see them (``homes``), and as all others do. Without any there is a nameless
    one.

    :param names: the addresses of DNS names.
    :param host_firewall: policies are for nodes as well.
    :ivar names: what is called so.
    :ivar subjects: those whom policies are for.
    :ivar judged: as whom they are among the subjects.
    """

    def __init__(
        self,
        policies: Iterable[Policy],
        workloads: Iterable[Workload],
        names: Mapping[str, Iterable[Any]] = {},
        host_firewall: HostFirewall | bool | None = None,
    ) -> None:
        known, there = list(policies), list(workloads)
        self._firewall = to_host_firewall(host_firewall)
        self._networks = Networks(each for policy in known for each in networks_of(policy))
        self.names: dict[Party, list[str]] = {}
        self.versions: dict[Party, set[int]] = {}
        self.judged: dict[Party, Party] = {}
        self.homes: set[Party] = set()
        self._nodes: dict[Party, set[str]] = {}  # which a party is; none: one without a name
        self._on: dict[Party, set[str]] = {}  # where pods run; empty: that is not known
        for each in there if any(each.is_node for each in there) else [*there, _NODE]:
            for ip in each.addresses or (None,):
                self._take_in(each, ip)
        told: dict[IPAddress, list[str]] = {}
        for name, addresses in names.items():
            for ip in map(address, addresses):
                told.setdefault(ip, []).append(name)
        patterns = tuple(dict.fromkeys(name_patterns(known)))
        for ip, its in told.items():
            labels = (*world(ip.version), *name_labels(patterns, its))
            self._add(Party(labels, self._networks.narrowest(ip)), f"{its[0]} ({ip})", ip)
        named = {label for party in self.names for label in party.labels}
        for pattern in patterns:
            if pattern.label not in named:
                for version in (4, 6):
                    party = self._add(Party((*world(version), pattern.label)), str(pattern), None)
                    self.versions[party] = {version}
        self._add(Party(Reserved.KUBE_APISERVER.labels), "the API server", None)
        for network in self._networks:
            party = self._add(Party(world(network.version), network), f"the world in {network}", None)
            self.versions[party] = {network.version}
        whole = {each.version for each in self._networks if not each.prefixlen}
        for version in {4, 6} - whole:
            party = self._add(Party(world(version)), f"the world (IPv{version})", None)
            self.versions[party] = {version}
        self.subjects = set(self.judged.values())
        self.numbers = dict(zip(self.names, LOCAL_NUMBERS, strict=False))

    def pairs(self) -> Iterator[tuple[Party, Party]]:
        """Who may dial whom, where policies have a say: not about two who are both of the world."""
        for source in self.names:
            for destination in self.names if source in self.judged else self.judged:
                if source is destination or not self.versions[source] & self.versions[destination]:
                    continue
                if self._may_meet(source, destination):
                    yield source, destination

    def compiled(self, policies: Iterable[Policy]) -> PolicyCompiler:
        """Policies for all of them."""
        compiler = PolicyCompiler()
        compiler.update(
            [*policies, *([self._firewall.failsafe] if self._firewall else [])],
            identities={number: party for party, number in self.numbers.items()},
            subjects=[self.numbers[each] for each in self.subjects],
        )
        return compiler

    def _take_in(self, workload: Workload, ip: IPAddress | None) -> None:
        network = None if ip is None else self._networks.narrowest(ip)
        seen = workload.elsewhere if workload.is_node else workload
        party = self._add(Party(seen.labels, network, workload.ports), workload.name, ip)
        if workload.is_pod:
            self.judged[party] = party
            self._on.setdefault(party, set()).add(workload.on)
        elif workload.is_node:
            home = Party(workload.at_home.labels, network)
            self._add(home, f"a pod's own node{'' if workload is _NODE else f', {workload.name}'}", ip)
            self.homes.add(home)
            for each in party, home:
                self._nodes.setdefault(each, set()).update([] if workload is _NODE else [workload.name])
            if self._firewall is not None:
                self.judged[party] = home

    def _may_meet(self, source: Party, destination: Party) -> bool:
        """Whether there is such a connection, and policies say something of it: pods have one own node."""
        for node, other in (destination, source), (source, destination):
            there, on = self._nodes.get(node), self._on.get(other)
            if node in self.homes:
                return node is destination and on is not None and not on.isdisjoint({*(there or on), ""})
            if there is not None and on == there and len(there) == 1:
                return False
        return True

    def _add(self, party: Party, name: str, ip: IPAddress | None) -> Party:
        given = self.names.setdefault(party, [])
        if name not in given:
            given.append(name)
        self.versions.setdefault(party, set()).update({4, 6} if ip is None else {ip.version})
        return party
