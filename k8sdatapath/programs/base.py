"""What all kinds of programs share: a descriptor, a description, a test run."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, ClassVar, TypeVar

from attrs import field, frozen

from k8sdatapath.errors import DeviceGoneError, ObjectError
from k8sdatapath.pybpf.fd import Fd

if TYPE_CHECKING:
    from k8sdatapath.net.netns import NetNs
    from k8sdatapath.pybpf.objects import ProgramDef
    from k8sdatapath.pybpf.progs import ProgramInfo

T = TypeVar("T")

__all__ = ["Program", "RunResult", "device_index", "in_netns"]


@frozen
class RunResult:
    """Outcome of a test run.

    :ivar retval: what the program returned (a verdict such as ``TC_ACT_OK``), unsigned 32 bits.
    :ivar data: the packet as the program left it.
    :ivar ctx: the context as the program left it, where one was given.
    :ivar duration_ns: mean time of one run.
    """

    retval: int
    data: bytes = field(repr=lambda data: f"<{len(data)} bytes>")
    ctx: bytes = field(repr=lambda ctx: f"<{len(ctx)} bytes>")
    duration_ns: int


class Program:
    """A loaded program. Its descriptor belongs to the :class:`~k8sdatapath.objects.Object` it came with.

    The base class runs any kind; its subclasses can attach.
    """

    #: ``enum bpf_prog_type`` of this kind; -1 accepts any.
    TYPE: ClassVar[int] = -1

    def __init__(self, fd: Fd, definition: ProgramDef) -> None:
        if self.TYPE not in (-1, definition.type):
            raise ObjectError(
                f"program {definition.name!r} in section {definition.section!r} has type {definition.type}, "
                f"{type(self).__name__} is type {self.TYPE}"
            )
        self.fd = fd
        self.definition = definition

    @property
    def name(self) -> str:
        """The C function's name."""
        return self.definition.name

    @property
    def info(self) -> ProgramInfo:
        """Id, name and run counts, as the kernel tells them."""
        from k8sdatapath.pybpf import progs

        return progs.info(self.fd)

    def fileno(self) -> int:
        """The program's descriptor."""
        return self.fd.number

    def run(self, packet: bytes | None = None, *, ctx: bytes | None = None, repeat: int = 1) -> RunResult:
        """Run the loaded program on a packet, without any device (``BPF_PROG_TEST_RUN``).

        :param packet: a frame from its Ethernet header on, at least 14 bytes.
        :param ctx: the context struct of the program's kind, in the kernel's layout.
        :param repeat: run that often and report the mean time. The packet is *not* restored in between.
        :raises KernelError: the kernel cannot run this kind, or refuses the packet.
        """
        from k8sdatapath.pybpf import progs

        return RunResult(*progs.run(self.fd, packet, ctx=ctx, repeat=repeat))

    def run_many(
        self, packets: Sequence[bytes], *, ctxs: Sequence[bytes] | None = None
    ) -> list[tuple[int, bytes]]:
        """Run the loaded program once on each packet: some hundred thousand in a second.

        :param ctxs: a context for each packet, all of one size.
        :returns: what the program returned for each packet, and the packet as it left it.
        :raises KernelError: as :meth:`run`, saying which packet; those before it have run.
        """
        from k8sdatapath.pybpf import progs

        return progs.run_many(self.fd, packets, ctxs)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name} ({self.definition.section})>"


def in_netns(netns: NetNs | None, call: Callable[[], T]) -> T:
    """Run ``call`` in a namespace, or right here; the caller's thread does not move."""
    return call() if netns is None else netns.call(call)


def device_index(device: str | int) -> int:
    """The interface index of a device of the calling thread's network namespace.

    :raises DeviceGoneError: there is no such device.
    """
    if isinstance(device, int):
        return device
    try:
        return socket.if_nametoindex(device)
    except OSError as error:
        raise DeviceGoneError(
            "find device", device, error.errno or 0, "no such device in this namespace"
        ) from None
