"""What is read of Kubernetes objects: the fields that decide where packets go, and no others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

from attrs import field, frozen

from k8sdatapath.model import IPAddress, IPNetwork, Protocol, Selection

__all__ = [
    "Endpoint",
    "EndpointSlice",
    "HostPort",
    "KubeNode",
    "KubeObject",
    "KubePod",
    "KubeRaw",
    "KubeService",
    "Port",
]


@frozen
class Port:
    """A port of a Service, or of its endpoints. The two meet by name and protocol."""

    name: str
    number: int
    protocol: Protocol
    node_port: int = 0
    """Of a Service: its port on the nodes, 0 for none."""


@frozen
class KubeService:
    """A Service that has addresses of its own."""

    namespace: str
    name: str
    addresses: tuple[IPAddress, ...]
    """Its cluster IPs, at most one of each family."""
    ports: tuple[Port, ...]
    selection: Selection = Selection.RANDOM
    kind: str = "ClusterIP"
    """Its ``type``."""
    load_balancer_ips: tuple[IPAddress, ...] = ()
    external_ips: tuple[IPAddress, ...] = ()
    internal_local: bool = False
    external_local: bool = False
    affinity_timeout: int = 0
    source_ranges: tuple[IPNetwork, ...] = ()
    health_port: int = 0
    where: str = field(default="", eq=False)  # file and document, for errors


_NO_HINTS: frozenset[str] = frozenset()


@frozen
class Endpoint:
    """A pod behind a Service; the conditions with their defaults."""

    address: IPAddress
    ready: bool = True
    serving: bool = True
    terminating: bool = False
    node: str = ""
    """Where it runs, empty if that is not told."""
    node_hints: frozenset[str] = _NO_HINTS
    """Nodes whose clients it is meant for; likewise ``zone_hints``."""
    zone_hints: frozenset[str] = _NO_HINTS

    @property
    def ordinary(self) -> bool:
        """Whether it is ready, and for everybody."""
        return self.ready and not self.node_hints and not self.zone_hints


@frozen
class EndpointSlice:
    """Endpoints of one Service, of one address family, with the ports they have in common."""

    namespace: str
    name: str
    service: str
    version: int
    """Of all its addresses: 4 or 6."""
    ports: tuple[Port, ...]
    endpoints: tuple[Endpoint, ...]
    triggered: float = field(default=0.0, eq=False)
    """When that came about which the latest change of the slice is for, as Unix time; 0: it does not tell."""
    where: str = field(default="", eq=False)  # file and document, for errors


@frozen
class HostPort:
    """A port of the node that leads to a port of a pod."""

    number: int
    protocol: Protocol
    target: int
    address: IPAddress | None
    """Of the node; None: all its addresses."""


@frozen
class KubePod:
    """A pod that has addresses of its own, and may have ports of its node."""

    namespace: str
    name: str
    node: str
    addresses: tuple[IPAddress, ...]
    ports: tuple[HostPort, ...]
    born: tuple[str, str]
    """Time of creation and UID: of two pods with one host port the later has it."""
    where: str = field(default="", eq=False)  # file and document, for errors
    labels: frozenset[str] = frozenset()
    """As in ``app=web``."""
    owner: tuple[str, str] | None = None
    """Kind and name of what made it: ``("Deployment", "web")``."""


@frozen
class KubeNode:
    """A node of the cluster."""

    name: str
    zone: str = ""
    """Its label ``topology.kubernetes.io/zone``."""
    addresses: tuple[IPAddress, ...] = ()
    """Its internal addresses, and its external ones after them."""
    pod_networks: tuple[IPNetwork, ...] = ()
    """Where its pods have their addresses, if it says so."""
    where: str = field(default="", eq=False)  # file and document, for errors
    namespace: str = field(default="", init=False)  # it has none


@frozen
class KubeRaw:
    """An object of a kind that is not read here; all of it, for those who know it."""

    kind: str
    namespace: str
    name: str
    value: Mapping[str, Any]
    where: str = field(default="", eq=False)


KubeObject: TypeAlias = KubeService | EndpointSlice | KubePod | KubeNode | KubeRaw
