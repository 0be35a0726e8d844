"""Netfilter: packets at one of the five hooks of iptables and nftables."""

from __future__ import annotations

import socket
import struct
from enum import IntEnum
from typing import TYPE_CHECKING, ClassVar

from k8sdatapath.links import KernelLink, Link
from k8sdatapath.programs.base import Program, in_netns

if TYPE_CHECKING:
    from k8sdatapath.net.netns import NetNs


class Hook(IntEnum):
    """``enum nf_inet_hooks``."""

    PRE_ROUTING = 0
    LOCAL_IN = 1
    FORWARD = 2
    LOCAL_OUT = 3
    POST_ROUTING = 4


_PROTOCOL = {socket.AF_INET: 2, socket.AF_INET6: 10}  # NFPROTO_*


class Netfilter(Program):
    """A ``BPF_PROG_TYPE_NETFILTER`` program. Minimum kernel: 6.4."""

    TYPE: ClassVar[int] = 32

    def attach(
        self, family: socket.AddressFamily, hook: Hook, *, priority: int = 0, netns: NetNs | None = None
    ) -> Link:
        """Run at ``hook`` for packets of one family; lower priorities run first, each may be taken once."""
        from k8sdatapath.pybpf import links

        tail = struct.pack("IIiI", _PROTOCOL[family], hook, priority, 0)
        what = f"{self.name} at netfilter {hook.name.lower()}"

        def attach() -> Link:
            attach_type = self.definition.expected_attach_type
            return KernelLink(links.create(self.fd, 0, attach_type, tail=tail, subject=what), what)

        return in_netns(netns, attach)
