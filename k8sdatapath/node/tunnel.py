"""The node's tunnel device: one for all other nodes."""

from __future__ import annotations

import errno
from collections.abc import Iterable
from ipaddress import ip_interface
from typing import Any, Literal

from attrs import Attribute, field, frozen

from k8sdatapath.errors import KernelError, ModelError
from k8sdatapath.model import IPAddress, address
from k8sdatapath.model.address import shown
from k8sdatapath.net.netlink import Netlink

__all__ = ["Tunnel"]

_PORTS = {"vxlan": 8472, "geneve": 6081}
_HEADERS = {"vxlan": 16, "geneve": 16}  # UDP and the tunnel's own
_ETHERNET, _IPV4, _IPV6 = 14, 20, 40
_DEVICE_GONE = (errno.ENODEV, errno.ENXIO)


def _to_addresses(values: Iterable[Any]) -> tuple[IPAddress, ...]:
    if isinstance(values, str):
        raise ModelError(f"addresses is an iterable of addresses; {shown(values)} is a single one")
    return tuple(map(address, values))


def _is_kind(_: object, attribute: Attribute[str], value: str) -> None:
    if value not in _PORTS:
        raise ModelError(f"{shown(value)} is no kind of tunnel: there are {' and '.join(_PORTS)}")


def _is_number(_: object, attribute: Attribute[int], value: int) -> None:
    if type(value) is not int or not 0 <= value <= 65535:
        raise ModelError(f"{shown(value)} is no {attribute.name} of a tunnel (0 to 65535)")


@frozen(kw_only=True)
class Tunnel:
    """How packets to pods of other nodes travel.

    :ivar kind: ``"vxlan"`` or ``"geneve"``.
    :ivar device: its name. One that is there already must be of this kind.
    :ivar addresses: of the node itself, among those of its pods: under these it talks to pods elsewhere, and
        their answers come back through the tunnel.
    :ivar port: UDP, the same on every node; 0: 8472 for VXLAN and 6081 for Geneve.
    :ivar ipv6: nodes reach each other by IPv6.
    :ivar mtu: of the device, and so of what pods may send; 0: what is left of the uplinks' least.
    """

    kind: Literal["vxlan", "geneve"] = field(default="vxlan", validator=_is_kind)
    device: str = "kdtunnel"
    addresses: tuple[IPAddress, ...] = field(default=(), converter=_to_addresses)
    port: int = field(default=0, validator=_is_number)
    ipv6: bool = False
    mtu: int = field(default=0, validator=_is_number)

    @property
    def udp_port(self) -> int:
        """The port that it is, said or not."""
        return self.port or _PORTS[self.kind]

    @property
    def overhead(self) -> int:
        """By how many bytes a packet grows."""
        return (_IPV6 if self.ipv6 else _IPV4) + _HEADERS[self.kind] + _ETHERNET

    def make(self, uplinks: Iterable[str]) -> bool:
        """See that the device is there, in the calling thread's namespace; whether it had to be made.

        :raises NotSupportedError: the kernel has no devices of this kind.
        :raises KernelError: a device of another kind has the name.
        """
        with Netlink() as net:
            made = not self._is_there(net)
            if made:
                self._create(net, uplinks)
            for each in self.addresses:
                self._add_address(net, each)
            net.set_up(self.device)
        return made

    def remove(self) -> None:
        """Take the device away, from the calling thread's namespace."""
        with Netlink() as net:
            net.remove_device(self.device)

    def _is_there(self, net: Netlink) -> bool:
        try:
            kind = net.kind(self.device)
        except KernelError as error:
            if error.errno not in _DEVICE_GONE:
                raise
            return False
        if kind != self.kind:
            raise KernelError("take over tunnel", self.device, errno.EEXIST, f"it is a {kind} device")
        return True

    def _create(self, net: Netlink, uplinks: Iterable[str]) -> None:
        mtu = self.mtu or min((net.mtu(each) for each in uplinks), default=1500) - self.overhead
        net.create_tunnel(self.kind, self.device, port=self.udp_port, mtu=mtu)

    def _add_address(self, net: Netlink, each: IPAddress) -> None:
        try:
            net.add_address(self.device, ip_interface(each))
        except KernelError as error:
            if error.errno != errno.EEXIST:
                raise


def to_tunnel(value: Tunnel | str | None) -> Tunnel | None:
    """Make a tunnel of its kind alone: ``"vxlan"``.

    :raises ModelError: it is no kind.
    """
    if value is None or isinstance(value, Tunnel):
        return value
    return Tunnel(kind=value)  # type: ignore[arg-type]
