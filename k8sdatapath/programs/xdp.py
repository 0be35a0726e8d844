"""XDP: packets of a network device before the kernel has made a socket buffer of them."""

from __future__ import annotations

import errno
from enum import IntEnum
from typing import TYPE_CHECKING, ClassVar

from k8sdatapath.errors import KernelError, NotSupportedError
from k8sdatapath.links import KernelLink, Link
from k8sdatapath.programs.base import Program, device_index, in_netns

if TYPE_CHECKING:
    from k8sdatapath.net.netns import NetNs


class XdpMode(IntEnum):
    """Where the program runs (``XDP_FLAGS_*``)."""

    AUTO = 0  # native if the driver can, else generic
    GENERIC = 1 << 1  # in the stack, on a socket buffer: every device, slow
    NATIVE = 1 << 2  # in the driver


class XdpAction(IntEnum):
    """What an XDP program answers."""

    ABORTED = 0
    DROP = 1
    PASS = 2
    TX = 3
    REDIRECT = 4


_HINTS = {
    errno.EBUSY: "another XDP program is on the device; a device has one",
    errno.ERANGE: 'the MTU is too large for one buffer: make the program SEC("xdp.frags"), or lower the MTU',
    errno.EINVAL: "the driver cannot run it with this MTU, these queues or this mode",
    errno.EOPNOTSUPP: "the driver has no native XDP: use XdpMode.GENERIC",
}
_ATTACH_TYPE = 37  # BPF_XDP


class XDP(Program):
    """A ``BPF_PROG_TYPE_XDP`` program. Minimum kernel for links: 5.9; for frags (``xdp.frags``): 5.18."""

    TYPE: ClassVar[int] = 6

    def attach(self, device: str | int, *, netns: NetNs | None = None, mode: XdpMode = XdpMode.AUTO) -> Link:
        """Run on every packet that ``device`` receives.

        :raises KernelError: with a hint: the device has a program already, the MTU is too large, ...
        :raises NotSupportedError: the driver has no native XDP and ``mode`` insists.
        """
        from k8sdatapath.pybpf import links

        def attach() -> Link:
            what = f"{self.name} at XDP of {device}"
            try:
                fd = links.create(
                    self.fd, device_index(device), _ATTACH_TYPE, flags=mode, subject=str(device)
                )
            except NotSupportedError as error:
                raise NotSupportedError(
                    "native XDP", subject=str(device), hint=_HINTS[errno.EOPNOTSUPP]
                ) from error
            except KernelError as error:
                if error.errno in _HINTS:
                    raise KernelError(error.op, error.subject, error.errno, _HINTS[error.errno]) from error
                raise
            return KernelLink(fd, what)

        return in_netns(netns, attach)
