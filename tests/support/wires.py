"""A node and pods without a lab and without any CNI: namespaces, veths, routes, bridges."""

from __future__ import annotations

import secrets
from contextlib import ExitStack
from ipaddress import ip_address, ip_interface, ip_network
from types import TracebackType
from typing import Self

from k8sdatapath.net.netlink import Netlink, link_index, set_sysctl
from k8sdatapath.net.netns import NetNs

GATEWAYS = ("169.254.1.1", "fe80::1")
ANYWHERE = (ip_network("0.0.0.0/0"), ip_network("::/0"))
GATEWAY_MAC = "ee:ee:ee:ee:ee:ee"


class Wires:
    """One node namespace; pods are wired to it as a test says, and all of it ends with the ``with``."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self.name = f"kdt-{secrets.token_hex(3)}"
        self.node = self._namespace("node")
        self.node.call(_prepare_node)

    def namespace(self, name: str, *, router: bool = False) -> NetNs:
        """Another one, with nothing but loopback."""
        netns = self._namespace(name)
        if router:
            netns.call(_prepare_node)
        return netns

    def routed(self, device: str, pod: NetNs, *addresses: str, mac: str) -> None:
        """A veth with a host route to each address: no bridge, no neighbour entries."""
        self.node.call(_veth, device, pod, mac)
        self.node.call(_routes, device, addresses)
        pod.call(_set_up_pod, addresses)

    def bridged(self, device: str, bridge: str, pod: NetNs, *addresses: str, mac: str) -> None:
        """A veth whose node end is a port of a bridge."""
        self.node.call(_veth, device, pod, mac, "")
        self.node.call(_port, device, bridge)
        pod.call(_set_up_pod, addresses)

    def bridge(self, name: str, *addresses: str) -> None:
        self.node.call(_bridge, name, addresses)

    def uplink(
        self, device: str, outside: NetNs, *addresses: str, out: tuple[str, ...], end: str = "eth0"
    ) -> None:
        """A veth to a host outside, called ``end`` there. The first of several is its way to the rest."""
        self.node.call(_veth, device, outside, "", "", end)
        outside.call(_addresses, end, out)
        self.node.call(_addresses, device, addresses)
        if end == "eth0":
            outside.call(_default_routes, tuple(each.partition("/")[0] for each in addresses))
        self.node.call(_default_routes, tuple(each.partition("/")[0] for each in out))
        for netns, name in ((self.node, device), (outside, end)):
            netns.call(_wait_up, name)

    def address(self, device: str, address: str) -> None:
        self.node.call(_addresses, device, (address,))

    def dress(self, pod: NetNs, *addresses: str) -> None:
        """Give a pod addresses that no route of the node leads to."""
        pod.call(_set_up_pod, addresses)

    def default_route(self, pod: NetNs, *gateways: str) -> None:
        pod.call(_default_routes, gateways)

    def tap(self, device: str, *addresses: str) -> None:
        """A device that has no other end, as virtual machines have, with host routes to it."""
        self.node.call(_tap, device)
        self.node.call(_routes, device, addresses)

    def neighbour(self, device: str, address: str, mac: str) -> None:
        self.node.call(_neighbour, device, address, mac)

    def delete(self, device: str) -> None:
        self.node.call(_delete, device)

    def reroute(self, address: str, device: str) -> None:
        self.node.call(_reroute, address, device)

    def unroute(self, device: str, *addresses: str) -> None:
        self.node.call(_remove_routes, device, addresses)

    def _namespace(self, name: str) -> NetNs:
        return self._stack.enter_context(NetNs.create(f"{self.name}-{name}"))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._stack.close()


def _prepare_node() -> None:
    for name, value in {
        "ipv4/ip_forward": 1,
        "ipv6/conf/all/forwarding": 1,
        "ipv6/conf/default/accept_dad": 0,
        "ipv4/conf/all/rp_filter": 0,
        "ipv4/conf/default/rp_filter": 0,
    }.items():
        set_sysctl(name, value)
    with Netlink() as net:
        net.set_up("lo")


def _veth(device: str, pod: NetNs, mac: str, host_mac: str = GATEWAY_MAC, end: str = "eth0") -> None:
    with Netlink() as net:
        net.create_veth(device, end, peer_netns=pod, mac=host_mac, peer_mac=mac)


def _routes(device: str, addresses: tuple[str, ...]) -> None:
    with Netlink() as net:
        for address in addresses:
            net.add_route(ip_network(address), device=device)


def _remove_routes(device: str, addresses: tuple[str, ...]) -> None:
    with Netlink() as net:
        for address in addresses:
            net.remove_route(ip_network(address), device=device)


def _bridge(name: str, addresses: tuple[str, ...]) -> None:
    with Netlink() as net:
        net.create_bridge(name)
        for address in addresses:
            net.add_address(name, ip_interface(address))


def _port(device: str, bridge: str) -> None:
    with Netlink() as net:
        net.set_master(device, bridge)


def _set_up_pod(addresses: tuple[str, ...]) -> None:
    set_sysctl("ipv6/conf/eth0/accept_dad", 0)
    with Netlink() as net:
        net.set_up("lo")
        net.set_up("eth0")
        interfaces = [ip_interface(address) for address in addresses]
        for interface in interfaces:
            net.add_address("eth0", interface)
        alone = {each.version for each in interfaces if each.network.prefixlen == each.max_prefixlen}
        for version in alone:
            gateway = ip_address(GATEWAYS[version == 6])
            net.add_neighbour("eth0", gateway, GATEWAY_MAC)
            net.add_route(ANYWHERE[version == 6], device="eth0", via=gateway)


def _addresses(device: str, addresses: tuple[str, ...]) -> None:
    set_sysctl(f"ipv6/conf/{device}/accept_dad", 0)
    with Netlink() as net:
        net.set_up("lo")
        net.set_up(device)
        for address in addresses:
            net.add_address(device, ip_interface(address))


def _wait_up(device: str) -> None:
    with Netlink() as net:
        net.wait_up(device)


def _default_routes(gateways: tuple[str, ...]) -> None:
    with Netlink() as net:
        for gateway in map(ip_address, gateways):
            net.add_route(ANYWHERE[gateway.version == 6], via=gateway)


def _tap(device: str) -> None:
    from pyroute2 import IPRoute

    with IPRoute() as route:
        route.link("add", ifname=device, kind="tuntap", mode="tap")
        route.link("set", index=link_index(device), state="up")


def _neighbour(device: str, address: str, mac: str) -> None:
    with Netlink() as net:
        net.add_neighbour(device, ip_address(address), mac)


def _delete(device: str) -> None:
    from pyroute2 import IPRoute

    with IPRoute() as route:
        route.link("del", index=link_index(device))


def _reroute(address: str, device: str) -> None:
    from pyroute2 import IPRoute

    with IPRoute() as route:
        route.route("replace", dst=str(ip_network(address)), oif=link_index(device))
