"""Who has which address in a lab.

::

    192.0.2.0/24    2001:db8::/64            the wire between nodes and the world outside
         .1              ::1                 its router, which knows the pods and nothing else
         .11             ::11                node 1
         .101            ::101               the first host outside
    10.244.1.0/24   fd00:10:244:1::/64       the pods of node 1, from .2 and ::2 on
         .1              ::1                 node 1 in the tunnel, with routing="vxlan"
    10.96.0.0/16    fd00:10:96::/112         service addresses: for you to use, on no device

Both families use the same digits: node 1 is ``192.0.2.11`` and ``2001:db8::11``.
"""

from __future__ import annotations

from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
)

from attrs import frozen

Network = IPv4Network | IPv6Network
Address = IPv4Address | IPv6Address
#: IPv4 and IPv6 of one thing.
Networks = tuple[Network, Network]

#: Those of services, unless a lab is told others.
SERVICES: Networks = (IPv4Network("10.96.0.0/16"), IPv6Network("fd00:10:96::/112"))

MAX_NODES = 89
MAX_OUTSIDE = 100
MAX_PODS = 252

ANYWHERE: Networks = (IPv4Network("0.0.0.0/0"), IPv6Network("::/0"))

#: The next hop of every pod: on no device, known to the pod as a permanent neighbour.
POD_GATEWAYS: tuple[Address, Address] = (IPv4Address("169.254.1.1"), IPv6Address("fe80::1"))
#: The node's end of every pod's veth.
POD_GATEWAY_MAC = "ee:ee:ee:ee:ee:ee"


@frozen
class Place:
    """The addresses of one device, with the prefix of its network."""

    v4: IPv4Interface
    v6: IPv6Interface

    @property
    def both(self) -> tuple[IPv4Interface | IPv6Interface, ...]:
        """Both families."""
        return self.v4, self.v6

    @property
    def number(self) -> int:
        """The last number of its IPv4 address."""
        return self.v4.ip.packed[-1]

    @property
    def mac(self) -> str:
        """A link address that tells whose it is: ``02:00`` and the IPv4 address."""
        return ":".join(f"{byte:02x}" for byte in (2, 0, *self.v4.ip.packed))


def on_wire(number: int) -> Place:
    """A host on the wire: 1 is the router, 11 the first node, 101 the first host outside."""
    return Place(IPv4Interface(f"192.0.2.{number}/24"), IPv6Interface(f"2001:db8::{number}/64"))


ROUTER = on_wire(1)


def node_place(node: int) -> Place:
    """The uplink of node 1, 2, ..."""
    return on_wire(10 + node)


def outside_place(number: int) -> Place:
    """The device of host 1, 2, ... outside the cluster."""
    return on_wire(100 + number)


def pod_networks(node: int) -> Networks:
    """The addresses of all pods of a node."""
    return IPv4Network(f"10.244.{node}.0/24"), IPv6Network(f"fd00:10:244:{node}::/64")


def tunnel_addresses(node: int) -> tuple[Address, Address]:
    """Of a node, among its pods: its own end of the tunnel to the others."""
    v4, v6 = pod_networks(node)
    return v4[1], v6[1]


def pod_place(node: int, number: int) -> Place:
    """The device of pod 1, 2, ... of a node. A pod has its address alone: its network is the node's."""
    last = number + 1
    return Place(IPv4Interface(f"10.244.{node}.{last}/32"), IPv6Interface(f"fd00:10:244:{node}::{last}/128"))
