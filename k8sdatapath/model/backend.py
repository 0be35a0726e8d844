"""Backends: who answers."""

from __future__ import annotations

from enum import IntEnum

from attrs import field, frozen

from k8sdatapath.errors import ModelError
from k8sdatapath.model.address import IPAddress, shown
from k8sdatapath.model.address import address as to_address
from k8sdatapath.model.address import port as to_port
from k8sdatapath.model.enums import flag, member
from k8sdatapath.model.frontend import place

__all__ = ["Backend", "BackendState", "Scope", "backend_key"]


class BackendState(IntEnum):
    """Whether a backend is given new flows. Those it has, it keeps in either state."""

    ACTIVE = 1
    TERMINATING = 2
    """On its way out but still serving: given new flows only while no backend is active."""


class Scope(IntEnum):
    """From which of the two sets of a service's backends a new flow is given one."""

    CLUSTER = 0
    """Those that anybody may be given."""
    LOCAL = 1
    """Those on this node: for frontends that keep their traffic on the node it came to."""


def to_state(value: BackendState | str | int) -> BackendState:
    """Make a backend state of its name (``"terminating"``) or number.

    :raises ModelError: unknown.
    """
    return value if type(value) is BackendState else member(BackendState, value, "backend state")


def _to_weight(value: int) -> int:
    if type(value) is int and 0 <= value < 65536:
        return value
    raise ModelError(f"{shown(value)} is not a weight (0 to 65535)")


@frozen
class Backend:
    """Who answers: one address and port behind a service.

    In neither set it keeps the flows that it has, and is given no more.

    :param weight: its share of new flows, relative to the others'. 0 gives it none.
    :param cluster: whether it is in the set of ``Scope.CLUSTER``.
    :param local: whether it is in the set of ``Scope.LOCAL``.
    """

    address: IPAddress = field(converter=to_address)
    port: int = field(converter=to_port)
    state: BackendState = field(default=BackendState.ACTIVE, converter=to_state, kw_only=True)
    weight: int = field(default=1, converter=_to_weight, kw_only=True)
    cluster: bool = field(default=True, converter=flag, kw_only=True)
    local: bool = field(default=False, converter=flag, kw_only=True)

    key: int = field(init=False, eq=False, repr=False)
    """Address and port, by which it is looked up: see :func:`backend_key`."""
    role: int = field(init=False, eq=False, repr=False)
    """All that says which new flows it is given, in one number that is quick to compare."""

    def __attrs_post_init__(self) -> None:
        put = object.__setattr__
        put(self, "key", backend_key(self.address, self.port))
        put(self, "role", self.state | self.cluster << 2 | self.local << 3 | self.weight << 4)

    def __str__(self) -> str:
        return place(self.address, self.port)


def backend_key(address: IPAddress, port: int) -> int:
    """Address and port in one number, which is far quicker to look up than an address."""
    return int(address) << 16 | port
