"""Devices, addresses, routes and neighbours of the calling thread's network namespace."""

from __future__ import annotations

import errno
import fcntl
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
    ip_address,
    ip_network,
)
from pathlib import Path
from typing import Any

from k8sdatapath.errors import KernelError, NotSupportedError
from k8sdatapath.net.netns import NetNs
from k8sdatapath.pybpf.calls import kernel_error
from k8sdatapath.resource import Resource

_IFA_F_NODAD = 0x02
_RTNH_F_ONLINK = 0x04
_RT_SCOPE_UNIVERSE = 0
_RT_TABLE_MAIN = 254
_IFA_SECONDARY = 0x01  # of IPv6: temporary
_IFA_UNUSABLE = 0x08 | 0x20 | 0x40  # duplicate, deprecated, tentative
_NUD_PERMANENT = 0x80
_ADDR_GEN_NONE = 1
_SIOCGIFHWADDR = 0x8927
_ARPHRD_ETHER, _ARPHRD_LOOPBACK = 1, 772


class Netlink(Resource):
    """A netlink socket in the namespace of the thread that makes it.

    ::

        def wire():
            with Netlink() as net:
                net.create_veth("one", "eth0", peer_netns=pod)
                net.add_route(ip_network("10.244.1.2/32"), device="one")

        node.call(wire)
    """

    def __init__(self) -> None:
        from pyroute2 import IPRoute, NetlinkError  # a quarter of a second, paid on first use

        self._route = IPRoute()
        self._error = NetlinkError

    def create_veth(
        self,
        name: str,
        peer: str,
        *,
        peer_netns: NetNs | None = None,
        mac: str = "",
        peer_mac: str = "",
    ) -> None:
        """A pair of devices; this end goes up, the other may be born in another namespace."""
        other: dict[str, Any] = {"ifname": peer}
        if peer_netns is not None:
            other["net_ns_fd"] = peer_netns.fileno()
        if peer_mac:
            other["address"] = peer_mac
        here = {"address": mac} if mac else {}
        with self._errors("create veth", f"{name} - {peer}"):
            self._route.link("add", ifname=name, kind="veth", state="up", peer=other, **here)

    def create_tunnel(self, kind: str, name: str, *, port: int, mtu: int) -> None:
        """A tunnel device that is told with every packet where it goes, and asks no neighbour anything.

        It has no address of its own, not even a local one, so that it says nothing by itself.

        :param kind: ``"vxlan"`` or ``"geneve"``.
        :param port: UDP.
        :raises NotSupportedError: the kernel has no devices of this kind.
        """
        settings = {f"{kind}_collect_metadata": True, f"{kind}_port": port}
        if kind == "vxlan":
            settings["vxlan_learning"] = False
        try:
            with self._errors(f"create {kind} device", name):
                self._route.link("add", ifname=name, kind=kind, mtu=mtu, **settings)
                self._route.link("set", index=link_index(name), arp=False)
        except KernelError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise
            hint = f"CONFIG_{kind.upper()} is not set"
            raise NotSupportedError(f"{kind} devices", subject=name, hint=hint) from None
        set_sysctl(f"ipv6/conf/{name}/addr_gen_mode", _ADDR_GEN_NONE)

    def remove_device(self, name: str) -> None:
        """Take a device away, and with a veth its other end."""
        with self._errors("remove device", name):
            self._route.link("del", index=link_index(name))

    def mtu(self, name: str) -> int:
        """The longest packet that fits a device, in bytes."""
        index = link_index(name)
        with self._errors("ask for the MTU of", name):
            (link,) = self._route.link("get", index=index)
        return int(link.get_attr("IFLA_MTU"))

    def set_mtu(self, name: str, mtu: int) -> None:
        """Set the longest packet that fits a device, in bytes."""
        with self._errors(f"set MTU {mtu}", name):
            self._route.link("set", index=link_index(name), mtu=mtu)

    def create_bridge(self, name: str) -> None:
        """A bridge that forwards from the first packet on: no spanning tree, no multicast snooping."""
        with self._errors("create bridge", name):
            self._route.link(
                "add", ifname=name, kind="bridge", state="up", br_stp_state=0, br_mcast_snooping=0
            )

    def set_up(self, name: str) -> None:
        """Bring a device up."""
        with self._errors("bring up", name):
            self._route.link("set", index=link_index(name), state="up")

    def wait_up(self, name: str, *, timeout: float = 5.0) -> None:
        """Wait until a device can send.

        The end of a veth that went up first drops what it is given until the kernel's link watch has
        seen the carrier. Asking for the state makes Linux 6.8 and newer catch up at once.
        """
        deadline = time.monotonic() + timeout
        index = link_index(name)
        while True:
            with self._errors("ask for the state of", name):
                (link,) = self._route.link("get", index=index)
            if link.get("operstate") == "UP":
                return
            if time.monotonic() > deadline:
                raise KernelError("wait for a carrier on", name, errno.ETIMEDOUT)
            time.sleep(0.001)

    def kind(self, name: str) -> str:
        """What a device is, such as ``"veth"`` or ``"bridge"``; empty for one that is not virtual."""
        index = link_index(name)
        with self._errors("ask for the kind of", name):
            (link,) = self._route.link("get", index=index)
        info = link.get_attr("IFLA_LINKINFO")
        return str(info.get_attr("IFLA_INFO_KIND") or "") if info else ""

    def set_master(self, name: str, bridge: str) -> None:
        """Make a device a port of a bridge."""
        with self._errors(f"add to bridge {bridge}", name):
            self._route.link("set", index=link_index(name), master=link_index(bridge))

    def add_address(self, name: str, address: IPv4Interface | IPv6Interface) -> None:
        """Give a device an address, usable at once: no duplicate address detection."""
        nodad = {"flags": _IFA_F_NODAD} if address.version == 6 else {}
        prefixlen = address.network.prefixlen
        with self._errors(f"add {address}", name):
            self._route.addr(
                "add", index=link_index(name), address=str(address.ip), prefixlen=prefixlen, **nodad
            )

    def addresses(self) -> tuple[IPv4Address | IPv6Address, ...]:
        """Those that others can reach: neither of the loopback device nor good for one link only."""
        with self._errors("list", "addresses"):
            rows = [*self._route.get_addr(scope=_RT_SCOPE_UNIVERSE)]
        found = (row.get("IFA_LOCAL") or row.get("IFA_ADDRESS") for row in rows)
        return tuple(dict.fromkeys(ip_address(each) for each in found))

    def source_addresses(self, name: str) -> tuple[IPv4Address | IPv6Address, ...]:
        """Global addresses of a device that new flows may have: the oldest first, so none that is added;
        and those that are secondary or temporary after the others.
        """
        with self._errors("list addresses", name):
            rows = [*self._route.get_addr(index=link_index(name), scope=_RT_SCOPE_UNIVERSE)]
        usable = [row for row in rows if not _flags(row) & _IFA_UNUSABLE]
        old = [row for row in usable if row["family"] == socket.AF_INET]
        old += [row for row in reversed(usable) if row["family"] == socket.AF_INET6]  # came newest first
        old.sort(key=lambda row: (_flags(row) & _IFA_SECONDARY, row.get("IFA_CACHEINFO")["cstamp"]))
        return tuple(ip_address(row.get("IFA_LOCAL") or row.get("IFA_ADDRESS")) for row in old)

    def device_to(self, address: IPv4Address | IPv6Address) -> int:
        """The index of the device that packets of this namespace to an address leave by.

        :raises KernelError: there is no route to it.
        """
        with self._errors("find the route to", str(address)):
            (row,) = self._route.route("get", dst=str(address))
        return int(row.get("RTA_OIF"))

    def add_route(
        self,
        network: IPv4Network | IPv6Network,
        *,
        device: str = "",
        via: IPv4Address | IPv6Address | None = None,
        protocol: int = 0,
    ) -> None:
        """Route a network to a device, through a gateway, or both: then the gateway need not be on-link.

        :param protocol: who makes it, see rtnetlink(7); 0: whoever.
        """
        with self._errors("add route", str(network)):
            self._route.route("add", **_route(network, device, via, protocol))

    def replace_route(
        self,
        network: IPv4Network | IPv6Network,
        *,
        device: str = "",
        via: IPv4Address | IPv6Address | None = None,
        protocol: int = 0,
    ) -> None:
        """Route a network as :meth:`add_route` does, whatever led there before."""
        with self._errors("replace route", str(network)):
            self._route.route("replace", **_route(network, device, via, protocol))

    def remove_route(
        self, network: IPv4Network | IPv6Network, *, device: str = "", protocol: int = 0
    ) -> None:
        """Take a route away, if it is there: that to this device, or of this protocol."""
        try:
            with self._errors("remove route", str(network)):
                self._route.route("del", **_route(network, device, None, protocol))
        except KernelError as error:
            if error.errno != errno.ESRCH:
                raise

    def gateways(self, protocol: int) -> dict[IPv4Network | IPv6Network, IPv4Address | IPv6Address]:
        """Networks that routes of this protocol lead to, of the main table, and through whom."""
        with self._errors("list", "routes"):
            families = (socket.AF_INET, socket.AF_INET6)
            rows = [row for each in families for row in self._route.get_routes(family=each, proto=protocol)]
        return {
            ip_network(f"{row.get('RTA_DST')}/{row['dst_len']}"): ip_address(row.get("RTA_GATEWAY"))
            for row in rows
            if row.get("RTA_TABLE") == _RT_TABLE_MAIN and row.get("RTA_GATEWAY") and row.get("RTA_DST")
        }

    def add_neighbour(self, name: str, address: IPv4Address | IPv6Address, mac: str) -> None:
        """Fix the link address of a neighbour, so that nobody ever asks for it."""
        with self._errors(f"add neighbour {address}", name):
            self._route.neigh(
                "add", ifindex=link_index(name), dst=str(address), lladdr=mac, state=_NUD_PERMANENT
            )

    @contextmanager
    def _errors(self, op: str, subject: str) -> Iterator[None]:
        try:
            yield
        except self._error as error:
            raise kernel_error(error.code, op, subject) from None

    def close(self) -> None:
        """Close the socket."""
        self._route.close()


def _route(
    network: IPv4Network | IPv6Network, device: str, via: IPv4Address | IPv6Address | None, protocol: int
) -> dict[str, Any]:
    route: dict[str, Any] = {"dst": str(network)}
    if protocol:
        route["proto"] = protocol
    if device:
        route["oif"] = link_index(device)
    if via:
        route["gateway"] = str(via)
    if device and via:
        route["flags"] = _RTNH_F_ONLINK
    return route


def _flags(row: Any) -> int:
    """Those of an address."""
    return int(row.get("IFA_FLAGS", row["flags"]))


def link_index(name: str) -> int:
    """The number of a device of the calling thread's namespace."""
    try:
        return socket.if_nametoindex(name)
    except OSError:  # without a number
        raise kernel_error(errno.ENODEV, "find device", name) from None


def has_ethernet(name: str) -> bool:
    """Whether packets of a device of the calling thread's namespace begin with an Ethernet header."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            answer = fcntl.ioctl(sock, _SIOCGIFHWADDR, struct.pack("15s25x", name.encode()))
        except OSError as error:
            raise kernel_error(error.errno or 0, "find device", name) from None
    return struct.unpack_from("=H", answer, 16)[0] in (_ARPHRD_ETHER, _ARPHRD_LOOPBACK)


def set_sysctl(name: str, value: int) -> None:
    """Set ``net/...`` for the calling thread's namespace, e.g. ``set_sysctl("ipv4/ip_forward", 1)``."""
    try:
        Path("/proc/sys/net", name).write_text(str(value))
    except OSError as error:
        raise kernel_error(error.errno or 0, "set sysctl", f"net/{name}") from None
