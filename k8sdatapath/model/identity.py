"""Identities: numbers that stand for sets of labels, so that policy in the kernel is pairs of numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from enum import IntEnum
from typing import Any

from attrs import field, frozen

from k8sdatapath.errors import ModelError
from k8sdatapath.model.address import network, shown
from k8sdatapath.model.enums import member
from k8sdatapath.model.labels import Label, Labels, pod_labels

__all__ = [
    "CLUSTER_NUMBERS",
    "LOCAL_NUMBERS",
    "REMOTE_NODE_NUMBERS",
    "USER_NUMBERS",
    "WELL_KNOWN_NUMBERS",
    "Identity",
    "Reserved",
    "cidr_labels",
    "well_known",
]

WELL_KNOWN_NUMBERS = range(100, 116)
USER_NUMBERS = range(128, 256)
CLUSTER_NUMBERS = range(256, 1 << 16)
"""What allocators give, one number to one set of labels in all the cluster."""
LOCAL_NUMBERS = range((1 << 24) + 1, 1 << 25)
"""What each node gives by itself, to networks: never on the wire, where there are 24 bits for a number."""
REMOTE_NODE_NUMBERS = range(1 << 25, (1 << 25) + (1 << 24))


class Reserved(IntEnum):
    """Identities that are not given, but known. The numbers are Cilium's."""

    UNKNOWN = 0
    """Nobody knows yet. No policy allows it."""
    HOST = 1
    WORLD = 2
    UNMANAGED = 3
    HEALTH = 4
    INIT = 5
    """A pod whose labels are not known yet."""
    REMOTE_NODE = 6
    KUBE_APISERVER = 7
    INGRESS = 8
    WORLD_IPV4 = 9
    WORLD_IPV6 = 10

    @property
    def labels(self) -> Labels:
        """One label, of the source ``reserved``."""
        return Labels([Label(self.name.lower().replace("_", "-"), source="reserved")])


def _to_number(value: int) -> int:
    if type(value) is int and 0 <= value < REMOTE_NODE_NUMBERS.stop:
        return value
    if isinstance(value, Reserved):
        return value.value
    raise ModelError(f"{shown(value)} is not the number of an identity")


@frozen
class Identity:
    """A number and the labels it stands for.

    :raises ModelError: a number that none has.
    """

    number: int = field(converter=_to_number)
    labels: Labels

    @classmethod
    def reserved(cls, which: Reserved | str | int) -> Identity:
        """One of those that every node knows: ``Identity.reserved("world")``.

        :raises ModelError: there is no such.
        """
        found = member(
            Reserved, which.replace("-", "_") if isinstance(which, str) else which, "reserved identity"
        )
        return cls(found, found.labels)

    @property
    def local(self) -> bool:
        """Whether it means something on one node only, and so must not leave it."""
        return self.number >= LOCAL_NUMBERS.start

    def __str__(self) -> str:
        return f"{self.number} ({self.labels})"


def cidr_labels(value: Any) -> Labels:
    """What a network is known by: ``cidr:10.0.0.0/8``, and that it is of the world.

    :raises ModelError: it is not a network.
    """
    found = network(value)
    world = Reserved.WORLD_IPV4 if found.version == 4 else Reserved.WORLD_IPV6
    return Labels([Label(str(found), source="cidr"), *Reserved.WORLD.labels, *world.labels])


def well_known(cluster: str = "default") -> Mapping[Labels, int]:
    """Those who must be known before a store can be reached: the cluster's DNS. The numbers are Cilium's.

    For ``fixed`` of an allocator, beside numbers of one's own in :data:`USER_NUMBERS`.
    """
    return dict(_well_known(cluster))


def _well_known(cluster: str) -> Iterator[tuple[Labels, int]]:
    for account, number in ("kube-dns", 102), ("coredns", 104):
        yield (
            pod_labels(
                {"k8s-app": "kube-dns"},
                namespace="kube-system",
                namespace_labels={"kubernetes.io/metadata.name": "kube-system"},
                service_account=account,
                cluster=cluster,
            ),
            number,
        )
