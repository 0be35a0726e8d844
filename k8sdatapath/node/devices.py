"""What a node reads of its devices."""

from __future__ import annotations

import fcntl
import socket

from k8sdatapath.model import IPAddress
from k8sdatapath.net.netns import NetNs
from k8sdatapath.net.rtnetlink import Rtnetlink
from k8sdatapath.programs.base import in_netns

__all__ = ["mac_of", "own_addresses"]

_SIOCGIFHWADDR = 0x8927


def mac_of(device: str) -> str:
    """The MAC of a device of the calling thread's namespace."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        answer = fcntl.ioctl(any_socket, _SIOCGIFHWADDR, device.encode()[:15].ljust(256, b"\0"))
    return answer[18:24].hex(":")


def own_addresses(netns: NetNs | None) -> set[IPAddress]:
    """All addresses of a namespace; None is that of the calling thread."""

    def read() -> set[IPAddress]:
        with Rtnetlink() as net:
            return {each for _, each in net.addresses()}

    return in_netns(netns, read)
