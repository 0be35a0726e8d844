"""Programs on a cgroup: its sockets' addresses, its sockets' packets."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import ClassVar

from k8sdatapath.errors import KernelError
from k8sdatapath.links import KernelLink, Link
from k8sdatapath.programs.base import Program
from k8sdatapath.pybpf.calls import kernel_error
from k8sdatapath.pybpf.fd import Fd


class CgroupProgram(Program):
    """What is attached to a cgroup2 directory, and holds for it and all below."""

    def attach(self, cgroup: str | os.PathLike[str]) -> Link:
        """Run for every socket of the cgroup; on which call, the program's section says.

        :param cgroup: a directory of a cgroup2 hierarchy.
        :raises KernelError: it does not exist, or is no cgroup2 directory.
        """
        from k8sdatapath.pybpf import links

        path, op = Path(cgroup), f"attach {self.name}"
        try:
            target = Fd(os.open(path, os.O_RDONLY | os.O_DIRECTORY), f"cgroup {path}")
        except OSError as error:
            raise kernel_error(error.errno or errno.EIO, op, str(path)) from error
        try:
            with target:
                kind = self.definition.expected_attach_type
                fd = links.create(self.fd, target.number, kind, subject=str(path))
        except KernelError as error:
            if error.errno != errno.EBADF:
                raise
            hint = "it is not a directory of a cgroup2 hierarchy; k8sdatapath doctor says where one is"
            raise KernelError(op, str(path), error.errno, hint) from error
        return KernelLink(fd, f"{self.name} at {path}")


class CgroupSockAddr(CgroupProgram):
    """A ``BPF_PROG_TYPE_CGROUP_SOCK_ADDR`` program: connect, sendmsg, recvmsg, getpeername, bind.

    Minimum kernel: 4.17; recvmsg 5.2, getpeername 5.8.
    """

    TYPE: ClassVar[int] = 18


class CgroupSkb(CgroupProgram):
    """A ``BPF_PROG_TYPE_CGROUP_SKB`` program: packets that the cgroup's sockets send or receive."""

    TYPE: ClassVar[int] = 8
