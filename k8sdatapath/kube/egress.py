"""Pods that leave the cluster under addresses of their own: which these are, by namespace, labels and node.

::

    - namespaces: [billing]
      podSelector: {matchLabels: {app: mail}}
      nodes: [node-1]
      addresses: [192.0.2.50, "2001:db8::50"]

Without namespaces, selector or nodes it is all of them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from attrs import frozen

from k8sdatapath.kube.fields import Field
from k8sdatapath.kube.objects import KubePod
from k8sdatapath.kube.policy.reading import known, kube_key, label_selector
from k8sdatapath.model import IPAddress, IPNetwork, network
from k8sdatapath.model.masquerade import egress_address
from k8sdatapath.model.policy import EVERYBODY, Selector

__all__ = ["EgressRule", "egress_of"]


@frozen
class EgressRule:
    """Some pods, and the addresses under which they leave.

    :ivar addresses: at most one of each family; pods leave as others do in a family that has none.
    :ivar namespaces: where the pods are; empty: anywhere. Likewise ``nodes``.
    :ivar selector: what is asked of their labels.
    """

    addresses: tuple[IPAddress, ...]
    namespaces: frozenset[str] = frozenset()
    selector: Selector = EVERYBODY
    nodes: frozenset[str] = frozenset()

    @classmethod
    def parse(cls, value: Any) -> EgressRule:
        """Read one as YAML has it.

        :raises ManifestError: what cannot be or is not understood, and where it stands.
        """
        rule = known(Field(value), ("addresses", "namespaces", "podSelector", "nodes"))
        addresses = tuple(each.made(egress_address) for each in rule["addresses"].given().items())
        if not addresses or len({each.version for each in addresses}) < len(addresses):
            rule["addresses"].refuse("one address is needed, or one of each family")
        return cls(
            addresses,
            frozenset(each.text() for each in rule["namespaces"].items()),
            Selector(label_selector(rule["podSelector"], kube_key)),
            frozenset(each.text() for each in rule["nodes"].items()),
        )

    def selects(self, pod: KubePod) -> bool:
        """Whether it is about a pod."""
        if (self.namespaces and pod.namespace not in self.namespaces) or (
            self.nodes and pod.node not in self.nodes
        ):
            return False
        return self.selector.matches(tuple(f"k8s:{each}" for each in pod.labels))


def egress_of(rules: Iterable[EgressRule], pods: Iterable[KubePod]) -> dict[IPNetwork, IPAddress]:
    """Under which address each of some pods leaves: by the first rule about it that has one of the family."""
    last_first = tuple(rules)[::-1]
    found: dict[IPNetwork, IPAddress] = {}
    for pod in pods:
        about = (rule for rule in last_first if rule.selects(pod))
        leaves_as = {each.version: each for rule in about for each in rule.addresses}
        found |= {network(own): leaves_as[own.version] for own in pod.addresses if own.version in leaves_as}
    return found
