"""Node: the stock composition. Objects loaded once, maps shared, programs on every hook that a node has.

Read it as an example: all of it is public API, and another composition is as short.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from attrs import Attribute, evolve, field, frozen

from k8sdatapath import maps, programs
from k8sdatapath.datapath.conntrack_table import ConntrackTable
from k8sdatapath.datapath.service_table import CONTRACT, ServiceTable
from k8sdatapath.datapath.socket_reaper import DestroyedSocket, SocketReaper
from k8sdatapath.errors import DeviceGoneError, KernelError, ModelError
from k8sdatapath.layout import addr, layout_of
from k8sdatapath.links import KernelLink, Link
from k8sdatapath.model import IPAddress, address
from k8sdatapath.net.netns import NetNs
from k8sdatapath.objects import Object, ObjectSpec
from k8sdatapath.pins import PinDir
from k8sdatapath.programs import Direction, XdpMode
from k8sdatapath.programs.base import Program, device_index, in_netns
from k8sdatapath.resource import Resource
from k8sdatapath.tables.counters import Counter, CounterRow, outcomes, read_counters
from k8sdatapath.tables.endpoints import EndpointRow

__all__ = ["Capacity", "Node", "NodeConfig"]

_SLOTS_PER_BLOCK = 16
_NO_XDP = (errno.EOPNOTSUPP, errno.EBUSY, errno.ERANGE, errno.EINVAL)
_POD_HOOKS = (("from_pod", Direction.INGRESS), ("to_pod", Direction.EGRESS))


def _names(devices: str | Iterable[str]) -> tuple[str, ...]:
    return (devices,) if isinstance(devices, str) else tuple(devices)


def _entries(most: int = (1 << 32) - 1) -> Any:
    """A field that says how much a table holds."""

    def check(_: object, attribute: Attribute[int], value: int) -> None:
        if type(value) is not int or not 0 < value <= most:
            raise ModelError(f"room for {value!r} {attribute.name} cannot be: 1 to {most}")

    return check


def _path(path: str | os.PathLike[str] | None) -> Path | None:
    return None if path is None else Path(path)


@frozen(kw_only=True)
class Capacity:
    """How much a node's tables hold. Memory is taken when they are made.

    :ivar services: frontends, some 100 bytes each.
    :ivar backends: memberships of endpoints in services, 32 bytes each.
    :ivar slots: places in backend sets, 4 bytes each: one per backend, 251 and more per Maglev set.
    :ivar flows: directions of flows that are balanced per packet (two a flow), some 140 bytes each.
    :ivar pods: addresses of local pods.
    """

    services: int = field(default=65536, validator=_entries(most=1 << 30))
    backends: int = field(default=262144, validator=_entries(most=1 << 22))
    slots: int = field(default=1 << 20, validator=_entries())
    flows: int = field(default=262144, validator=_entries())
    pods: int = field(default=4096, validator=_entries())

    @property
    def max_entries(self) -> dict[str, int]:
        """The same, by map."""
        return {
            "kd_frontends": self.services,
            "kd_sets": 3 * self.services,
            "kd_slots": -(-self.slots // _SLOTS_PER_BLOCK),
            "kd_backends": self.backends,
            "kd_conntrack": self.flows,
            "kd_endpoints": self.pods,
        }


@frozen(kw_only=True)
class NodeConfig:
    """What a node consists of, and which hooks it uses.

    :ivar name: for messages.
    :ivar netns: the namespace of its devices; None is that of the calling thread.
    :ivar uplinks: devices towards the rest of the world.
    :ivar cgroup: a cgroup2 directory; sockets of its processes are balanced when they connect.
    :ivar pins: where maps and links are pinned; None: the datapath ends with the process. A node owns its
        directory while it is open.
    :ivar tc_lb: balance packets at pod devices and uplinks.
    :ivar socket_lb: balance sockets of ``cgroup``.
    :ivar redirect: hand translated packets to their device, past the node's netfilter and routing.
    :ivar xdp: continue flows between machines elsewhere in the drivers of the uplinks, where these can: see
        :attr:`Node.xdp_uplinks`. What arrives there must have whole checksums, and its VLAN tags in it: so
        it does from the wire, but not from a veth whose other end leaves checksums to the device.
    """

    name: str = ""
    netns: NetNs | None = None
    uplinks: tuple[str, ...] = field(default=(), converter=_names)
    cgroup: Path | None = field(default=None, converter=_path)
    pins: PinDir | None = None
    tc_lb: bool = True
    socket_lb: bool = True
    redirect: bool = True
    xdp: bool = False
    capacity: Capacity = Capacity()


@frozen
class _Hook:
    """A place for one program: the object it is in, its name there, and where it is attached."""

    loaded: str
    entry: str
    place: str

    @property
    def name(self) -> str:
        """Under which its link is pinned; bpffs reserves dots, which VLAN devices have."""
        return f"{self.entry}-{self.place}".replace(".", "%2e")

    def program(self, objects: Mapping[str, Object]) -> Program:
        """Its program."""
        return objects[self.loaded].program(self.entry, Program)


class Node(Resource):
    """The datapath of one node, running. Make one with :meth:`open`.

    :ivar services: the node's services.
    :ivar flows: its flows that are balanced per packet.
    """

    def __init__(
        self, config: NodeConfig, objects: dict[str, Object], services: ServiceTable, own: ExitStack
    ) -> None:
        self.config = config
        self.services = services
        self._own = own
        self._links: dict[_Hook, Link] = {}
        self._use(objects)

    def _use(self, objects: dict[str, Object]) -> None:
        self._objects = objects
        pod = objects["pod"]
        self._endpoints = pod.map("kd_endpoints", maps.Hash[addr, EndpointRow])
        self._counters = pod.map("kd_counters", maps.PerCpuArray[CounterRow])
        self._outcomes = outcomes(pod.spec.btf)
        self.flows = ConntrackTable.bind(pod)

    @classmethod
    def open(cls, config: NodeConfig) -> Node:
        """Load what is not there yet, take over what is pinned, and put the programs on their hooks.

        Programs of pinned links are replaced in one step each: no packet goes by unhandled. Pinned maps keep
        their sizes, see :meth:`resize`. Pinned links to uplinks and cgroups that ``config`` does not name are
        removed; those to pods stay.

        :raises KernelError: a hook refused; nothing is left behind that was not there before.
        :raises PinsBusyError: another process has the pin directory.
        """
        with ExitStack() as own, ExitStack() as undo:
            if config.pins is not None:
                own.enter_context(config.pins.lock())
                undo.enter_context(config.pins.restored_on_error())
            objects = _load(config, own)
            services = own.enter_context(ServiceTable.bind(objects["pod"]))
            node = cls(config, objects, services, own)
            own.callback(node._close_links)
            if config.socket_lb and config.cgroup is not None:
                node._attach_cgroup(config.cgroup)
            if config.tc_lb:
                for device in config.uplinks:
                    node._attach_tc(_Hook("host", "from_uplink", device), Direction.INGRESS)
                    if config.xdp:
                        node._attach_xdp(_Hook("xdp", "xdp_in", device))
            node._drop_strange_links()
            node._own = own.pop_all()
            return node

    def attach_pod(self, device: str, addresses: Iterable[IPAddress], *, pod_mac: str) -> None:
        """Take a pod into the datapath.

        :param device: the node's end of the pod's veth.
        :param addresses: the pod's addresses.
        :param pod_mac: the MAC of the pod's end.
        :raises ModelError: an address that is none.
        :raises LayoutError: a MAC that is none.
        :raises DeviceGoneError: no such device.
        :raises MapFullError: there is room for no more pods.
        """
        index, host_mac = in_netns(self.config.netns, lambda: (device_index(device), _mac(device)))
        row = EndpointRow(index, pod_mac, host_mac)
        addresses = [address(each) for each in addresses]
        layout_of(EndpointRow).pack(row)  # a MAC that is none is told before anything is attached
        hooks = [(_Hook("pod", entry, device), direction) for entry, direction in _POD_HOOKS]
        with ExitStack() as undo:
            for hook, direction in hooks if self.config.tc_lb else ():
                if not self._has(hook):
                    undo.callback(self._drop_link, hook)
                self._attach_tc(hook, direction)
            self._endpoints.update_many(dict.fromkeys(addresses, row))
            undo.pop_all()

    def detach_pod(self, device: str, addresses: Iterable[IPAddress]) -> None:
        """Take a pod out of the datapath; its device may be gone already."""
        self._endpoints.delete_many(addresses)
        for entry, _ in _POD_HOOKS:
            self._drop_link(_Hook("pod", entry, device))

    @property
    def xdp_uplinks(self) -> tuple[str, ...]:
        """Uplinks whose drivers continue flows; on the others the programs at TC do all the work."""
        return tuple(hook.place for hook in self._links if hook.loaded == "xdp")

    def counters(self) -> dict[str, Counter]:
        """What the programs have done with packets since the maps were made, by outcome."""
        return read_counters(self._counters, self._outcomes)

    def resize(self, capacity: Capacity) -> None:
        """Give the service tables other sizes, while traffic flows.

        New maps are filled with what is in the old ones, then every hook gets programs over the new maps,
        each in one step. Flows and pods keep the room that they have.

        :raises CapacityError: what is there would not fit; nothing was changed.
        """
        capacity = evolve(capacity, flows=self.config.capacity.flows, pods=self.config.capacity.pods)
        config, old, pins = evolve(self.config, capacity=capacity), self._objects, self.config.pins
        with ExitStack() as undo:
            shared = {name: each for loaded in old.values() for name, each in loaded.maps.items()}
            kept = {name: each for name, each in shared.items() if name not in CONTRACT}
            objects = _load(evolve(config, pins=None), undo, kept)
            self.services.move(objects["pod"], partial(self._switch, old, objects))
            if pins is not None:
                for name in CONTRACT:
                    pins.replace(objects["pod"].map_fds[name], pins.map_path(name))
            self._own.push(undo.pop_all())
        self._use(objects)
        self.config = config
        for loaded in old.values():
            loaded.close()

    def _switch(self, old: dict[str, Object], new: dict[str, Object]) -> None:
        """Put new programs on every hook, or if one refuses the old ones on all."""
        with ExitStack() as undo:
            for hook, link in self._links.items():
                undo.callback(link.update, hook.program(old))
                link.update(hook.program(new))
            undo.pop_all()

    def reap_sockets(self, *, tcp: bool = False) -> tuple[DestroyedSocket, ...]:
        """Destroy the UDP sockets of this machine that are connected to backends which are gone.

        For after backends were removed: what their processes do next fails, and connects anew.

        :param tcp: TCP connections as well, which may be finishing what they began.
        """
        with SocketReaper.bind(self._objects["socket"]) as reaper:
            return reaper.reap_everywhere(tcp=tcp)

    def _attach_cgroup(self, cgroup: Path) -> None:
        try:
            cgroup_id = cgroup.stat().st_ino
        except OSError as error:
            raise KernelError("find cgroup", str(cgroup), error.errno or 0) from error
        for entry in self._objects["socket"].program_fds:
            hook = _Hook("socket", entry, f"cgroup{cgroup_id}")
            program = self._objects["socket"].program(entry, programs.CgroupSockAddr)
            self._attach(hook, partial(program.attach, cgroup))

    def _attach_tc(self, hook: _Hook, direction: Direction) -> None:
        program = self._objects[hook.loaded].program(hook.entry, programs.TC)
        self._attach(hook, partial(program.attach, hook.place, direction, netns=self.config.netns))

    def _attach_xdp(self, hook: _Hook) -> None:
        """Where the driver lets us: it may know no native XDP, be in use, or have too large an MTU."""
        program = self._objects[hook.loaded].program(hook.entry, programs.XDP)
        attach = partial(program.attach, hook.place, netns=self.config.netns, mode=XdpMode.NATIVE)
        try:
            self._attach(hook, attach)
        except KernelError as error:
            if error.errno not in _NO_XDP:
                raise

    def _attach(self, hook: _Hook, attach: Callable[[], Link]) -> None:
        """Put a program on its hook, or swap it into the link that holds the hook already."""
        if self._update(hook):
            return
        with ExitStack() as undo:
            link = undo.enter_context(attach())
            if self.config.pins is not None:
                link.pin(self.config.pins.link_path(hook.name))
            undo.pop_all()
        self._links[hook] = link

    def _has(self, hook: _Hook) -> bool:
        pins = self.config.pins
        return hook in self._links or (pins is not None and hook.name in pins.links)

    def _update(self, hook: _Hook) -> bool:
        """Swap the program of a link, ours or pinned; False if there is none, or its device is gone."""
        pins = self.config.pins
        if hook not in self._links and pins is not None and self._has(hook):
            self._links[hook] = KernelLink.open_pinned(pins.link_path(hook.name))
        link = self._links.get(hook)
        if link is None:
            return False
        try:
            self._check_device(hook, link)
            link.update(hook.program(self._objects))
        except DeviceGoneError:  # and with the device its hook
            self._drop_link(hook)
            return False
        return True

    def _check_device(self, hook: _Hook, link: Link) -> None:
        """A link to another device of the same name, one made since or of another namespace, is of no use."""
        if isinstance(link, KernelLink) and hook.loaded != "socket":
            index = in_netns(self.config.netns, lambda: device_index(hook.place))
            if link.info.ifindex != index:
                raise DeviceGoneError("take over link", hook.name, errno.ENOLINK)

    def _drop_strange_links(self) -> None:
        """Remove what an earlier configuration had pinned and this one does not have."""
        ours = {hook.name for hook in self._links}
        for_pods = tuple(f"{entry}-" for entry, _ in _POD_HOOKS)
        for name in self.config.pins.links if self.config.pins is not None else ():
            if name not in ours and not name.startswith(for_pods):
                assert self.config.pins is not None
                self.config.pins.link_path(name).unlink()

    def _drop_link(self, hook: _Hook) -> None:
        if self.config.pins is not None:
            self.config.pins.link_path(hook.name).unlink(missing_ok=True)
        link = self._links.pop(hook, None)
        if link is not None:
            link.close()

    def _close_links(self) -> None:
        while self._links:
            self._links.popitem()[1].close()

    def close(self) -> None:
        """Let go. Without pins the datapath ends here; with pins it runs on, and an open takes it over."""
        self._own.close()

    def __repr__(self) -> str:
        return f"<Node {self.config.name or '(unnamed)'} {self.services!r} links={len(self._links)}>"


def _load(config: NodeConfig, own: ExitStack, given: Mapping[str, Any] | None = None) -> dict[str, Object]:
    """The objects, sharing one set of maps: those given, and what they lack."""
    loaded: dict[str, Object] = {}
    shared = dict(given or {})
    for name in ("pod", "host", "socket", *(["xdp"] if config.xdp else [])):
        spec = ObjectSpec.from_file(name)
        spec = spec.with_maps(**{m: n for m, n in config.capacity.max_entries.items() if m in spec.maps})
        if "redirect" in spec.config:
            spec = spec.with_config(redirect=config.redirect)
        loaded[name] = own.enter_context(spec.load(reuse=shared, pins=config.pins))
        shared |= loaded[name].maps
    return loaded


def _mac(device: str) -> str:
    """The MAC of a device of the calling thread's namespace."""
    siocgifhwaddr = 0x8927
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        answer = fcntl.ioctl(any_socket, siocgifhwaddr, device.encode()[:15].ljust(256, b"\0"))
    return answer[18:24].hex(":")
