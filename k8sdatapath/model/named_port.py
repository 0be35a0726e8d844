"""Ports of pods that have names. They are part of who a pod is: policies may allow a port by its name."""

from __future__ import annotations

from attrs import field, frozen

from k8sdatapath.model.address import port as to_port
from k8sdatapath.model.frontend import Protocol, to_protocol

__all__ = ["NamedPort"]


def _to_number(protocol: Protocol | str | int) -> int:
    return int(to_protocol(protocol))


@frozen(order=True)
class NamedPort:
    """A port of a pod that has a name: ``NamedPort("http", 8080)``."""

    name: str
    number: int = field(converter=to_port)
    protocol: int = field(default=6, converter=_to_number)

    @property
    def label(self) -> str:
        """The label that an identity has for it, of a form that no label of Kubernetes has."""
        return f"port:{self.name}:{self.protocol}:{self.number}="
