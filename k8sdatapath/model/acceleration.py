"""Accelerated: which connections within a node skip the stack."""

from __future__ import annotations

from typing import Any

from attrs import field, frozen

from k8sdatapath.model.address import IPNetwork, network
from k8sdatapath.model.address import port as to_port
from k8sdatapath.model.frontend import Protocol
from k8sdatapath.model.service import Service

__all__ = ["Accelerated"]


def _port(value: Any) -> int | None:
    return None if value is None else to_port(value)


@frozen
class Accelerated:
    """Connections to these addresses: ``Accelerated("10.96.0.10", 80)``, ``Accelerated("10.244.1.0/24")``.

    An address is what a client dials, a service's say, or the server's own. Only connections between two
    sockets of one node are meant, whatever else is there.

    :param network: the addresses; one of them will do.
    :param port: None is any.
    """

    network: IPNetwork = field(converter=network)
    port: int | None = field(default=None, converter=_port)

    @classmethod
    def of(cls, *services: Service) -> tuple[Accelerated, ...]:
        """All that is dialled of some services, as far as it is TCP."""
        return tuple(
            cls(frontend.address, frontend.port)
            for service in services
            if service.protocol is Protocol.TCP
            for frontend in service.frontends
        )

    def __str__(self) -> str:
        at = self.network
        shown = str(at.network_address) if at.prefixlen == at.max_prefixlen else str(at)
        return shown if self.port is None else f"{shown} port {self.port}"
