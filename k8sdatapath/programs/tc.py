"""TC: packets of a network device, in either direction, as socket buffers."""

from __future__ import annotations

import errno
from enum import IntEnum
from typing import TYPE_CHECKING, ClassVar, Literal

from k8sdatapath.errors import KernelError, NotSupportedError
from k8sdatapath.links import Anchor, KernelLink, Last, Link, OtherLink, anchor_arguments
from k8sdatapath.programs.base import Program, device_index, in_netns
from k8sdatapath.pybpf.fd import Fd

if TYPE_CHECKING:
    from k8sdatapath.net.netns import NetNs


class Direction(IntEnum):
    """Which way packets go, seen from the device: ingress is what it receives."""

    INGRESS = 1
    EGRESS = 2


class TcAction(IntEnum):
    """What a TC program answers (``TC_ACT_*``)."""

    UNSPEC = 0xFFFFFFFF
    OK = 0
    SHOT = 2
    REDIRECT = 7


_TCX = {Direction.INGRESS: 46, Direction.EGRESS: 47}  # enum bpf_attach_type


class TC(Program):
    """A ``BPF_PROG_TYPE_SCHED_CLS`` program."""

    TYPE: ClassVar[int] = 3

    def attach(
        self,
        device: str | int,
        direction: Direction,
        *,
        netns: NetNs | None = None,
        anchor: Anchor = Last(),  # noqa: B008 - a frozen value
        via: Literal["tcx", "clsact"] | None = None,
    ) -> Link:
        """Run on every packet of ``device`` in ``direction``.

        :param device: name or index, in ``netns`` or else the calling thread's namespace.
        :param anchor: where among the programs of this hook (tcx only).
        :param via: ``None`` takes tcx where the kernel has it (6.6), else a clsact filter.
        :raises DeviceGoneError: no such device.
        :raises KernelError: ``EEXIST`` if this program is on this hook already.
        :raises NotSupportedError: an ordering was asked for on a kernel without tcx.
        """

        def attach() -> Link:
            index = device_index(device)
            what = f"{self.name} at {direction.name.lower()} of {device}"
            if via == "clsact":
                return self._attach_clsact(index, direction, what, netns)
            try:
                return self._attach_tcx(index, direction, what, anchor)
            except KernelError as error:
                if error.errno != errno.EINVAL or _has_tcx(self.fd):
                    raise
            if via == "tcx" or not isinstance(anchor, Last):
                raise NotSupportedError("tcx", min_kernel="6.6", subject=what)
            return self._attach_clsact(index, direction, what, netns)

        return in_netns(netns, attach)

    def _attach_tcx(self, index: int, direction: Direction, what: str, anchor: Anchor) -> Link:
        import struct

        from k8sdatapath.pybpf import links

        flags, relative = anchor_arguments(anchor)
        tail = struct.pack("IIQ", relative, 0, 0)  # relative_fd, hole, expected_revision: any
        return KernelLink(
            links.create(self.fd, index, _TCX[direction], flags=flags, tail=tail, subject=what), what
        )

    def _attach_clsact(self, index: int, direction: Direction, what: str, netns: NetNs | None) -> Link:
        from k8sdatapath.pybpf import links

        priority, handle = links.tc_attach(index, direction, self.fd)
        return OtherLink(
            f"{what} (clsact)",
            detach=lambda: in_netns(netns, lambda: links.tc_detach(index, direction, priority, handle)),
            update=lambda fd: in_netns(
                netns, lambda: links.tc_replace(index, direction, fd, priority, handle)
            ),
        )


def _has_tcx(program: Fd) -> bool:
    """Tell "no tcx" from "bad arguments": with tcx, an impossible device is ENODEV and not EINVAL."""
    from k8sdatapath.pybpf import links

    try:
        links.create(program, 0x7FFFFFFF, _TCX[Direction.INGRESS]).close()
    except KernelError as error:
        return error.errno == errno.ENODEV
    return True
