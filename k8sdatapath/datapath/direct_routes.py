"""DirectRoutes: the way to the pods of other nodes where these are neighbours, and no tunnel is needed."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Final

from attrs import evolve, frozen

from k8sdatapath.component import Report
from k8sdatapath.errors import KernelError
from k8sdatapath.model import IPAddress, IPNetwork, Peer
from k8sdatapath.model.peer import by_network
from k8sdatapath.net.netlink import Netlink
from k8sdatapath.net.netns import NetNs
from k8sdatapath.programs.base import in_netns

__all__ = ["DirectRoutes", "DirectRoutesPlan"]

PROTOCOL: Final = 107
"""What tells these routes from anybody else's, see ``rtm_protocol`` in rtnetlink(7)."""


@frozen
class DirectRoutesPlan:
    """What would change: networks of pods that get a route, or another one, and those that lose theirs."""

    routes: DirectRoutes
    led: dict[IPNetwork, IPAddress]
    """Network -> the node that it will lead to."""
    cut: tuple[IPNetwork, ...]
    changed: int
    """How many of ``led`` have a route now, to another node."""

    @property
    def empty(self) -> bool:
        """Whether everything is as wanted already."""
        return not (self.led or self.cut)

    def __str__(self) -> str:
        led = [f"{network} via {node}" for network, node in self.led.items()]
        return "\n".join([*led, *(f"- {network}" for network in self.cut)]) or "nothing to change"

    def apply(self) -> Report:
        """Carry it out.

        :raises KernelError: a route was refused: its node is no neighbour, or somebody else has one for the
            network. All others were made.
        """
        return in_netns(self.routes.netns, lambda: self.routes._apply(self))


class DirectRoutes:
    """Routes to the pods of other nodes, through these nodes, in the main table.

    ::

        routes.plan([Peer("192.0.2.12", ["10.244.2.0/24"])]).apply()

    They are marked, so that those of a former process are known, and nobody else's are touched.

    :param netns: whose routes; None is the namespace of the calling thread.
    """

    def __init__(self, *, netns: NetNs | None = None) -> None:
        self.netns = netns

    def dump(self) -> dict[IPNetwork, IPAddress]:
        """The routes as the kernel has them."""

        def read() -> dict[IPNetwork, IPAddress]:
            with Netlink() as net:
                return net.gateways(PROTOCOL)

        return in_netns(self.netns, read)

    def plan(self, wanted: Iterable[Peer]) -> DirectRoutesPlan:
        """What to do so that exactly these peers are reached: of each the networks of its address's family.

        :raises ModelError: a network of two peers.
        """
        led = by_network(evolve(each, networks=_of_its_family(each)) for each in wanted)
        there = self.dump()
        return DirectRoutesPlan(
            self,
            {network: node for network, node in led.items() if there.get(network) != node},
            tuple(network for network in there if network not in led),
            sum(network in there and there[network] != node for network, node in led.items()),
        )

    def remove(self) -> int:
        """Take all of them away; returns how many there were."""
        return self.plan(()).apply().removed

    def _apply(self, plan: DirectRoutesPlan) -> Report:
        started = time.perf_counter()
        there = self.dump()
        refused: KernelError | None = None
        with Netlink() as net:
            for network in plan.cut:
                net.remove_route(network, protocol=PROTOCOL)
            for network, node in plan.led.items():
                try:
                    if network in there:
                        net.replace_route(network, via=node, protocol=PROTOCOL)
                    else:
                        net.add_route(network, via=node, protocol=PROTOCOL)
                except KernelError as error:
                    refused = error
        if refused is not None:
            raise refused
        seconds = time.perf_counter() - started
        return Report(len(plan.led) - plan.changed, plan.changed, len(plan.cut), seconds)

    def __repr__(self) -> str:
        return f"<DirectRoutes {len(self.dump())}>"


def _of_its_family(peer: Peer) -> tuple[IPNetwork, ...]:
    return tuple(network for network in peer.networks if network.version == peer.address.version)
