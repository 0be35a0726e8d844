"""Nodes of the cluster as peers of one of them."""

from __future__ import annotations

from collections.abc import Iterable

from k8sdatapath.errors import ModelError
from k8sdatapath.kube.objects import KubeNode
from k8sdatapath.model import Peer

__all__ = ["peers_of"]


def peers_of(
    nodes: Iterable[KubeNode], own: str, *, ipv6: bool = False, problems: list[str] | None = None
) -> tuple[Peer, ...]:
    """Where the pods of other nodes are: a peer for each node that has said both what it is to be reached
    under and which networks its pods have.

    :param own: the name of the node that asks.
    :param ipv6: nodes reach each other by IPv6. Of several addresses the first of the family counts.
    :param problems: gets what is left out, and why: a network of two nodes is our own, or else the first
        one's, by name.
    """
    family = 6 if ipv6 else 4
    by_name = sorted(nodes, key=lambda node: node.name)
    found: list[Peer] = []
    taken = {each: own for node in by_name if node.name == own for each in node.pod_networks}
    left_out = [] if problems is None else problems
    for node in by_name:
        addresses = [each for each in node.addresses if each.version == family]
        if node.name == own or not addresses or not node.pod_networks:
            continue
        networks = [each for each in node.pod_networks if each not in taken]
        left_out += [
            f"nodes {taken[each]} and {node.name} both have the pods {each}"
            for each in node.pod_networks
            if each in taken
        ]
        try:
            found.append(Peer(addresses[0], networks, node.name))
        except ModelError as error:
            left_out.append(f"node {node.name}: {error}")
        else:
            taken |= dict.fromkeys(networks, node.name)
    return tuple(found)
