"""SocketReaper: connected sockets do not outlive the backend that was chosen for them.

What a process dialled was exchanged for a backend's address when it called ``connect``, and the kernel's
socket holds that address from then on. When the backend leaves its service, a UDP client would go on sending
to where nobody answers. Its socket is destroyed: it gets an error, connects again, and reaches another.
Established TCP may be finishing what it began, so its sockets are destroyed only if that is asked for. An
unconnected socket has its backend chosen anew with the next datagram, and is never touched.
"""

from __future__ import annotations

from attrs import frozen

from k8sdatapath import programs
from k8sdatapath.datapath.contract import Bindable, load_over
from k8sdatapath.layout import layout_of
from k8sdatapath.model import Frontend, IPAddress, Protocol
from k8sdatapath.net.netns import NetNs, inhabited
from k8sdatapath.objects import Object
from k8sdatapath.programs.base import in_netns
from k8sdatapath.resource import Resource
from k8sdatapath.tables.sockets import SockRow

__all__ = ["DestroyedSocket", "SocketReaper"]

_PROGRAMS = {Protocol.UDP: "reap_udp", Protocol.TCP: "reap_tcp"}


@frozen
class DestroyedSocket:
    """A socket that was connected to a backend which is gone.

    :ivar frontend: what its process had dialled.
    :ivar backend: address and port that it was connected to.
    """

    frontend: Frontend
    backend: tuple[IPAddress, int]

    def __str__(self) -> str:
        address, port = self.backend
        return f"{self.frontend} at {f'[{address}]' if address.version == 6 else address}:{port}"


class SocketReaper(Resource):
    """Destroys sockets of a datapath whose backend is gone. Minimum kernel: 6.5.

    Make one with :meth:`bind`, over the maps that the socket programs use.
    """

    def __init__(self, loaded: Object) -> None:
        self._loaded = loaded

    @classmethod
    def bind(cls, source: Bindable) -> SocketReaper:
        """A reaper over the maps of an object, a pin directory, or a mapping of name to map.

        :raises ContractError: a map is missing.
        :raises NotSupportedError: the kernel cannot destroy sockets.
        """
        return cls(load_over(source, "reaper", "a socket reaper", needs="sock_destroy"))

    def reap(self, *, tcp: bool = False, netns: NetNs | None = None) -> tuple[DestroyedSocket, ...]:
        """Destroy the sockets of one network namespace whose backend is gone; returns which.

        :param tcp: TCP connections as well.
        :param netns: where; None is the namespace of the calling thread.
        """
        return in_netns(netns, lambda: self._reap(tcp))

    def reap_everywhere(self, *, tcp: bool = False) -> tuple[DestroyedSocket, ...]:
        """Do so in every network namespace that a process is in, or that has a name in ``/run/netns``."""
        return tuple(gone for netns in inhabited() for gone in self.reap(tcp=tcp, netns=netns))

    def _reap(self, tcp: bool) -> tuple[DestroyedSocket, ...]:
        rows = layout_of(SockRow)
        return tuple(
            DestroyedSocket(
                Frontend(row.frontend_addr, row.frontend_port, protocol), (row.backend_addr, row.backend_port)
            )
            for protocol, name in _PROGRAMS.items()
            if tcp or protocol is not Protocol.TCP
            for row in rows.unpack_many(self._loaded.program(name, programs.Iter).read())
        )

    def close(self) -> None:
        """Unload the programs; idempotent."""
        self._loaded.close()

    def __repr__(self) -> str:
        return f"<SocketReaper {self._loaded!r}>"
