"""Flows, as they are told to people and programs."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from functools import cache

from attrs import field, frozen, validators

from k8sdatapath.model import Frontend, IPAddress, Protocol
from k8sdatapath.tables.conntrack import FlowFlags

__all__ = ["ConntrackStats", "Flow", "FlowFilter", "FlowLosses", "FlowState", "Peer", "Timeouts", "state_of"]


class FlowState(StrEnum):
    """How far a flow has come."""

    OPENING = "opening"  #: TCP, not answered yet
    ESTABLISHED = "established"  #: TCP, also while only one side has ended its half
    CLOSED = "closed"  #: TCP, ended by both sides with FIN, or by either with RST
    ONE_WAY = "one-way"  #: any other protocol, not answered yet
    ANSWERED = "answered"  #: any other protocol


@cache
def state_of(protocol: int, original: int, reply: int, *, answered: bool) -> FlowState:
    """The state of a flow, from the flags of its halves."""
    if protocol not in (Protocol.TCP, Protocol.SCTP):
        return FlowState.ANSWERED if answered else FlowState.ONE_WAY
    if (original | reply) & FlowFlags.RST or original & reply & FlowFlags.FIN:
        return FlowState.CLOSED
    return FlowState.ESTABLISHED if answered else FlowState.OPENING


@frozen(kw_only=True)
class Timeouts:
    """Seconds without a packet, after which a flow is forgotten, by its state."""

    opening: int = field(default=60, validator=validators.gt(0))
    established: int = field(default=8000, validator=validators.gt(0))
    closed: int = field(default=10, validator=validators.gt(0))
    one_way: int = field(default=30, validator=validators.gt(0))
    answered: int = field(default=120, validator=validators.gt(0))

    def of(self, state: FlowState) -> int:
        """That of one state."""
        seconds: int = getattr(self, state.name.lower())
        return seconds


@frozen
class Peer:
    """One end of a flow. Printed as ``10.244.1.2:40000``."""

    address: IPAddress
    port: int

    def __str__(self) -> str:
        return f"[{self.address}]:{self.port}" if self.address.version == 6 else f"{self.address}:{self.port}"


@frozen
class Flow:
    """A flow that is translated per packet: both of its directions.

    :ivar frontend: what the client dials.
    :ivar backend: whom it reaches.
    :ivar protocol: a :class:`~k8sdatapath.model.Protocol`, or the number of another.
    :ivar age: seconds since the last packet.
    :ivar packets: of both directions.
    :ivar seen_as: the client, as the backend sees it.
    """

    client: Peer
    frontend: Peer
    backend: Peer
    protocol: int
    state: FlowState
    age: int
    packets: int
    seen_as: Peer

    @property
    def mapped(self) -> bool:
        """Whether it is of no service: only the client is seen as somebody else."""
        return self.frontend == self.backend and self.seen_as != self.client

    @property
    def protocol_name(self) -> str:
        """``TCP``, or the number where there is no name."""
        return Protocol(self.protocol).name if self.protocol in set(Protocol) else str(self.protocol)

    def __str__(self) -> str:
        return f"{self.protocol_name} {self.client} -> {self.frontend} -> {self.backend} {self.state}"


@frozen(kw_only=True)
class FlowFilter:
    """Which flows are meant: those to which everything applies that is given."""

    client: IPAddress | None = None
    frontend: Frontend | None = None
    backend: IPAddress | None = None
    protocol: int | None = None
    state: FlowState | None = None
    mapped: bool | None = None

    def matches(self, flow: Flow) -> bool:
        """Whether a flow is meant."""
        dialled = self.frontend
        return (
            self.client in (None, flow.client.address)
            and self.backend in (None, flow.backend.address)
            and self.protocol in (None, flow.protocol)
            and self.state in (None, flow.state)
            and self.mapped in (None, flow.mapped)
            and (
                dialled is None
                or (dialled.address, dialled.port, dialled.protocol)
                == (flow.frontend.address, flow.frontend.port, flow.protocol)
            )
        )


@frozen
class FlowLosses:
    """Flows that were alive when the full table forgot them, as far as their packets have told.

    A flow of datagrams that was forgotten in both directions looks like a new one, and is not counted. A
    connection that is older than the table is counted: nobody knows that it was never there.

    :ivar halves: times that one direction was forgotten and made again by the other.
    :ivar flows: flows that had to begin anew, maybe to another backend.
    """

    halves: int = 0
    flows: int = 0


@frozen
class ConntrackStats:
    """How full the table is, and with what.

    :ivar entries: directions of flows, mostly two a flow.
    :ivar capacity: how many there is room for; flows that were silent longest go before it is reached.
    :ivar states: number of flows in each state.
    :ivar losses: those that it should not have forgotten.
    """

    entries: int
    capacity: int
    states: Mapping[FlowState, int]
    losses: FlowLosses = FlowLosses()

    @property
    def pressure(self) -> float:
        """From 0, empty, to 1, full."""
        return self.entries / self.capacity
