"""sk_msg: what sockets of a sockmap send, before it reaches the stack."""

from __future__ import annotations

import errno
from typing import ClassVar, Protocol

from k8sdatapath.errors import KernelError
from k8sdatapath.links import KernelLink, Link, OtherLink
from k8sdatapath.programs.base import Program
from k8sdatapath.pybpf.fd import Fd

_MSG_VERDICT = 7  # BPF_SK_MSG_VERDICT


class _Map(Protocol):
    @property
    def fd(self) -> Fd: ...


class SockMapProgram(Program):
    """What is attached to a SockMap or SockHash."""

    def _attach(self, target: _Map, attach_type: int) -> Link:
        """By link where the kernel has it (6.10), else by ``BPF_PROG_ATTACH``."""
        from k8sdatapath.pybpf import links, progs

        what = f"{self.name} at {target.fd.what}"
        try:
            return KernelLink(
                links.create(self.fd, target.fd.number, attach_type, subject=target.fd.what), what
            )
        except KernelError as error:
            if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
                raise
        progs.attach(self.fd, target.fd.number, attach_type)
        held = target.fd.dup()  # detaching must work after the map object is closed

        def detach() -> None:
            with held:
                progs.detach(self.fd, held.number, attach_type)

        return OtherLink(what, detach=detach, update=None)


class SkMsg(SockMapProgram):
    """A ``BPF_PROG_TYPE_SK_MSG`` program. Minimum kernel: 4.17."""

    TYPE: ClassVar[int] = 16

    def attach(self, sockets: _Map) -> Link:
        """Run on every message that a socket in ``sockets`` (a SockMap or SockHash) sends."""
        return self._attach(sockets, _MSG_VERDICT)
