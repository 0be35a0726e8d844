"""Nodes of the cluster as peers of one of them."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest
from attrs import evolve

from k8sdatapath.errors import ModelError
from k8sdatapath.kube.objects import KubeNode
from k8sdatapath.kube.peers import peers_of
from k8sdatapath.model import Peer


def node(number: int, *, addresses: bool = True, networks: bool = True) -> KubeNode:
    both = (
        ip_address(f"2001:db8::{number}"),
        ip_address(f"192.0.2.{number}"),
        ip_address(f"198.51.100.{number}"),
    )
    pods = ip_network(f"10.244.{number}.0/24"), ip_network(f"fd00:10:244:{number}::/64")
    return KubeNode(f"n{number}", addresses=both if addresses else (), pod_networks=pods if networks else ())


def test_every_other_node_that_says_where_it_is_and_what_it_has() -> None:
    nodes = [node(3), node(1), node(2), node(4, networks=False), node(5, addresses=False)]
    assert peers_of(nodes, "n1") == (
        Peer("192.0.2.2", ["10.244.2.0/24", "fd00:10:244:2::/64"]),
        Peer("192.0.2.3", ["10.244.3.0/24", "fd00:10:244:3::/64"]),
    )
    assert [str(peer.address) for peer in peers_of(nodes, "n1", ipv6=True)] == ["2001:db8::2", "2001:db8::3"]
    assert [peer.name for peer in peers_of(nodes, "n2")] == ["n1", "n3"]


def test_one_node_that_has_what_it_should_not_keeps_nobody_from_the_others() -> None:
    successor = evolve(node(2), name="n2b", addresses=node(9).addresses)
    everywhere = evolve(node(4), pod_networks=(ip_network("::/0"),))
    problems: list[str] = []
    like_us = evolve(node(1), name="n0", addresses=node(8).addresses)
    nodes = [everywhere, successor, node(2), node(3), node(1), like_us]
    found = peers_of(nodes, "n1", problems=problems)
    assert {peer.name: (str(peer.address), len(peer.networks)) for peer in found} == {
        "n0": ("192.0.2.8", 0),
        "n2": ("192.0.2.2", 2),
        "n2b": ("192.0.2.9", 0),
        "n3": ("192.0.2.3", 2),
    }
    assert problems[:4] == [
        f"nodes {both} both have the pods {each}"
        for both, number in (("n1 and n0", 1), ("n2 and n2b", 2))
        for each in (f"10.244.{number}.0/24", f"fd00:10:244:{number}::/64")
    ]
    assert "node n4: ::/0 has all of IPv4 in it" in problems[4]


def test_pods_are_not_everywhere() -> None:
    with pytest.raises(ModelError, match="::/0 has all of IPv4 in it"):
        Peer("192.0.2.2", ["::/0"])
