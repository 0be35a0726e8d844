"""Workloads: pods, as policies see them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Self

from attrs import evolve, field, frozen

from k8sdatapath.errors import ModelError
from k8sdatapath.model.address import IPAddress, IPNetwork, shown
from k8sdatapath.model.address import address as to_address
from k8sdatapath.model.labels import Label, Labels, node_labels, pod_labels
from k8sdatapath.model.named_port import NamedPort
from k8sdatapath.model.visibility import Visibility, to_visibility

__all__ = ["NamedPort", "Party", "Workload"]

_HOST, _REMOTE = "reserved:host=", "reserved:remote-node="


def _sorted_labels(labels: Iterable[Label | str]) -> tuple[str, ...]:
    return tuple(map(str, labels if isinstance(labels, Labels) else Labels(labels)))


def _sorted_ports(ports: Iterable[NamedPort]) -> tuple[NamedPort, ...]:
    found = set(ports)
    if wrong := [each for each in found if not isinstance(each, NamedPort)]:
        raise ModelError(f"{shown(wrong[0])} is not a NamedPort")
    return tuple(sorted(found))


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
    """A pod, or what is like one: ``Workload.pod("shop/web", {"app": "web"}, addresses=["10.244.1.2"])``.

    :ivar audit: policies only look on at what it sends and gets: what they deny passes, and is told.
    :ivar on: the name of the node where it runs, as far as that is known: that one always reaches it.
    :ivar visible: what is told of its requests and questions, whether policies hold them to rules or not.
    """

    name: str
    labels: tuple[str, ...] = field(converter=_sorted_labels)
    addresses: tuple[IPAddress, ...] = field(default=(), converter=_to_addresses, kw_only=True)
    ports: tuple[NamedPort, ...] = field(default=(), converter=_sorted_ports, kw_only=True)
    audit: bool = field(default=False, kw_only=True)
    on: str = field(default="", kw_only=True)
    visible: tuple[Visibility, ...] = field(default=(), converter=to_visibility, kw_only=True)

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
        audit: bool = False,
        on: str = "",
        visible: str | Iterable[Visibility | str] = (),
    ) -> Self:
        """A pod by its Kubernetes labels.

        :param name: ``namespace/name``.
        :param namespace_labels: those of its namespace; ``kubernetes.io/metadata.name`` is there anyway.
        :param audit: policies only look on at it.
        :param on: the name of the node where it runs.
        :param visible: what is told of it, as in ``"<Ingress/8080/TCP/HTTP>,<Egress/53/UDP/DNS>"``.
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
        return cls(name, found, addresses=addresses, ports=named, audit=audit, on=on, visible=visible)

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
    def is_node(self) -> bool:
        """Whether it is a node: the one that policies are enforced on, or another one."""
        return self.is_host or _REMOTE in self.labels

    @property
    def at_home(self) -> Self:
        """A node as it is known to itself, and to its pods."""
        return evolve(self, labels=[_HOST if each == _REMOTE else each for each in self.labels])

    @property
    def elsewhere(self) -> Self:
        """A node as it is known to all others."""
        return evolve(self, labels=[_REMOTE if each == _HOST else each for each in self.labels])

    @property
    def is_host(self) -> bool:
        """Whether it is the node that policies are enforced on, which they can be for as well."""
        return _HOST in self.labels
