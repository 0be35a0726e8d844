"""sk_skb: what sockets of a sockmap receive."""

from __future__ import annotations

from typing import ClassVar

from k8sdatapath.links import Link
from k8sdatapath.programs.sk_msg import SockMapProgram, _Map


class SkSkb(SockMapProgram):
    """A ``BPF_PROG_TYPE_SK_SKB`` program: stream parser, stream verdict or verdict, as its section says.

    Minimum kernel: 4.14; ``sk_skb/verdict`` 5.13.
    """

    TYPE: ClassVar[int] = 14

    def attach(self, sockets: _Map) -> Link:
        """Run on what the sockets in ``sockets`` (a SockMap or SockHash) receive."""
        return self._attach(sockets, self.definition.expected_attach_type)
