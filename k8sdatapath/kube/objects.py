"""What is read of Kubernetes objects: the fields that decide where packets go, and no others."""

from __future__ import annotations

from typing import TypeAlias

from attrs import field, frozen

from k8sdatapath.model import BackendState, IPAddress, Protocol, Selection

__all__ = ["Endpoint", "EndpointSlice", "KubeObject", "KubeService", "Port"]


@frozen
class Port:
    """A port of a Service, or of its endpoints. The two meet by name and protocol."""

    name: str
    number: int
    protocol: Protocol


@frozen
class KubeService:
    """A Service that has addresses of its own."""

    namespace: str
    name: str
    addresses: tuple[IPAddress, ...]
    """Its cluster IPs, at most one of each family."""
    ports: tuple[Port, ...]
    selection: Selection = Selection.RANDOM
    where: str = field(default="", eq=False)  # file and document, for errors


@frozen
class Endpoint:
    """A pod behind a Service."""

    address: IPAddress
    state: BackendState


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
    where: str = field(default="", eq=False)  # file and document, for errors


KubeObject: TypeAlias = KubeService | EndpointSlice
