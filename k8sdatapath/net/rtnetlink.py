"""What the kernel knows of devices, addresses, routes and neighbours, read in a few milliseconds.

Reading only, and only what is asked of it, so that a thousand pods are looked through in the time that a
general library takes for ten; :mod:`k8sdatapath.net.netlink` changes things. It can also look into other
namespaces by the numbers that the kernel gives them where a veth leads there.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final, TypeAlias

from attrs import frozen

from k8sdatapath.errors import KernelError
from k8sdatapath.pybpf.calls import kernel_error
from k8sdatapath.resource import Resource

__all__ = ["LinkChanges", "LinkRow", "NeighbourRow", "RouteRow", "Rtnetlink"]

Address: TypeAlias = IPv4Address | IPv6Address
Network: TypeAlias = IPv4Network | IPv6Network
Attributes: TypeAlias = dict[int, bytes]

_HEADER: Final = struct.Struct("=IHHII")
_ATTRIBUTE: Final = struct.Struct("=HH")
_LINK: Final = struct.Struct("=BxHiII")
_ADDRESS: Final = struct.Struct("=BBBBi")
_ROUTE: Final = struct.Struct("=BBBBBBBBI")
_NEIGHBOUR: Final = struct.Struct("=B3xiHBB")
_U32: Final = struct.Struct("=I")
_I32: Final = struct.Struct("=i")

# uapi/linux/netlink.h, rtnetlink.h, net_namespace.h, if_link.h, if_addr.h, neighbour.h
_REQUEST, _DUMP, _INTERRUPTED = 0x1, 0x300, 0x10
_ERROR, _DONE = 2, 3
_GET_LINK, _GET_ADDRESS, _GET_ROUTE, _GET_NEIGHBOUR, _GET_NSID = 18, 22, 26, 30, 90
_NETNSA_NSID, _NETNSA_FD = 1, 3
_SOL_NETLINK, _STRICT_CHECK = 270, 12
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_LINK, _IFLA_MASTER = 1, 3, 5, 10
_IFLA_LINKINFO, _IFLA_EXT_MASK, _IFLA_LINK_NETNSID, _IFLA_TARGET_NETNSID = 18, 29, 37, 46
_IFLA_INFO_KIND, _SKIP_STATS = 1, 1 << 3
_IFA_ADDRESS, _IFA_LOCAL, _IFA_TARGET_NETNSID = 1, 2, 10
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_VIA, _RTA_NH_ID = 1, 4, 5, 18, 30
_RT_TABLE_MAIN, _RTN_UNICAST, _RTM_F_CLONED = 254, 1, 0x200
_NDA_DST, _NDA_LLADDR, _NDA_MASTER = 1, 2, 9
_NUD_INCOMPLETE, _NUD_FAILED, _NUD_PERMANENT = 0x01, 0x20, 0x80
_AF_BRIDGE = 7
_GROUPS = 0x1 | 0x40 | 0x400  # RTMGRP_LINK, RTMGRP_IPV4_ROUTE, RTMGRP_IPV6_ROUTE
_NESTED = 0x3FFF
_PAIRS = ("veth", "netkit")  # of others the link is what they are made on


@frozen
class LinkRow:
    """A device.

    :ivar kind: what it is made of, as in ``ip link add type``; empty for hardware.
    :ivar master: the index of the bridge that it is a port of, or 0.
    :ivar peer: the index of the other end of a veth, or 0.
    :ivar peer_netns: the number of the namespace that the other end is in; None: it is in this one; negative:
        in one without a number, such as one that is being taken apart.
    """

    index: int
    name: str
    kind: str
    mac: str
    master: int
    peer: int
    peer_netns: int | None


@frozen
class RouteRow:
    """A route of the main table.

    :ivar on_link: whether whom it leads to is reached directly, without a gateway between.
    """

    network: Network
    device: int
    on_link: bool


@frozen
class NeighbourRow:
    """Who has a MAC: an address on a device, or (``address`` None) a port of the bridge ``master``."""

    device: int
    mac: str
    address: Address | None
    master: int


class Rtnetlink(Resource):
    """Reads from the namespace of the thread that makes it."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC)
        self._socket.bind((0, 0))
        # or the kernel ignores what a request is limited to
        self._socket.setsockopt(_SOL_NETLINK, _STRICT_CHECK, 1)
        self._sequence = 0

    def links(self) -> list[LinkRow]:
        """All devices."""
        body = _LINK.pack(0, 0, 0, 0, 0) + _attribute(_IFLA_EXT_MASK, _SKIP_STATS)
        return [_link(answer) for answer in self._ask("list devices", _GET_LINK, body)]

    def peer_of(self, link: LinkRow) -> LinkRow | None:
        """The other end of a veth, wherever it is; None if it has gone."""
        if link.peer_netns is not None and link.peer_netns < 0:
            return None
        where = b"" if link.peer_netns is None else _attribute(_IFLA_TARGET_NETNSID, link.peer_netns)
        body = _LINK.pack(0, 0, link.peer, 0, 0) + where
        try:
            (answer,) = self._ask("ask for the peer of", _GET_LINK, body, link.name, dump=0)
        except KernelError as error:
            if error.errno in (errno.ENODEV, errno.EINVAL):  # it has gone, or its namespace has
                return None
            raise
        return _link(answer)

    def addresses(self, netns: int | None = None) -> Iterator[tuple[int, Address]]:
        """The addresses of devices, with their indices: here, or in the namespace of that number."""
        where = b"" if netns is None else _attribute(_IFA_TARGET_NETNSID, netns)
        try:
            for answer in self._ask("list addresses", _GET_ADDRESS, _ADDRESS.pack(0, 0, 0, 0, 0) + where):
                index = _ADDRESS.unpack_from(answer)[4]
                found = _attributes(answer, _ADDRESS.size)
                yield index, ip_address(found.get(_IFA_LOCAL) or found[_IFA_ADDRESS])
        except KernelError as error:
            if netns is None or error.errno != errno.EINVAL:  # its namespace has gone
                raise

    def number_of(self, netns: int) -> int:
        """The number of a namespace, given by a descriptor, as in ``peer_netns``; negative: it has none."""
        body = _U32.pack(0) + _attribute(_NETNSA_FD, netns)
        (answer,) = self._ask("ask for the number of a network namespace", _GET_NSID, body, dump=0)
        return _signed(_attributes(answer, _U32.size)[_NETNSA_NSID])

    def routes(self) -> Iterator[RouteRow]:
        """Routes of the main table that lead to one device, of both families."""
        for family, size in ((socket.AF_INET, 4), (socket.AF_INET6, 16)):
            for answer in self._ask("list routes", _GET_ROUTE, _ROUTE.pack(family, *[0] * 8)):
                _, length, _, _, table, _, _, kind, flags = _ROUTE.unpack_from(answer)
                found = _attributes(answer, _ROUTE.size)
                wanted = table == _RT_TABLE_MAIN and kind == _RTN_UNICAST and not flags & _RTM_F_CLONED
                if wanted and _RTA_OIF in found:
                    base = ip_address(found.get(_RTA_DST, bytes(size)))
                    on_link = not found.keys() & {_RTA_GATEWAY, _RTA_VIA, _RTA_NH_ID}
                    yield RouteRow(ip_network((base, length)), _number(found, _RTA_OIF), on_link)

    def neighbours(self, *, of_bridges: bool = False) -> Iterator[NeighbourRow]:
        """Whose MAC is known; or behind which port of a bridge a MAC is, but for those of the ports."""
        family = _AF_BRIDGE if of_bridges else socket.AF_UNSPEC
        unusable = _NUD_PERMANENT if of_bridges else _NUD_INCOMPLETE | _NUD_FAILED
        for answer in self._ask("list neighbours", _GET_NEIGHBOUR, _NEIGHBOUR.pack(family, 0, 0, 0, 0)):
            _, device, state, _, _ = _NEIGHBOUR.unpack_from(answer)
            found = _attributes(answer, _NEIGHBOUR.size)
            if not state & unusable and len(found.get(_NDA_LLADDR, b"")) == 6:
                address = ip_address(found[_NDA_DST]) if _NDA_DST in found else None
                master = _number(found, _NDA_MASTER)
                yield NeighbourRow(device, found[_NDA_LLADDR].hex(":"), address, master)

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def _ask(self, op: str, kind: int, body: bytes, subject: str = "", *, dump: int = _DUMP) -> list[bytes]:
        """All answers to a request; asked again if things changed while they were told."""
        while True:
            answers, whole = self._ask_once(op, kind, body, subject, dump)
            if whole:
                return answers

    def _ask_once(self, op: str, kind: int, body: bytes, subject: str, dump: int) -> tuple[list[bytes], bool]:
        self._sequence += 1
        header = _HEADER.pack(_HEADER.size + len(body), kind, _REQUEST | dump, self._sequence, 0)
        self._socket.send(header + body)
        answers: list[bytes] = []
        whole = True
        while True:
            data = self._socket.recv(1 << 16)
            position = 0
            while position < len(data):
                length, answer, flags, sequence, _ = _HEADER.unpack_from(data, position)
                content = data[position + _HEADER.size : position + length]
                position += (length + 3) & ~3
                if sequence != self._sequence:  # of a request that was given up
                    continue
                whole = whole and not flags & _INTERRUPTED
                if answer in (_ERROR, _DONE):
                    number = struct.unpack_from("=i", content)[0] if content else 0
                    if number < 0:
                        raise kernel_error(-number, op, subject)
                    return answers, whole
                answers.append(content)
                if not dump:
                    return answers, whole


class LinkChanges(Resource):
    """Tells that devices or routes have changed in the namespace of the thread that makes it.

    What has changed it does not tell: look again. So nothing is missed when changes come faster than they are
    read.
    """

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC)
        self._socket.bind((0, _GROUPS))
        self._socket.setblocking(False)
        self._wake = os.eventfd(0)
        self._ready = select.poll()  # select() cannot wait for descriptors above 1023
        for each in self._socket.fileno(), self._wake:
            self._ready.register(each, select.POLLIN)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for a change, :meth:`wake` or the timeout; whether it was a change."""
        ready = {each for each, _ in self._ready.poll(None if timeout is None else 1000 * timeout)}
        if self._wake in ready:
            os.eventfd_read(self._wake)
        changed = False
        while self._socket.fileno() in ready:
            try:
                self._socket.recv(1 << 16)
                changed = True
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                changed = True  # so many that some were lost
        return changed

    def wake(self) -> None:
        """End a :meth:`wait`, from any thread."""
        os.eventfd_write(self._wake, 1)

    def close(self) -> None:
        """Close the sockets; nobody may be waiting."""
        self._socket.close()
        if self._wake >= 0:
            os.close(self._wake)
            self._wake = -1


def _attribute(kind: int, value: int) -> bytes:
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + 4, kind) + struct.pack("=i", value)


def _attributes(data: bytes, position: int) -> Attributes:
    found: Attributes = {}
    while position + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, position)
        if length < _ATTRIBUTE.size:
            break
        found[kind & _NESTED] = data[position + _ATTRIBUTE.size : position + length]
        position += (length + 3) & ~3
    return found


def _number(found: Attributes, kind: int) -> int:
    return int(_U32.unpack(found[kind])[0]) if kind in found else 0


def _signed(value: bytes) -> int:
    return int(_I32.unpack(value)[0])


def _link(answer: bytes) -> LinkRow:
    index = _LINK.unpack_from(answer)[2]
    found = _attributes(answer, _LINK.size)
    kind = _attributes(found.get(_IFLA_LINKINFO, b""), 0).get(_IFLA_INFO_KIND, b"")
    return LinkRow(
        index,
        _text(found[_IFLA_IFNAME]),
        _text(kind),
        found.get(_IFLA_ADDRESS, b"").hex(":"),
        _number(found, _IFLA_MASTER),
        _number(found, _IFLA_LINK) if _text(kind) in _PAIRS else 0,
        _signed(found[_IFLA_LINK_NETNSID]) if _IFLA_LINK_NETNSID in found else None,
    )


def _text(value: bytes) -> str:
    return value.rstrip(b"\0").decode(errors="replace")
