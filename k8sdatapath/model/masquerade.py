"""Masquerade: which traffic of pods leaves a node under an address of the node's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from attrs import field, frozen

from k8sdatapath.errors import ModelError
from k8sdatapath.model.address import IPAddress, IPNetwork, network, shown
from k8sdatapath.model.address import address as to_address

__all__ = ["Masquerade"]


def _names(devices: str | Iterable[str]) -> tuple[str, ...]:
    return (devices,) if isinstance(devices, str) else tuple(devices)


def _networks(values: Iterable[Any]) -> tuple[IPNetwork, ...]:
    if isinstance(values, str):
        raise ModelError(f"a list of networks is wanted; {shown(values)} is a single one")
    return tuple(sorted({network(value) for value in values}, key=lambda each: (each.version, each)))


def _sources(given: Mapping[str, Any]) -> dict[str, tuple[IPAddress, ...]]:
    found = {}
    for device, values in given.items():
        addresses = tuple(to_address(each) for each in ([values] if isinstance(values, str) else values))
        if len({each.version for each in addresses}) < len(addresses):
            raise ModelError(
                f"{device}: one source address of each family, not {', '.join(map(str, addresses))}"
            )
        found[device] = addresses
    return found


def _egress(given: Mapping[Any, Any]) -> dict[IPNetwork, IPAddress]:
    found = {network(pods): to_address(leaves_as) for pods, leaves_as in given.items()}
    for pods, leaves_as in found.items():
        if pods.version != leaves_as.version:
            raise ModelError(f"{pods} cannot leave as {leaves_as}, which is of the other family")
    return found


@frozen(kw_only=True)
class Masquerade:
    """What pods send to the world leaves under an address of the node.

    ::

        Masquerade(devices="eth0", exclude=["10.0.0.0/8", "fd00::/8"])

    :ivar devices: the ways to the world; none are all uplinks of the node.
    :ivar sources: addresses to leave a device under, at most one of each family. Without them it is, of each
        family, the first global address that the kernel lists for the device and has not deprecated.
    :ivar exclude: destinations that know pods by their own addresses: networks of pods and nodes, and those
        with routes to pods. Addresses that are good for one link, and groups, are excluded always.
    :ivar routable: pods that keep their own addresses everywhere.
    :ivar egress: pods, or networks of them, that leave under an address of their own. It has to lead back to
        the node.
    """

    devices: tuple[str, ...] = field(default=(), converter=_names)
    sources: Mapping[str, tuple[IPAddress, ...]] = field(factory=dict, converter=_sources)
    exclude: tuple[IPNetwork, ...] = field(default=(), converter=_networks)
    routable: tuple[IPNetwork, ...] = field(default=(), converter=_networks)
    egress: Mapping[IPNetwork, IPAddress] = field(factory=dict, converter=_egress)

    def __attrs_post_init__(self) -> None:
        both = set(self.routable) & set(self.egress)
        if both:
            raise ModelError(
                f"{', '.join(map(str, both))} cannot both keep its address and leave under another"
            )
