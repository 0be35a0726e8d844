"""The network of a lab, as netlink calls. Each function here runs inside the namespace it is about."""

from __future__ import annotations

from collections.abc import Iterable

from k8sdatapath.lab.addressing import (
    ANYWHERE,
    POD_GATEWAY_MAC,
    POD_GATEWAYS,
    ROUTER,
    Networks,
    Place,
)
from k8sdatapath.net.netlink import Netlink, set_sysctl
from k8sdatapath.net.netns import NetNs

BRIDGE = "br0"
#: What every host calls its way out, as containers do.
DEVICE = "eth0"

_QUIET = {
    # addresses can be used at once, nobody is asked for routes
    "ipv6/conf/all/accept_dad": 0,
    "ipv6/conf/default/accept_dad": 0,
    "ipv6/conf/default/accept_ra": 0,
    "ipv6/conf/default/router_solicitations": 0,
}
_ROUTER = {
    "ipv4/ip_forward": 1,
    "ipv6/conf/all/forwarding": 1,
    "ipv4/conf/all/send_redirects": 0,
    "ipv4/conf/default/send_redirects": 0,
    # a datapath may send a reply out where its request did not come in
    "ipv4/conf/all/rp_filter": 0,
    "ipv4/conf/default/rp_filter": 0,
}


def prepare(*, router: bool) -> None:
    """Settings of a new namespace; before its devices, which copy them."""
    for name, value in (_QUIET | _ROUTER if router else _QUIET).items():
        set_sysctl(name, value)


def make_switch() -> None:
    """The wire: a bridge, and on it a router that answers "unreachable" for what is not in the lab."""
    with Netlink() as net:
        net.set_up("lo")
        net.create_bridge(BRIDGE)
        for interface in ROUTER.both:
            net.add_address(BRIDGE, interface)


def plug_in(cables: Iterable[tuple[str, NetNs, Place]]) -> None:
    """In the switch: a port for each host, whose end of the cable is called ``eth0``."""
    with Netlink() as net:
        for port, host, place in cables:
            net.create_veth(port, DEVICE, peer_netns=host, peer_mac=place.mac)
            net.set_master(port, BRIDGE)


def join_wire(place: Place, gateway: Place) -> None:
    """In a host on the wire: its address, and all else through ``gateway``."""
    with Netlink() as net:
        net.set_up("lo")
        net.set_up(DEVICE)
        for interface in place.both:
            net.add_address(DEVICE, interface)
        _route(net, ANYWHERE, gateway)


def add_routes(routes: Iterable[tuple[Networks, Place]]) -> None:
    """In a host or the router: the pods of a node through the node."""
    with Netlink() as net:
        for networks, gateway in routes:
            _route(net, networks, gateway)


def add_pod(device: str, pod: NetNs, place: Place) -> None:
    """In a node: the device of a pod, and the routes to it."""
    with Netlink() as net:
        net.create_veth(device, DEVICE, peer_netns=pod, mac=POD_GATEWAY_MAC, peer_mac=place.mac)
        for interface in place.both:
            net.add_neighbour(device, interface.ip, place.mac)
            net.add_route(interface.network, device=device)


def set_up_pod(place: Place, overhead: int) -> None:
    """In a pod: its addresses, and the way out, on which packets grow by so much."""
    with Netlink() as net:
        net.set_up("lo")
        if overhead:
            net.set_mtu(DEVICE, net.mtu(DEVICE) - overhead)
        net.set_up(DEVICE)
        for interface, gateway, anywhere in zip(place.both, POD_GATEWAYS, ANYWHERE, strict=True):
            net.add_address(DEVICE, interface)
            net.add_neighbour(DEVICE, gateway, POD_GATEWAY_MAC)
            net.add_route(anywhere, device=DEVICE, via=gateway)


def wait_for(devices: Iterable[str]) -> None:
    """In a node or the switch: until the cables of these devices carry."""
    with Netlink() as net:
        for device in devices:
            net.wait_up(device)


def _route(net: Netlink, networks: Networks, gateway: Place) -> None:
    for network, via in zip(networks, gateway.both, strict=True):
        net.add_route(network, via=via.ip)
