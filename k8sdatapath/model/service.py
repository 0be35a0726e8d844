"""A service: what clients dial, and who answers."""

from __future__ import annotations

import re
from collections.abc import Iterable
from enum import IntEnum
from typing import TypeVar

from attrs import field, frozen

from k8sdatapath.errors import ModelError
from k8sdatapath.model.address import IPAddress, shown
from k8sdatapath.model.address import address as to_address
from k8sdatapath.model.address import port as to_port

__all__ = ["Backend", "BackendState", "Frontend", "Protocol", "Selection", "Service"]

E = TypeVar("E", bound=IntEnum)

_FRONTEND = re.compile(r"(?:\[([^]]*:[^]]*)\]|([^][:]+)):(\d{1,5})(?:/(\w+))?", re.ASCII)


class Protocol(IntEnum):
    """A transport protocol, by its IP protocol number."""

    TCP = 6
    UDP = 17
    SCTP = 132


class Selection(IntEnum):
    """How a new flow is given a backend."""

    RANDOM = 0
    """Any of them, each as likely."""
    MAGLEV = 1
    """The one that a hash of the flow names: the same on every node, and for most flows after a change."""


class BackendState(IntEnum):
    """Whether a backend is given new flows. Those it has, it keeps in either state."""

    ACTIVE = 1
    TERMINATING = 2
    """On its way out but still serving: given new flows only while no backend is active."""


def to_protocol(value: Protocol | str | int) -> Protocol:
    """Make a protocol of its name or number.

    :raises ModelError: unknown.
    """
    return value if type(value) is Protocol else _member(Protocol, value, "protocol")


def to_selection(value: Selection | str | int) -> Selection:
    """Make a selection of its name (``"maglev"``) or number.

    :raises ModelError: unknown.
    """
    return value if type(value) is Selection else _member(Selection, value, "selection")


def to_state(value: BackendState | str | int) -> BackendState:
    """Make a backend state of its name (``"terminating"``) or number.

    :raises ModelError: unknown.
    """
    return value if type(value) is BackendState else _member(BackendState, value, "backend state")


def _to_weight(value: int) -> int:
    if type(value) is int and 0 <= value < 65536:
        return value
    raise ModelError(f"{shown(value)} is not a weight (0 to 65535)")


def _to_name(value: str) -> str:
    if isinstance(value, str):
        return value
    raise ModelError(f"{shown(value)} is not a name")


@frozen
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
        return f"{_place(self.address, self.port)}/{self.protocol.name}"


@frozen
class Backend:
    """Who answers: one address and port behind a service.

    :param weight: its share of new flows, relative to the others'. 0 gives it none.
    """

    address: IPAddress = field(converter=to_address)
    port: int = field(converter=to_port)
    state: BackendState = field(default=BackendState.ACTIVE, converter=to_state, kw_only=True)
    weight: int = field(default=1, converter=_to_weight, kw_only=True)

    def __str__(self) -> str:
        return _place(self.address, self.port)


def _to_backends(backends: Iterable[Backend]) -> tuple[Backend, ...]:
    """Sort them: a service has a set of backends, so order must not make two services differ."""
    if isinstance(backends, Backend):
        raise ModelError("backends is an iterable of Backend; this is a single one")
    places: dict[tuple[int, int], Backend] = {}
    for count, backend in enumerate(backends, 1):
        if type(backend) is not Backend:
            raise ModelError(f"{shown(backend)} is not a Backend")
        places[int(backend.address), backend.port] = backend
        if len(places) < count:
            raise ModelError(f"backend {backend} is given twice")
    return tuple(places[place] for place in sorted(places))


@frozen
class Service:
    """One port of one Kubernetes Service in one address family: a frontend and the backends behind it.

    ::

        Service("10.96.0.10", 80, backends=[Backend("10.244.1.2", 8080)])
        Service("fd00:10:96::a", 53, "UDP", backends=dns, name="kube-system/dns:dns", selection="maglev")

    :param backends: a set, kept in the order of their addresses. None is allowed: connections are refused.
    :param name: for people; Kubernetes' are ``namespace/name:port``.
    :raises ModelError: a value that cannot be, a backend given twice or of the other address family.
    """

    address: IPAddress = field(converter=to_address)
    port: int = field(converter=to_port)
    protocol: Protocol = field(default=Protocol.TCP, converter=to_protocol)
    backends: tuple[Backend, ...] = field(default=(), converter=_to_backends, kw_only=True)
    name: str = field(default="", converter=_to_name, kw_only=True)
    selection: Selection = field(default=Selection.RANDOM, converter=to_selection, kw_only=True)

    def __attrs_post_init__(self) -> None:
        family = type(self.address)
        for backend in self.backends:
            if type(backend.address) is not family:
                raise ModelError(
                    f"backend {backend} is IPv{backend.address.version}, "
                    f"its service {self.frontend} IPv{self.address.version}"
                )

    @property
    def frontend(self) -> Frontend:
        """What its clients dial."""
        return Frontend(self.address, self.port, self.protocol)

    @property
    def candidates(self) -> tuple[Backend, ...]:
        """The backends that new flows may be given: the active ones, or if there is none, the terminating.

        Those of weight 0 are never among them.
        """
        able = [backend for backend in self.backends if backend.weight]
        active = [backend for backend in able if backend.state is BackendState.ACTIVE]
        return tuple(active or able)

    def __str__(self) -> str:
        return f"{self.name} ({self.frontend})" if self.name else str(self.frontend)


def _member(kind: type[E], value: object, what: str) -> E:
    known = kind.__members__
    if isinstance(value, str) and value.upper() in known:
        return known[value.upper()]
    if isinstance(value, int) and not isinstance(value, bool) and value in known.values():
        return kind(value)
    raise ModelError(f"{shown(value)} is not a {what} ({', '.join(known)})")


def _place(address: IPAddress, port: int) -> str:
    return f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}"
