"""Visibility: what is told of a pod's requests and questions, whether anything holds them to rules or not."""

from __future__ import annotations

import re
from collections.abc import Iterable

from attrs import field, frozen

from k8sdatapath.errors import ModelError
from k8sdatapath.model.address import port as to_port
from k8sdatapath.model.address import shown
from k8sdatapath.model.frontend import Protocol, to_protocol
from k8sdatapath.model.policy import Toward

__all__ = ["Visibility", "to_visibility"]

_KINDS = "HTTP", "DNS"
_WAYS = {"Ingress": Toward.INGRESS, "Egress": Toward.EGRESS}
_PORT = re.compile(r"[0-9]{1,5}")
_MOST = 64
_FORM = "<Ingress|Egress/port/TCP|UDP/HTTP|DNS>, several with commas"


@frozen(order=True)
class Visibility:
    """Something that is told: ``Visibility(Toward.INGRESS, 8080, Protocol.TCP, "HTTP")``.

    :ivar toward: what the pod gets, or what it asks of others.
    :ivar port: of the server, as the server knows it.
    :ivar kind: ``"HTTP"``, over TCP; or ``"DNS"``: what the pod asks, which can be told of port 53.
    """

    toward: Toward = field(converter=Toward)
    port: int = field(converter=to_port)
    protocol: Protocol = field(converter=to_protocol)
    kind: str

    def __attrs_post_init__(self) -> None:
        if self.kind not in _KINDS:
            raise ModelError(f"{shown(self.kind)} is not read, {' and '.join(_KINDS)} are")
        if self.kind == "HTTP" and self.protocol is not Protocol.TCP:
            raise ModelError(f"{self}: HTTP is read over TCP only")
        if self.kind == "DNS" and (self.toward is not Toward.EGRESS or self.port != 53):
            raise ModelError(f"{self}: of DNS can be told what a pod asks, at port 53: write Egress/53")
        if self.protocol not in (Protocol.TCP, Protocol.UDP):
            raise ModelError(f"{self}: the protocol is TCP or UDP")

    @classmethod
    def parse(cls, text: str) -> tuple[Visibility, ...]:
        """What an item of a list says, with or without the angle brackets; DNS over ``ANY`` protocol is two.

        :raises ModelError: it says what is not known.
        """
        words = text.strip().removeprefix("<").removesuffix(">").split("/")
        toward, port, protocol, kind = words if len(words) == 4 else ("",) * 4
        if toward not in _WAYS or not _PORT.fullmatch(port):
            raise ModelError(f"{shown(text)} is no visibility: {_FORM}")
        protocols = ("TCP", "UDP") if (protocol, kind.upper()) == ("ANY", "DNS") else (protocol,)
        return tuple(cls(_WAYS[toward], int(port), each, kind.upper()) for each in protocols)

    def __str__(self) -> str:
        return f"<{self.toward.name.capitalize()}/{self.port}/{self.protocol.name}/{self.kind}>"


def to_visibility(wanted: str | Iterable[Visibility | str]) -> tuple[Visibility, ...]:
    """All that is to be told, out of a list as text or of values; sorted, each once.

    :raises ModelError: it says what is not known, or too much.
    """
    given = wanted.split(",") if isinstance(wanted, str) else list(wanted)
    if isinstance(wanted, str) and not wanted.strip():
        return ()
    if len(given) > _MOST:
        raise ModelError(f"{len(given)} visibilities: a pod has at most {_MOST}")
    found = ((each,) if isinstance(each, Visibility) else Visibility.parse(each) for each in given)
    return tuple(sorted({each for some in found for each in some}))
