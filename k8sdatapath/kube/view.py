"""The node that services are translated for."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from attrs import evolve, field, frozen

from k8sdatapath.errors import ModelError
from k8sdatapath.kube.objects import KubeNode
from k8sdatapath.model import IPAddress, IPNetwork, address, network, port
from k8sdatapath.model.address import shown

__all__ = ["NodeView"]

_LOOPBACK = (address("127.0.0.1"), address("::1"))


def _to_name(value: str) -> str:
    if isinstance(value, str) and value:
        return value
    raise ModelError(f"{shown(value)} is not the name of a node")


def _to_addresses(values: Iterable[Any]) -> tuple[IPAddress, ...]:
    if isinstance(values, str):
        raise ModelError(f"addresses is an iterable of addresses; {shown(values)} is a single one")
    return tuple(dict.fromkeys(map(address, values)))


def _to_networks(values: Iterable[Any]) -> tuple[IPNetwork, ...]:
    if isinstance(values, str):
        raise ModelError(f"node_port_networks is an iterable of networks; {shown(values)} is a single one")
    return tuple(map(network, values))


def _to_range(value: tuple[int, int]) -> tuple[int, int]:
    first, last = map(port, value)
    if first > last:
        raise ModelError(f"{first}-{last} is no range of ports")
    return first, last


@frozen
class NodeView:
    """A node as the translation of Services sees it: who is local, and where node ports are.

    ::

        NodeView("n1", "z1", ["192.0.2.11", "2001:db8::11"])

    :param name: as in ``nodeName`` of endpoints and pods.
    :param zone: its label ``topology.kubernetes.io/zone``. Without one, hints for zones do not count.
    :param addresses: all its addresses that clients dial.
    :param node_port_networks: node ports are at those addresses that are in one of these; none: at all.
    :param loopback: processes of the node reach node ports and host ports at 127.0.0.1 and ::1 too, unless
        ``node_port_networks`` are given and leave these out.
    :param node_port_range: first and last port that Services may have as node ports, and nobody else.
    :raises ModelError: a value that cannot be.
    """

    name: str = field(converter=_to_name)
    zone: str = ""
    addresses: tuple[IPAddress, ...] = field(default=(), converter=_to_addresses)
    node_port_networks: tuple[IPNetwork, ...] = field(default=(), converter=_to_networks)
    loopback: bool = True
    node_port_range: tuple[int, int] = field(default=(30000, 32767), converter=_to_range)

    @property
    def node_port_addresses(self) -> tuple[IPAddress, ...]:
        """Where node ports, and the health checks of Services, can be dialled."""
        return self._chosen(self.addresses)

    @property
    def loopback_addresses(self) -> tuple[IPAddress, ...]:
        """Where processes of the node, and nobody else, can dial them too."""
        return self._chosen(_LOOPBACK) if self.loopback else ()

    def _chosen(self, addresses: tuple[IPAddress, ...]) -> tuple[IPAddress, ...]:
        networks = self.node_port_networks
        if not networks:
            return addresses
        return tuple(each for each in addresses if any(each in network for network in networks))

    def completed(self, node: KubeNode) -> NodeView:
        """The same; the zone and the addresses are those of the Node object where this does not give them."""
        return evolve(self, zone=self.zone or node.zone, addresses=self.addresses or node.addresses)

    def reserves(self, port: int) -> bool:
        """Whether a port is kept for node ports."""
        first, last = self.node_port_range
        return first <= port <= last
