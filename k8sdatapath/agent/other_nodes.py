"""What an agent does about the other nodes of its cluster."""

from __future__ import annotations

import logging
from itertools import chain
from threading import RLock

from attrs import evolve

from k8sdatapath.agent.config import AgentConfig
from k8sdatapath.agent.source import Nodes, Workloads
from k8sdatapath.component import Plan
from k8sdatapath.errors import DatapathError, ManifestError
from k8sdatapath.kube.egress import egress_of
from k8sdatapath.kube.ip_masq import IpMasqFile
from k8sdatapath.kube.peers import peers_of
from k8sdatapath.model import IPAddress, IPNetwork, Masquerade, Peer, network
from k8sdatapath.node import Node

__all__ = ["OtherNodes"]

_log = logging.getLogger("k8sdatapath.agent.agent")


class OtherNodes:
    """Reaches the pods of the other nodes where these are, and has the world see pods as it shall.

    :ivar config: what the agent is told now.
    :ivar masq: ip-masq-agent's file, if there is one.
    :ivar problem: why not all is as it should be; empty if it is.
    """

    def __init__(self, config: AgentConfig) -> None:
        self.config = config
        self.masq = IpMasqFile(config.masq_file) if config.masq_file and config.masquerading else None
        if self.masq is not None:
            self.masq.refresh()
        self.problem = ""
        self._left_out: list[str] = []
        self._lock = RLock()
        self._node: Node | None = None
        self._nodes: Nodes | None = None
        self._egress: dict[IPNetwork, IPAddress] = {}

    @property
    def masquerading(self) -> Masquerade | None:
        """How pods leave: what is known without the cluster's nodes."""
        wanted = self.config.masquerading
        if wanted is None:
            return None
        wanted = evolve(wanted, egress=self._egress)
        return wanted if self.masq is None else self.masq.config.added_to(wanted)

    def serve(self, node: Node) -> None:
        """Keep this node so."""
        self._node = node

    def update(self, nodes: Nodes) -> None:
        """Take over where the nodes are now."""
        problems: list[str] = []
        with self._lock:
            self._nodes = nodes
            self._left_out = []
            for what in (self._plan_overlay, self._plan_routes, self._plan_masquerade):
                try:
                    plan = what(nodes)
                    if plan is not None and not plan.empty:
                        _log.info("nodes: %s", plan.apply())
                except DatapathError as error:
                    problems.append(str(error))
                    _log.error("not all nodes are reached as they should be: %s", error)
            self.problem = "; ".join(dict.fromkeys([*problems, *self._left_out]))

    def update_again(self) -> None:
        """Something else has changed that matters to it, such as the addresses of the node's own devices."""
        with self._lock:
            if self._nodes is not None:
                self.update(self._nodes)

    def follow_workloads(self, pods: Workloads) -> None:
        """Have those leave under addresses of their own that shall."""
        egress = egress_of(self.config.egress, pods)
        with self._lock:
            changed, self._egress = egress != self._egress, egress
            if changed:
                self.update_again()

    def look_at_masq_file(self) -> None:
        """Take over what the file says now; flows that have begun keep their addresses."""
        if self.masq is None:
            return
        try:
            changed = self.masq.refresh()
        except ManifestError as error:
            _log.error("what is not masqueraded stays as it was: %s", error)
            return
        if changed:
            self.update_again()

    def _plan_overlay(self, nodes: Nodes) -> Plan | None:
        if self._node is None or self._node.overlay is None:
            return None
        return self._node.overlay.plan(self._peers(nodes, ipv6=self.config.tunnel_ipv6))

    def _peers(self, nodes: Nodes, *, ipv6: bool) -> tuple[Peer, ...]:
        """One node that is not as it should be keeps nobody from reaching the others."""
        return peers_of(nodes, self.config.node_name, ipv6=ipv6, problems=self._left_out)

    def _plan_routes(self, nodes: Nodes) -> Plan | None:
        if self._node is None or self._node.routes is None:
            return None
        both = (self._peers(nodes, ipv6=ipv6) for ipv6 in (False, True))
        return self._node.routes.plan(chain.from_iterable(both))

    def _plan_masquerade(self, nodes: Nodes) -> Plan | None:
        wanted = self.masquerading
        if self._node is None or self._node.masquerade is None or wanted is None:
            return None
        inside = {each for node in nodes for each in (*node.pod_networks, *map(network, node.addresses))}
        return self._node.masquerade.plan(evolve(wanted, exclude=(*wanted.exclude, *inside)))
