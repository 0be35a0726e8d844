"""Overlay: the other nodes, and the tunnel that leads to their pods."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any

from attrs import frozen

from k8sdatapath import maps
from k8sdatapath.component import Report
from k8sdatapath.datapath.contract import Bindable, bind_maps
from k8sdatapath.errors import CapacityError, ModelError, StalePlanError
from k8sdatapath.layout import addr, u8
from k8sdatapath.model import IPAddress, IPNetwork, Peer
from k8sdatapath.model.peer import by_network
from k8sdatapath.net.netlink import Netlink
from k8sdatapath.net.netns import NetNs
from k8sdatapath.resource import Resource
from k8sdatapath.tables.peers import PeerKey, PeerRow

__all__ = ["Overlay", "OverlayPlan"]

CONTRACT = {"kd_peers": maps.LPMTrie[PeerKey, PeerRow], "kd_peer_nodes": maps.Hash[addr, u8]}


@frozen
class OverlayPlan:
    """What would change: networks of pods that get a node or another one, and those that lose theirs."""

    overlay: Overlay
    led: dict[IPNetwork, IPAddress]
    """Network -> the node that it will lead to."""
    cut: tuple[IPNetwork, ...]
    joining: tuple[IPAddress, ...]
    """Nodes that will be believed; likewise ``leaving``."""
    leaving: tuple[IPAddress, ...]
    revision: int

    @property
    def empty(self) -> bool:
        """Whether everything is as wanted already."""
        return not (self.led or self.cut or self.joining or self.leaving)

    def __str__(self) -> str:
        if self.empty:
            return "nothing to change"
        led = [f"{network} -> {node}" for network, node in self.led.items()]
        return "\n".join([*led, *(f"- {network}" for network in self.cut)])

    def apply(self) -> Report:
        """Carry it out: a node is believed before anything leads there, and for as long as something does.

        :raises StalePlanError: the peers have changed since; nothing was changed.
        :raises KernelError: a route was refused; what was written until then stays, and another plan goes on.
        """
        return self.overlay._apply(self)


class Overlay(Resource):
    """Leads packets to pods of other nodes into a tunnel device, and believes what these nodes send.

    ::

        overlay.plan([Peer("192.0.2.12", ["10.244.2.0/24", "fd00:10:244:2::/64"])]).apply()

    Each network also gets a route to the device, of the node's main table.
    """

    def __init__(
        self, tables: dict[str, Any], own: ExitStack, *, device: str, ipv6: bool, netns: NetNs | None
    ) -> None:
        self.device = device
        self.ipv6 = ipv6
        self._own = own
        self._netns = netns
        self._peers: maps.LPMTrie[PeerKey, PeerRow] = tables["kd_peers"]
        self._nodes: maps.Hash[IPAddress, int] = tables["kd_peer_nodes"]
        self._led = {key.network: row.node for key, row in self._peers.items()}
        self._believed = set(self._nodes)
        self._revision = 0

    @classmethod
    def bind(
        cls, source: Bindable, *, device: str, ipv6: bool = False, netns: NetNs | None = None
    ) -> Overlay:
        """Take over the peers that a loaded object, pins or maps hold.

        :param device: the tunnel device.
        :param ipv6: nodes reach each other by IPv6.
        :param netns: where the device is; None is the namespace of the calling thread.
        :raises ContractError: the maps are not there.
        """
        tables, own = bind_maps(source, CONTRACT, cls.__name__)
        return cls(tables, own, device=device, ipv6=ipv6, netns=netns)

    def dump(self) -> tuple[Peer, ...]:
        """The peers as the kernel has them."""
        nodes = sorted(self._believed | set(self._led.values()), key=lambda each: (each.version, each))
        return tuple(Peer(node, [net for net, at in self._led.items() if at == node]) for node in nodes)

    def plan(self, wanted: Iterable[Peer]) -> OverlayPlan:
        """What to do so that exactly these peers are there.

        :raises ModelError: a network of two peers, or an address of the family that the tunnel does not use.
        :raises CapacityError: they do not fit.
        """
        peers = tuple(wanted)
        family = 6 if self.ipv6 else 4
        for peer in peers:
            if peer.address.version != family:
                raise ModelError(f"peer {peer.name or peer.address}: the tunnel is IPv{family}")
        led = by_network(peers)
        for table, needed in (self._peers, len(led)), (self._nodes, len(peers)):
            if needed > table.info.max_entries:
                raise CapacityError(table.name, needed, table.info.max_entries)
        nodes = {peer.address for peer in peers}
        return OverlayPlan(
            self,
            {network: node for network, node in led.items() if self._led.get(network) != node},
            tuple(network for network in self._led if network not in led),
            tuple(nodes - self._believed),
            tuple(self._believed - nodes),
            self._revision,
        )

    def _apply(self, plan: OverlayPlan) -> Report:
        if plan.revision != self._revision:
            raise StalePlanError("the peers have changed since this was planned: plan again")
        self._revision += 1
        started = time.perf_counter()
        changed = sum(network in self._led for network in plan.led)
        self._nodes.update_many(dict.fromkeys(plan.joining, 1))
        self._believed.update(plan.joining)
        for network, node in plan.led.items():
            self._peers[PeerKey.of(network)] = PeerRow(node)
            self._led[network] = node
        if plan.led or plan.cut:
            self._call(self._change_routes, plan)
        for network in plan.cut:
            del self._peers[PeerKey.of(network)], self._led[network]
        self._nodes.delete_many(plan.leaving)
        self._believed.difference_update(plan.leaving)
        return Report(len(plan.led) - changed, changed, len(plan.cut), time.perf_counter() - started)

    def _change_routes(self, plan: OverlayPlan) -> None:
        with Netlink() as net:
            for network in plan.led:
                net.replace_route(network, device=self.device)
            for network in plan.cut:
                net.remove_route(network, device=self.device)

    def _call(self, function: Callable[[OverlayPlan], None], plan: OverlayPlan) -> None:
        if self._netns is None:
            function(plan)
        else:
            self._netns.call(function, plan)

    def close(self) -> None:
        """Let go of the maps; packets go on as they do."""
        self._own.close()

    def __repr__(self) -> str:
        return f"<Overlay {self.device} {len(self._believed)} peers, {len(self._led)} networks>"
