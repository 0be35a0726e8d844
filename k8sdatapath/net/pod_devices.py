"""Finds the device of a pod by what the kernel knows of the pod's address. No CNI plugin is asked.

Whoever wired the pod, packets to it have to get there, so the kernel knows the way: a host route to the
device, or a route to a bridge and the port behind which the pod is. What the kernel knows in two ways, or not
at all, is said and not guessed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import closing
from fnmatch import fnmatchcase
from functools import cached_property

from attrs import field, frozen

from k8sdatapath.net.netns import NetNs, inhabited
from k8sdatapath.net.rtnetlink import Address, LinkRow, NeighbourRow, Network, RouteRow, Rtnetlink

__all__ = ["DevicePattern", "NotFound", "PodDevice", "PodDevices", "netns_behind", "pod_links"]

_NOT = "!"


@frozen
class PodDevice:
    """Where a pod is plugged in.

    :ivar name: the node's end of its veth; :ivar index: likewise. A device that was made anew has another.
    :ivar pod_mac: the MAC of the pod's end.
    """

    name: str
    index: int
    pod_mac: str


@frozen
class NotFound:
    """Why there is no device of an address."""

    reason: str

    def __str__(self) -> str:
        return self.reason


@frozen
class DevicePattern:
    """Which devices may be those of pods.

    :ivar patterns: of their names, as in a shell; ``veth+`` stands for ``veth*``, and after ``!`` stands what
        is no pod's. Without one that says which are: every veth.
    :ivar uplinks: devices that never are, and neither are those which default routes lead to.
    """

    patterns: tuple[str, ...] = ()
    uplinks: tuple[str, ...] = ()

    @property
    def names_pods(self) -> bool:
        """Whether it says what the devices of pods are called."""
        return any(not each.startswith(_NOT) for each in self.patterns)

    def fits(self, link: LinkRow) -> bool:
        """Whether a device may be that of a pod."""
        if link.name in self.uplinks or link.kind == "bridge":
            return False
        if any(each.startswith(_NOT) and _named(link, each[len(_NOT) :]) for each in self.patterns):
            return False
        if not self.names_pods:
            return link.kind == "veth"
        return any(_named(link, each) for each in self.patterns)


def pod_links(pattern: DevicePattern) -> set[str]:
    """Names of the devices held to be pods', whatever is behind them, in the namespace of the thread.

    They are those that fit, if the pattern says what they are called. If not, any veth may be a pod's later,
    but some are already seen to be something else, and left out: whose other end is in this namespace too,
    ports of bridges, and those that a route to a network leads to, rather than to single addresses.
    """
    with Rtnetlink() as kernel:
        wide = {
            route.device
            for route in kernel.routes()
            if route.network.prefixlen == 0
            or not (pattern.names_pods or route.network.is_link_local or _is_single(route.network))
        }
        return {
            each.name
            for each in kernel.links()
            if pattern.fits(each)
            and each.index not in wide
            and (pattern.names_pods or (each.peer_netns is not None and not each.master))
        }


def netns_behind(device: str) -> NetNs | None:
    """The namespace of the other end of a device of the thread's namespace, for the caller to close.

    None: it is in this one, or in none that a process is in or that has a name.
    """
    with Rtnetlink() as kernel:
        number = next((link.peer_netns for link in kernel.links() if link.name == device), None)
        if number is None or number < 0:
            return None
        with closing(inhabited()) as all_there_are:
            return next(
                (each.dup() for each in all_there_are if kernel.number_of(each.fileno()) == number), None
            )


def _named(link: LinkRow, pattern: str) -> bool:
    return fnmatchcase(link.name, f"{pattern[:-1]}*" if pattern.endswith("+") else pattern)


def _is_single(network: Network) -> bool:
    return network.prefixlen == network.max_prefixlen


@frozen(eq=False)
class PodDevices:
    """The devices of pods in one namespace, as they were when it was looked at.

    ::

        node.call(PodDevices.look, DevicePattern(("v*",))).find(ip_address("10.244.1.2"))

    Read and asked in the namespace that it is about: some of it is looked up when it is needed.
    """

    pattern: DevicePattern
    _links: dict[int, LinkRow]
    _routes: tuple[RouteRow, ...]
    _own: frozenset[Address]
    _neighbours: tuple[NeighbourRow, ...]
    _ports: tuple[NeighbourRow, ...]
    _peers: dict[int, tuple[LinkRow, frozenset[Address]]] = field(factory=dict)

    @classmethod
    def look(cls, pattern: DevicePattern) -> PodDevices:
        """As it is now, in the namespace of the calling thread."""
        with Rtnetlink() as kernel:
            links = {link.index: link for link in kernel.links()}
            seen = cls(
                pattern,
                links,
                tuple(kernel.routes()),
                frozenset(address for _, address in kernel.addresses()),
                tuple(kernel.neighbours()),
                tuple(kernel.neighbours(of_bridges=True)),
            )
            for link in links.values():
                if seen.may_be(link) and (peer := kernel.peer_of(link) if link.peer else None):
                    inside = (a for index, a in kernel.addresses(link.peer_netns) if index == peer.index)
                    seen._peers[link.index] = peer, frozenset(inside)
            return seen

    @cached_property
    def routed(self) -> dict[Address, PodDevice | NotFound]:
        """All addresses that have a route of their own to a device of a pod."""
        return {
            address: self.find(address)
            for address, index in self._host_routes.items()
            if self.may_be(self._links.get(index))
        }

    def find(self, address: Address) -> PodDevice | NotFound:
        """The device of the pod that has an address, or why none is."""
        if address in self._own:
            return NotFound("it is an address of the node itself")
        if (index := self._host_routes.get(address)) is not None:
            return self._at_end_of_route(address, index)
        if bridge := self._bridge(address):
            return self._behind(bridge, address)
        return self._only(self._holders(address), "no route leads to it, and no device's other end has it")

    def may_be(self, link: LinkRow | None) -> bool:
        """Whether a device may be that of a pod."""
        return link is not None and self.pattern.fits(link) and link.index not in self._ways_out

    def has(self, device: str) -> bool:
        """Whether a device is still there."""
        return any(link.name == device for link in self._links.values())

    @cached_property
    def _ways_out(self) -> set[int]:
        return {route.device for route in self._routes if route.network.prefixlen == 0}

    @cached_property
    def _host_routes(self) -> dict[Address, int]:
        return {
            route.network.network_address: route.device
            for route in reversed(self._routes)  # the kernel tells the preferred one first
            if route.on_link and _is_single(route.network)
        }

    @cached_property
    def _neighbour_macs(self) -> dict[tuple[int, Address | None], str]:
        return {(each.device, each.address): each.mac for each in self._neighbours}

    @cached_property
    def _port_of(self) -> dict[tuple[int, str], int]:
        return {(each.master, each.mac): each.device for each in self._ports}

    def _at_end_of_route(self, address: Address, index: int) -> PodDevice | NotFound:
        link = self._links.get(index)
        if link is None:
            return NotFound("its device has just gone")
        if not self.may_be(link):
            return NotFound(f"its route leads to {link.name}, which is no device of a pod")
        peer, _ = self._peers.get(index, (None, None))
        mac = peer.mac if peer else self._neighbour_macs.get((index, address))
        if not mac:
            return NotFound(f"behind {link.name} no MAC is known: it is no veth and has no such neighbour")
        return PodDevice(link.name, index, mac)

    def _bridge(self, address: Address) -> LinkRow | None:
        """The bridge that the best route leads to, if it leads to one directly."""
        fitting = [
            route
            for route in self._routes
            if route.network.version == address.version and address in route.network
        ]
        best = max(fitting, key=lambda route: route.network.prefixlen, default=None)
        link = self._links.get(best.device) if best and best.on_link else None
        return link if link and link.kind == "bridge" else None

    def _behind(self, bridge: LinkRow, address: Address) -> PodDevice | NotFound:
        """By whose other end has the address; by what the bridge has learned only if no other end is seen."""
        holders = [link for link in self._holders(address) if link.master == bridge.index]
        mac = self._neighbour_macs.get((bridge.index, address))
        port = self._links.get(self._port_of.get((bridge.index, mac), 0)) if mac else None
        if mac and port and not holders and port.index not in self._peers and self.may_be(port):
            return PodDevice(port.name, port.index, mac)
        return self._only(holders, f"it is behind no port of bridge {bridge.name} that could be a pod's")

    def _holders(self, address: Address) -> Iterator[LinkRow]:
        return (self._links[index] for index, (_, inside) in self._peers.items() if address in inside)

    def _only(self, holders: Iterable[LinkRow], otherwise: str) -> PodDevice | NotFound:
        found = sorted(holders, key=lambda link: link.name)
        if len(found) > 1:
            names = ", ".join(link.name for link in found)
            return NotFound(f"it is behind more than one device: {names}")
        for link in found:
            return PodDevice(link.name, link.index, self._peers[link.index][0].mac)
        return NotFound(otherwise)
