"""A machine of a lab: a network namespace, a cgroup, and an agent inside both."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address
from socket import AF_INET, AF_INET6, SOCK_DGRAM, SOCK_STREAM
from socket import socket as Socket
from typing import Any

from attrs import define

from k8sdatapath.errors import ModelError
from k8sdatapath.lab.addressing import Place
from k8sdatapath.lab.client import Datagram, Response, get
from k8sdatapath.lab.process import Agent
from k8sdatapath.model import Backend
from k8sdatapath.model.address import address as checked_address
from k8sdatapath.model.address import port as checked_port
from k8sdatapath.model.address import shown
from k8sdatapath.net.cgroup import Cgroup
from k8sdatapath.net.netns import NetNs

#: Seconds that clients wait, unless told otherwise.
TIMEOUT = 5.0

_ENTER_CGROUP = 'echo 0 > "$0" && exec "$@"'


@define(eq=False, repr=False)
class Host:
    """A machine of a lab.

    Sockets and processes that it makes are really its own: they live in its network namespace and its
    cgroup. The caller's process stays where it is.

    :ivar name: unique in the lab.
    :ivar netns: the network namespace; ``ip netns exec`` knows it by ``netns.name``.
    :ivar cgroup: where its processes are.
    :ivar place: its addresses, with their networks.
    """

    name: str
    netns: NetNs
    cgroup: Cgroup
    place: Place
    _agent: Agent

    @property
    def address(self) -> IPv4Address:
        """Its IPv4 address."""
        return self.place.v4.ip

    @property
    def address6(self) -> IPv6Address:
        """Its IPv6 address."""
        return self.place.v6.ip

    @property
    def addresses(self) -> tuple[IPv4Address, IPv6Address]:
        """Both."""
        return self.address, self.address6

    @property
    def mac(self) -> str:
        """The link address of its ``eth0``."""
        return self.place.mac

    def at(self, port: int, family: int = 4) -> Backend:
        """This host as a backend of a service."""
        return Backend(self.address if family == 4 else self.address6, port)

    # ---- sockets

    def socket(self, family: int = AF_INET, type: int = SOCK_STREAM, proto: int = 0) -> Socket:
        """A socket made by this host, for the caller to use and to close."""
        (fd,) = self._agent.request("socket", family=int(family), type=int(type), proto=proto)
        return Socket(family, type, proto, fileno=fd)

    def tcp(self, address: str | IPv4Address | IPv6Address, port: int, *, timeout: float = TIMEOUT) -> Socket:
        """A connected TCP socket; ``timeout`` is for connecting and for each call after."""
        return self._connected(SOCK_STREAM, address, port, timeout)

    def get(self, url: str, *, timeout: float = TIMEOUT) -> Response:
        """Ask an HTTP server, over a connection of its own.

        :param url: with an address as its host: ``"http://10.96.0.10"``, ``"http://[fd00:10:96::10]:8080/"``.
        """
        return get(lambda *where: self._connected(SOCK_STREAM, *where), url, timeout)

    def udp(
        self,
        address: str | IPv4Address | IPv6Address,
        port: int,
        payload: bytes | str = b"",
        *,
        connected: bool = False,
        timeout: float = TIMEOUT,
    ) -> Datagram:
        """Send a datagram from a new socket and wait for the answer.

        :param connected: whether to ``connect`` and ``send``, rather than ``sendto``.
        """
        data = payload.encode() if isinstance(payload, str) else payload
        if connected:
            with self._connected(SOCK_DGRAM, address, port, timeout) as sock:
                sock.send(data)
                answer, source = sock.recvfrom(65536)
        else:
            family, where = _target(address, port)
            with self.socket(family, SOCK_DGRAM) as sock:
                sock.settimeout(timeout)
                sock.sendto(data, where)
                answer, source = sock.recvfrom(65536)
        return Datagram(answer, source[:2])

    def _connected(
        self, type: int, address: str | IPv4Address | IPv6Address, port: int, timeout: float
    ) -> Socket:
        family, where = _target(address, port)
        sock = self.socket(family, type)
        try:
            sock.settimeout(timeout)
            sock.connect(where)
        except BaseException:
            sock.close()
            raise
        return sock

    # ---- servers

    def serve_http(self, port: int, body: bytes | str = "") -> None:
        """Answer every HTTP request on ``port``, of both families, with ``body``, until the lab ends.

        Connections are kept alive. The header ``X-Peer`` tells whom the server sees as its client.
        """
        self._agent.request("http", port=checked_port(port), body=_latin(body))

    def serve_udp(self, port: int, body: bytes | str | None = None) -> None:
        """Answer every datagram on ``port``, of both families, with ``body`` or else with itself."""
        self._agent.request("udp", port=checked_port(port), body=None if body is None else _latin(body))

    # ---- processes

    def popen(self, command: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
        """Start a program in this host; ``options`` are those of :class:`subprocess.Popen`.

        It is the caller's own child, and is killed with the lab.

        :raises ModelError: not a list of texts.
        :raises FileNotFoundError: there is no such program.
        """
        if isinstance(command, str) or not command or not all(isinstance(word, str) for word in command):
            raise ModelError(f"not a command as a list, like ['ip', 'address']: {shown(command)}")
        program = shutil.which(command[0])
        if program is None:
            raise FileNotFoundError(f"no such program: {command[0]}")
        procs = str(self.cgroup.path / "cgroup.procs")
        shell = ["/bin/sh", "-c", _ENTER_CGROUP, procs, program, *command[1:]]
        return self.netns.call(lambda: subprocess.Popen(shell, **options))

    def exec(
        self, command: Sequence[str], *, input: str = "", timeout: float | None = None, check: bool = False
    ) -> subprocess.CompletedProcess[str]:
        """Run a program in this host to its end, with its output as text.

        :param check: raise :class:`subprocess.CalledProcessError` if it fails.
        """
        pipe = subprocess.PIPE
        with self.popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
            try:
                out, err = process.communicate(input, timeout)
            except BaseException:
                process.kill()
                raise
        done = subprocess.CompletedProcess(list(command), process.returncode, out, err)
        if check:
            done.check_returncode()
        return done

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name} {self.address} {self.address6}>"


def _target(address: str | IPv4Address | IPv6Address, port: int) -> tuple[int, tuple[str, int]]:
    """The family of an address, and where to send. Names are not looked up: they are of another network."""
    found = checked_address(address)
    return AF_INET if found.version == 4 else AF_INET6, (str(found), checked_port(port))


def _latin(body: bytes | str) -> str:
    """Bytes as text that JSON can carry, one character each."""
    return (body.encode() if isinstance(body, str) else body).decode("latin-1")
