"""Where the programs of a node go, and the links that keep them there."""

from __future__ import annotations

import errno
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path

from attrs import field, frozen

from k8sdatapath import maps, programs
from k8sdatapath.errors import DeviceGoneError, KernelError
from k8sdatapath.layout import u64
from k8sdatapath.links import First, KernelLink, Link
from k8sdatapath.net.netlink import has_ethernet
from k8sdatapath.net.netns import NetNs
from k8sdatapath.objects import Object
from k8sdatapath.pins import PinDir
from k8sdatapath.programs import Direction, XdpMode
from k8sdatapath.programs.base import Program, device_index, in_netns
from k8sdatapath.resource import Resource

_NO_XDP = (errno.EOPNOTSUPP, errno.EBUSY, errno.ERANGE, errno.EINVAL)


POD_DEVICE = "eth0"
"""What a pod calls its end of its device."""

_DOT = "%2e"


def place_of(name: str) -> str:
    """The place of the hook whose link is pinned under a name."""
    return name.partition("-")[2].replace(_DOT, ".")


@frozen
class Hook(ABC):
    """A place for one program: the object it is in, its name there, and where it is attached."""

    loaded: str
    entry: str
    place: str

    @property
    def name(self) -> str:
        """Under which its link is pinned; bpffs reserves dots, which VLAN devices have."""
        return f"{self.entry}-{self.place}".replace(".", _DOT)

    def program(self, objects: Mapping[str, Object]) -> Program:
        """Its program."""
        return objects[self.loaded].program(self.entry, Program)

    @abstractmethod
    def attach(self, objects: Mapping[str, Object], netns: NetNs | None) -> Link:
        """Put its program there, where none of ours is."""

    def holds(self, link: KernelLink, netns: NetNs | None) -> bool:
        """Whether a link is to this place, and not to one that had the name before it."""
        return link.info.ifindex == in_netns(netns, lambda: device_index(self.place))


@frozen
class TcHook(Hook):
    """One direction of a device, at TC."""

    direction: Direction

    def attach(self, objects: Mapping[str, Object], netns: NetNs | None) -> Link:
        """Put its program there.

        :raises KernelError: what programs take for an Ethernet header would be something else.
        """
        if not in_netns(netns, lambda: has_ethernet(self.place)):
            raise KernelError(
                "attach to", self.place, errno.EOPNOTSUPP, "its packets have no Ethernet header to be read"
            )
        program = objects[self.loaded].program(self.entry, programs.TC)
        return program.attach(self.place, self.direction, netns=netns)


@frozen
class PodEndHook(TcHook):
    """The same of a pod's own end of a device; ``place`` is the node's end.

    :ivar netns: the pod's; None: what is there is only taken over.
    """

    netns: NetNs | None = field(default=None, eq=False)

    def attach(self, objects: Mapping[str, Object], netns: NetNs | None) -> Link:
        """Put its program there, before all others."""
        program = objects[self.loaded].program(self.entry, programs.TC)
        return program.attach(POD_DEVICE, self.direction, netns=self.netns, anchor=First())

    def holds(self, link: KernelLink, netns: NetNs | None) -> bool:
        """It ends with the device, of which the other end has the name."""
        return True


@frozen
class XdpHook(Hook):
    """The driver of a device."""

    def attach(self, objects: Mapping[str, Object], netns: NetNs | None) -> Link:
        """Put its program there.

        :raises KernelError: the driver knows no native XDP, is in use, or has too large an MTU.
        """
        program = objects[self.loaded].program(self.entry, programs.XDP)
        return program.attach(self.place, netns=netns, mode=XdpMode.NATIVE)


@frozen
class CgroupHook(Hook):
    """A call of the sockets of a cgroup."""

    cgroup: Path = field(eq=False)

    @classmethod
    def all(cls, loaded: Object, cgroup: Path, entries: Iterable[str] | None = None) -> Iterator[CgroupHook]:
        """A place for each program of an object, or for these.

        :raises KernelError: there is no such cgroup.
        """
        try:
            place = f"cgroup{cgroup.stat().st_ino}"
        except OSError as error:
            raise KernelError("find cgroup", str(cgroup), error.errno or 0) from error
        return (cls(loaded.spec.name, entry, place, cgroup) for entry in entries or loaded.program_fds)

    def attach(self, objects: Mapping[str, Object], netns: NetNs | None) -> Link:
        """Put its program there."""
        loaded = objects[self.loaded]
        kinds = {each.TYPE: each for each in (programs.SockOps, programs.CgroupSkb)}
        kind = kinds.get(loaded.spec.programs[self.entry].type, programs.CgroupSockAddr)
        return loaded.program(self.entry, kind).attach(self.cgroup)

    def holds(self, link: KernelLink, netns: NetNs | None) -> bool:
        """Its name has the cgroup's number in it."""
        return True


@frozen
class MapHook(Hook):
    """What sockets of a map send or receive."""

    map_id: int

    @classmethod
    def of(cls, loaded: Object, entry: str, name: str) -> MapHook:
        """The place of a program of an object at a map of the same."""
        return cls(loaded.spec.name, entry, name, loaded.map(name, maps.Map).info.id)

    def attach(self, objects: Mapping[str, Object], netns: NetNs | None) -> Link:
        """Put its program there."""
        loaded = objects[self.loaded]
        sockets = loaded.map(self.place, maps.SockHash[u64])
        if loaded.spec.programs[self.entry].type == programs.SkMsg.TYPE:
            return loaded.program(self.entry, programs.SkMsg).attach(sockets)
        return loaded.program(self.entry, programs.SkSkb).attach(sockets)

    def holds(self, link: KernelLink, netns: NetNs | None) -> bool:
        """Whether the map is the one that sockets get into now."""
        return link.info.map_id == self.map_id


class Hooks(Resource):
    """The links of a node, by where they are.

    :param netns: the namespace of its devices.
    :param pins: where links are pinned; those found there are taken over when their hook is asked for.
    """

    def __init__(self, netns: NetNs | None, pins: PinDir | None) -> None:
        self._netns = netns
        self._pins = pins
        self._links: dict[Hook, Link] = {}

    def __len__(self) -> int:
        return len(self._links)

    def __iter__(self) -> Iterator[Hook]:
        return iter(tuple(self._links))  # pods come and go meanwhile

    @property
    def names(self) -> set[str]:
        """Of all that is ours, of the process before us as well."""
        return {hook.name for hook in self} | set(self._pins.links if self._pins is not None else ())

    def __contains__(self, hook: Hook) -> bool:
        """Whether something of ours is there, or of the process before us."""
        return hook in self._links or (self._pins is not None and hook.name in self._pins.links)

    def put(self, hook: Hook, objects: Mapping[str, Object]) -> None:
        """Put a program on its hook, or swap it into the link that holds the hook already."""
        if self._update(hook, objects):
            return
        with ExitStack() as undo:
            link = undo.enter_context(hook.attach(objects, self._netns))
            if self._pins is not None:
                link.pin(self._pins.link_path(hook.name))
            undo.pop_all()
        self._links[hook] = link

    def put_xdp(self, hook: Hook, objects: Mapping[str, Object]) -> None:
        """The same where the driver lets us."""
        try:
            self.put(hook, objects)
        except KernelError as error:
            if error.errno not in _NO_XDP:
                raise

    def adopt(self, hooks: Iterable[Hook], objects: Mapping[str, Object]) -> None:
        """Put programs into those pinned links that are to these; whose device is gone is dropped."""
        for hook in hooks:
            if hook in self:
                self._update(hook, objects)

    def renew(self, objects: Mapping[str, Object], places: Collection[str]) -> set[str]:
        """Put programs on devices that were made anew under their names, where these are now.

        :param places: the devices to look at.
        :returns: those that were.
        """
        found = set()
        for hook, link in list(self._links.items()):
            if hook.place not in places or not isinstance(link, KernelLink):
                continue
            with suppress(DeviceGoneError):  # it may come yet
                if not hook.holds(link, self._netns):
                    put = self.put_xdp if isinstance(hook, XdpHook) else self.put
                    put(hook, objects)
                    found.add(hook.place)
        return found

    def switch(self, old: Mapping[str, Object], new: Mapping[str, Object]) -> None:
        """Put new programs on every hook, or if one refuses the old ones on all. Of a device that is gone
        the links stay as they are: they do nothing any more.
        """
        with ExitStack() as undo:
            for hook, link in self._links.items():
                if _swap(link, hook.program(new)):
                    undo.callback(_swap, link, hook.program(old))
            undo.pop_all()

    def drop(self, hook: Hook) -> None:
        """Take what is ours off a hook; if nothing is there, nothing is done."""
        link = self._links.pop(hook, None)  # first: nobody is to miss its pin
        if self._pins is not None:
            self._pins.link_path(hook.name).unlink(missing_ok=True)
        if link is not None:
            link.close()

    def drop_strange(self, known: Callable[[str], bool]) -> None:
        """Remove pinned links that are not among these, unless their name is known."""
        if self._pins is not None:
            ours = {hook.name for hook in self}
            for name in self._pins.links:
                if name not in ours and not known(name):
                    path = self._pins.link_path(name)
                    with KernelLink.open_pinned(path) as link, suppress(DeviceGoneError):
                        link.detach()  # now: without it the program ends some time after the pin
                    path.unlink()

    def _update(self, hook: Hook, objects: Mapping[str, Object]) -> bool:
        """Swap the program of a link, ours or pinned; False if there is none, or its device is gone."""
        if hook not in self._links and self._pins is not None and hook in self:
            self._links[hook] = KernelLink.open_pinned(self._pins.link_path(hook.name))
        link = self._links.get(hook)
        if link is None:
            return False
        try:
            if isinstance(link, KernelLink) and not hook.holds(link, self._netns):
                raise DeviceGoneError("take over link", hook.name, errno.ENOLINK)
            link.update(hook.program(objects))
        except DeviceGoneError:  # and with the device its hook
            self.drop(hook)
            return False
        return True

    def close(self) -> None:
        """Let go of the links. Those that are not pinned end with it."""
        while self._links:
            self._links.popitem()[1].close()


def _swap(link: Link, program: Program) -> bool:
    """Swap the program of a link; False if its device is gone, which happens at any time."""
    try:
        link.update(program)
    except DeviceGoneError:
        return False
    return True
