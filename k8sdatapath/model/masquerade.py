"""Masquerade: which traffic of pods leaves a node under an address of the node's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from attrs import field, frozen

from k8sdatapath.errors import ModelError
from k8sdatapath.model.address import IPAddress, IPNetwork, is_special, network, port, shown
from k8sdatapath.model.address import address as to_address
from k8sdatapath.model.frontend import Protocol, to_protocol

__all__ = ["HELPED", "Masquerade", "egress_address", "to_ports"]


def _names(devices: str | Iterable[str]) -> tuple[str, ...]:
    return (devices,) if isinstance(devices, str) else tuple(devices)


def _networks(values: Iterable[Any]) -> tuple[IPNetwork, ...]:
    if isinstance(values, str):
        raise ModelError(f"a list of networks is wanted; {shown(values)} is a single one")
    return tuple(sorted({network(value) for value in values}, key=lambda each: (each.version, each)))


def _mapping(name: str, given: Mapping[Any, Any], what: str) -> Mapping[Any, Any]:
    if not isinstance(given, Mapping):
        raise ModelError(f"{name} is a mapping of {what}, not {shown(given)}")
    return given


def egress_address(value: Any) -> IPAddress:
    """Make an address that packets to the world may leave under.

    :raises ModelError: it is none, or nobody in the world could answer it.
    """
    found = to_address(value)
    if is_special(found):
        raise ModelError(f"nothing leaves as {found}: who would be answered?")
    return found


def _sources(given: Mapping[str, Any]) -> dict[str, tuple[IPAddress, ...]]:
    found = {}
    for device, values in _mapping("sources", given, "devices to addresses").items():
        addresses = tuple(egress_address(each) for each in ([values] if isinstance(values, str) else values))
        if len({each.version for each in addresses}) < len(addresses):
            raise ModelError(
                f"{device}: one source address of each family, not {', '.join(map(str, addresses))}"
            )
        found[device] = addresses
    return found


def _egress(given: Mapping[Any, Any]) -> dict[IPNetwork, IPAddress]:
    given = _mapping("egress", given, "pods to addresses")
    found = {network(pods): egress_address(leaves_as) for pods, leaves_as in given.items()}
    if len(found) < len(given):
        raise ModelError("egress names some pods twice: 10.0.0.1/24 is 10.0.0.0/24")
    for pods, leaves_as in found.items():
        if pods.version != leaves_as.version:
            raise ModelError(f"{pods} cannot leave as {leaves_as}, which is of the other family")
    return found


#: Ports of protocols whose payload has addresses in it, or which dial back: netfilter has helpers for them.
HELPED: Mapping[tuple[int, int], str] = {
    (Protocol.TCP, 21): "FTP in active mode",
    (Protocol.UDP, 69): "TFTP",
    (Protocol.UDP, 137): "NetBIOS names",
    (Protocol.UDP, 161): "SNMP",
    (Protocol.UDP, 1719): "H.323",
    (Protocol.TCP, 1720): "H.323",
    (Protocol.TCP, 1723): "PPTP",
    (Protocol.TCP, 5060): "SIP",
    (Protocol.UDP, 5060): "SIP",
    (Protocol.TCP, 6566): "SANE",
    (Protocol.TCP, 6667): "IRC's DCC",
    (Protocol.UDP, 10080): "Amanda",
}


def helped(protocol: int, port: int) -> str:
    """What does not work without a helper at a port; empty: nothing is known of that."""
    return HELPED.get((protocol, port), "")


def to_ports(given: Iterable[Any]) -> tuple[tuple[Protocol, int], ...]:
    """Ports with their protocols, as people write them: ``21/TCP``."""
    if isinstance(given, str):
        raise ModelError(f"a list of ports is wanted; {shown(given)} is a single one")
    return tuple(sorted({_port(each) for each in given}, key=lambda each: (each[1], each[0].value)))


def _port(given: Any) -> tuple[Protocol, int]:
    """``21`` and ``"21"`` are TCP's, ``"69/UDP"`` is not; a pair of both will do as well."""
    if isinstance(given, tuple):
        protocol, number = given
    else:
        number, _, protocol = str(given).partition("/")
    try:
        return to_protocol(protocol or "TCP"), port(int(number))
    except ValueError as error:
        raise ModelError(f"{shown(given)} is no port, as in 21/TCP: {error}") from None


def _families(given: Iterable[int]) -> tuple[int, ...]:
    found = tuple(sorted(set(given)))
    if not set(found) <= {4, 6}:
        raise ModelError(f"families of addresses are 4 and 6, not {shown(given)}")
    return found


@frozen(kw_only=True)
class Masquerade:
    """What pods send to the world leaves under an address of the node.

    ::

        Masquerade(devices="eth0", exclude=["10.0.0.0/8", "fd00::/8"])

    :ivar devices: the ways to the world; none are all uplinks of the node.
    :ivar sources: addresses to leave a device under, at most one of each family. Without them it is, of each
        family, the oldest of the device's global addresses that are not deprecated; secondary and temporary
        ones come after all others.
    :ivar exclude: destinations that know pods by their own addresses: networks of pods and nodes, and those
        with routes to pods. Groups are excluded always, and addresses that are good for one link as well.
    :ivar link_local: families, 4 or 6, of which addresses that are good for one link are not excluded.
    :ivar routable: pods that keep their own addresses everywhere.
    :ivar egress: pods, or networks of them, that leave under an address of their own. It has to lead back to
        the node.
    :ivar netfilter: ports to which flows are left to netfilter, as in ``["21/TCP"]``: of protocols that need
        its helpers, see :data:`HELPED`. It has to have rules for them: what still has the pod's address
        when it leaves is dropped.
    """

    devices: tuple[str, ...] = field(default=(), converter=_names)
    sources: Mapping[str, tuple[IPAddress, ...]] = field(factory=dict, converter=_sources)
    exclude: tuple[IPNetwork, ...] = field(default=(), converter=_networks)
    link_local: tuple[int, ...] = field(default=(), converter=_families)
    routable: tuple[IPNetwork, ...] = field(default=(), converter=_networks)
    egress: Mapping[IPNetwork, IPAddress] = field(factory=dict, converter=_egress)
    netfilter: tuple[tuple[Protocol, int], ...] = field(default=(), converter=to_ports)

    def __attrs_post_init__(self) -> None:
        both = set(self.routable) & set(self.egress)
        if both:
            raise ModelError(
                f"{', '.join(map(str, both))} cannot both keep its address and leave under another"
            )
