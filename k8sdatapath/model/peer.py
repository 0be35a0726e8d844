"""Peers: the other nodes of the cluster."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from ipaddress import IPv6Network
from typing import Any

from attrs import field, frozen

from k8sdatapath.errors import ModelError
from k8sdatapath.model.address import IPAddress, IPNetwork, network, shown
from k8sdatapath.model.address import address as to_address

__all__ = ["Peer", "by_network"]


def _to_networks(values: Iterable[Any]) -> tuple[IPNetwork, ...]:
    if isinstance(values, str):
        raise ModelError(f"networks is an iterable of networks; {shown(values)} is a single one")
    found = {network(value) for value in values}
    for each in found:
        if isinstance(each, IPv6Network) and each.supernet_of(_MAPPED):
            raise ModelError(f"{each} has all of IPv4 in it ({_MAPPED}): pods are in narrower networks")
    return tuple(sorted(found, key=lambda each: (each.version, each)))


_MAPPED = IPv6Network("::ffff:0:0/96")


@frozen
class Peer:
    """Another node: ``Peer("192.0.2.12", ["10.244.2.0/24", "fd00:10:244:2::/64"])``.

    :param address: where its end of the tunnel is.
    :param networks: the addresses of its pods, of both families.
    :param name: for people.
    """

    address: IPAddress = field(converter=to_address)
    networks: tuple[IPNetwork, ...] = field(default=(), converter=_to_networks)
    name: str = field(default="", eq=False)


def by_network(peers: Iterable[Peer]) -> dict[IPNetwork, IPAddress]:
    """Where the pods of each network are.

    :raises ModelError: a network of two peers.
    """
    peers = tuple(peers)
    counted = Counter(network for peer in peers for network in peer.networks)
    twice = [network for network, times in counted.items() if times > 1]
    if twice:
        raise ModelError(f"several peers have the pods {', '.join(map(str, twice))}")
    return {network: peer.address for peer in peers for network in peer.networks}
