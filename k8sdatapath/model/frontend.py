"""Frontends: what clients dial."""

from __future__ import annotations

import re
from enum import IntEnum

from attrs import field, frozen

from k8sdatapath.errors import ModelError
from k8sdatapath.model.address import IPAddress, shown
from k8sdatapath.model.address import address as to_address
from k8sdatapath.model.address import port as to_port
from k8sdatapath.model.enums import member

__all__ = ["Exposure", "Frontend", "FrontendKind", "Protocol"]

_FRONTEND = re.compile(r"(?:\[([^]]*:[^]]*)\]|([^][:]+)):(\d{1,5})(?:/(\w+))?", re.ASCII)


class Protocol(IntEnum):
    """A transport protocol, by its IP protocol number."""

    TCP = 6
    UDP = 17
    SCTP = 132


class FrontendKind(IntEnum):
    """By what right an address and port belong to a service. All but the first are external.

    A service's ``internal_local`` rules its cluster IP, its ``external_local`` the others.
    """

    CLUSTER_IP = 0
    NODE_PORT = 1
    """A port of the node, the same on every node."""
    LOAD_BALANCER = 2
    """An address that a load balancer outside of the cluster sends to the nodes; source ranges rule it."""
    EXTERNAL_IP = 3
    """An address that somebody routes to the nodes."""
    HOST_PORT = 4
    """A port of the node that leads to a pod on it."""


def to_protocol(value: Protocol | str | int) -> Protocol:
    """Make a protocol of its name or number.

    :raises ModelError: unknown.
    """
    return value if type(value) is Protocol else member(Protocol, value, "protocol")


def to_kind(value: FrontendKind | str | int) -> FrontendKind:
    """Make a kind of frontend of its name (``"node_port"``) or number.

    :raises ModelError: unknown.
    """
    return value if type(value) is FrontendKind else member(FrontendKind, value, "kind of frontend")


@frozen(cache_hash=True)  # the hash of an address is slow, and this is what services are found by
class Frontend:
    """What a client dials: address, port and protocol. Printed as ``10.96.0.10:80/TCP``."""

    address: IPAddress = field(converter=to_address)
    port: int = field(converter=to_port)
    protocol: Protocol = field(default=Protocol.TCP, converter=to_protocol)

    @classmethod
    def parse(cls, text: str) -> Frontend:
        """Read back what ``str()`` prints; without ``/PROTOCOL`` it is TCP.

        :raises ModelError: it is not ``ADDRESS:PORT[/PROTOCOL]``, IPv6 addresses in brackets.
        """
        match = _FRONTEND.fullmatch(text)
        if not match:
            raise ModelError(f"{shown(text)} is not a frontend: write 10.96.0.10:80/TCP or [fd00::10]:53/UDP")
        return cls(match[1] or match[2], int(match[3]), match[4] or Protocol.TCP)

    def __str__(self) -> str:
        return f"{place(self.address, self.port)}/{self.protocol.name}"


@frozen
class Exposure:
    """One more address and port of a service, beside its own: ``Exposure("node_port", "192.0.2.11", 30080)``.

    The protocol is that of the service.
    """

    kind: FrontendKind = field(converter=to_kind)
    address: IPAddress = field(converter=to_address)
    port: int = field(converter=to_port)

    def __str__(self) -> str:
        return f"{place(self.address, self.port)} ({self.kind.name})"


def place(address: IPAddress, port: int) -> str:
    """Address and port as people write them."""
    return f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}"
