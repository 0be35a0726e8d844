"""sk_lookup: which socket a new connection goes to."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from k8sdatapath.links import KernelLink, Link
from k8sdatapath.programs.base import Program

if TYPE_CHECKING:
    from k8sdatapath.net.netns import NetNs


class SkLookup(Program):
    """A ``BPF_PROG_TYPE_SK_LOOKUP`` program. Minimum kernel: 5.9."""

    TYPE: ClassVar[int] = 30

    def attach(self, netns: NetNs) -> Link:
        """Run when a packet of ``netns`` looks for a listening or unconnected socket."""
        from k8sdatapath.pybpf import links

        fd = links.create(self.fd, netns.fileno(), self.definition.expected_attach_type, subject=str(netns))
        return KernelLink(fd, f"{self.name} at {netns}")
