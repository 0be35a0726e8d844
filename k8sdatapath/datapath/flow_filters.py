"""What the kernel is to tell of: filters that hold back events before they are written."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Network, IPv6Address
from typing import Any

from attrs import field, frozen

from k8sdatapath.datapath.flow_names import NOWHERE
from k8sdatapath.errors import ModelError
from k8sdatapath.layout.codecs import MAPPED
from k8sdatapath.model import IPAddress, IPNetwork, Protocol, network
from k8sdatapath.model.address import shown
from k8sdatapath.model.frontend import to_protocol
from k8sdatapath.tables.counters import outcomes
from k8sdatapath.tables.events import FilterRow, Point, outcome_index

__all__ = ["EventFilter"]


def _names(value: str | Iterable[str]) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value)


def _network(value: Any) -> IPNetwork | None:
    return None if value is None else network(value)


def _protocol(value: Any) -> Protocol | None:
    return None if value is None else to_protocol(value)


@frozen(kw_only=True)
class EventFilter:
    """What an event must have to be told; what is not given does not matter.

    ::

        EventFilter(network="10.244.1.0/24", port=53, outcomes=["DROP_POLICY_DENIED"])

    :param network: one of the ends, or the address that was dialled, is in it.
    :param port: of one of the ends, or dialled.
    :param identity: of one of the ends.
    :param outcomes: what became of it, as ``Node.counters`` has it; ``"DROP"`` stands for all drops, and
        ``"REJECT"`` for all that clients were told.
    :param points: where it was seen.
    :raises ModelError: a value that cannot be.
    """

    network: IPNetwork | None = field(default=None, converter=_network)
    port: int = field(default=0)
    protocol: Protocol | None = field(default=None, converter=_protocol)
    identity: int = field(default=0)
    outcomes: tuple[str, ...] = field(default=(), converter=_names)
    points: tuple[Point, ...] = field(default=(), converter=tuple)

    def __attrs_post_init__(self) -> None:
        if type(self.port) is not int or not 0 <= self.port < 1 << 16:
            raise ModelError(f"a port is a number up to 65535, not {shown(self.port)}")
        if type(self.identity) is not int or not 0 <= self.identity < 1 << 32:
            raise ModelError(f"an identity is a number of 32 bits, not {shown(self.identity)}")
        for point in self.points:
            if point not in Point.__members__.values():
                raise ModelError(f"{shown(point)} is not a Point")
        _outcomes(self.outcomes)

    @property
    def row(self) -> FilterRow:
        """As the kernel has it."""
        where, mask = _masked(self.network)
        return FilterRow(
            address=where,
            mask=mask,
            outcomes=_outcomes(self.outcomes),
            identity=self.identity,
            points=sum(1 << point for point in set(self.points)),
            port=self.port,
            protocol=self.protocol or 0,
        )


def _masked(network: IPNetwork | None) -> tuple[IPAddress, IPAddress]:
    if network is None:
        return NOWHERE, NOWHERE
    if isinstance(network, IPv4Network):
        return network.network_address, IPv6Address(b"\xff" * len(MAPPED) + network.netmask.packed)
    return network.network_address, network.netmask


def _outcomes(names: tuple[str, ...]) -> int:
    """One bit for each."""
    from k8sdatapath.objects import ObjectSpec

    if not names:
        return 0
    known = {each.name: each.number for each in outcomes(ObjectSpec.from_file("pod").btf)}
    found = 0
    for name in names:
        some = [number for each, number in known.items() if each == name or each.startswith(f"{name}_")]
        if name not in known and (not some or name not in ("DROP", "REJECT")):
            raise ModelError(f"{shown(name)} becomes of no packet: {', '.join(sorted(known))}")
        for number in [known[name]] if name in known else some:
            found |= 1 << outcome_index(number)
    return found
