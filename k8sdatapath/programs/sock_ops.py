"""sock_ops: events in the life of the TCP sockets of a cgroup."""

from __future__ import annotations

from typing import ClassVar

from k8sdatapath.programs.cgroup import CgroupProgram


class SockOps(CgroupProgram):
    """A ``BPF_PROG_TYPE_SOCK_OPS`` program. Minimum kernel: 4.13."""

    TYPE: ClassVar[int] = 13
