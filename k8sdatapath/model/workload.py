"""Workloads: pods, as policies see them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Self

from attrs import field, frozen

from k8sdatapath.errors import ModelError
from k8sdatapath.model.address import IPAddress, IPNetwork, shown
from k8sdatapath.model.address import address as to_address
from k8sdatapath.model.labels import Label, Labels, node_labels, pod_labels
from k8sdatapath.model.named_port import NamedPort

__all__ = ["NamedPort", "Party", "Workload"]


def _sorted_labels(labels: Iterable[Label | str]) -> tuple[str, ...]:
    return tuple(map(str, labels if isinstance(labels, Labels) else Labels(labels)))


def _sorted_ports(ports: Iterable[NamedPort]) -> tuple[NamedPort, ...]:
    return tuple(sorted(set(ports)))


def _to_addresses(addresses: Iterable[Any]) -> tuple[IPAddress, ...]:
    if isinstance(addresses, str):
        raise ModelError(f"addresses is an iterable of addresses; {shown(addresses)} is a single one")
    return tuple(to_address(each) for each in addresses)


@frozen(cache_hash=True)
class Party:
    """All that policies can tell one side of a connection by: what an identity has a number for.

    :param labels: :class:`~k8sdatapath.model.labels.Labels`, or what these are made of.
    :param network: the narrowest that any policy tells apart of those its address is in.
    :param ports: those that have names.
    """

    labels: tuple[str, ...] = field(converter=_sorted_labels)
    network: IPNetwork | None = None
    ports: tuple[NamedPort, ...] = field(default=(), converter=_sorted_ports)


@frozen
class Workload:
    """A pod, or what is like one: ``Workload.pod("shop/web", {"app": "web"}, addresses=["10.244.1.2"])``."""

    name: str
    labels: tuple[str, ...] = field(converter=_sorted_labels)
    addresses: tuple[IPAddress, ...] = field(default=(), converter=_to_addresses, kw_only=True)
    ports: tuple[NamedPort, ...] = field(default=(), converter=_sorted_ports, kw_only=True)

    @classmethod
    def pod(
        cls,
        name: str,
        labels: Mapping[str, str] = {},
        *,
        namespace_labels: Mapping[str, str] = {},
        service_account: str = "",
        addresses: Iterable[Any] = (),
        ports: Iterable[NamedPort] = (),
    ) -> Self:
        """A pod by its Kubernetes labels.

        :param name: ``namespace/name``.
        :param namespace_labels: those of its namespace; ``kubernetes.io/metadata.name`` is there anyway.
        """
        namespace, slash, _ = name.partition("/")
        if not slash:
            raise ModelError(f"{shown(name)} is not the name of a pod: write namespace/name")
        around = {"kubernetes.io/metadata.name": namespace, **namespace_labels}
        named = _sorted_ports(ports)
        found = pod_labels(
            labels,
            namespace=namespace,
            namespace_labels=around,
            service_account=service_account,
            ports=named,
        )
        return cls(name, found, addresses=addresses, ports=named)

    @classmethod
    def node(
        cls, name: str, labels: Mapping[str, str] = {}, *, addresses: Iterable[Any] = (), remote: bool = True
    ) -> Self:
        """A node by its Kubernetes labels.

        :param remote: False: it is the node that policies are enforced on.
        """
        return cls(name, node_labels(labels, remote=remote), addresses=addresses)

    @property
    def is_pod(self) -> bool:
        """Whether policies can be for it, even if its labels are not known yet."""
        return not any(each.startswith("reserved:") and each != "reserved:init=" for each in self.labels)

    @property
    def is_host(self) -> bool:
        """Whether it is the node that policies are enforced on, which they can be for as well."""
        return "reserved:host=" in self.labels
