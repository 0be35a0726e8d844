"""Links: a program on a hook, as a thing that its holder can update, pin and take off.

A link is returned to whoever attached and never hidden inside a program. Closing the last reference to an
unpinned link takes the program off its hook.
"""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from attrs import frozen

from k8sdatapath.errors import ClosedError, NotSupportedError
from k8sdatapath.pybpf.fd import Fd
from k8sdatapath.resource import Resource

if TYPE_CHECKING:
    from k8sdatapath.pybpf.links import LinkInfo

__all__ = ["After", "Anchor", "Before", "First", "KernelLink", "Last", "Link", "OtherLink"]

# uapi/linux/bpf.h
_BEFORE, _AFTER, _LINK = 1 << 3, 1 << 4, 1 << 13


class _HasProgramFd(Protocol):
    @property
    def fd(self) -> Fd: ...


class Link(Resource):
    """What every attachment can do, however the kernel keeps it."""

    what: str

    @property
    @abstractmethod
    def closed(self) -> bool:
        """Whether this reference was given up."""

    @abstractmethod
    def update(self, program: _HasProgramFd) -> None:
        """Swap the program in one step: no packet sees neither or both."""

    @abstractmethod
    def detach(self) -> None:
        """Take the program off its hook now, pinned or not, and close."""

    @abstractmethod
    def pin(self, path: str | Path) -> None:
        """Let the attachment outlive this process."""

    @abstractmethod
    def close(self) -> None:
        """Give up this reference; the program stays on its hook only if the link is pinned."""

    def __repr__(self) -> str:
        return f"<Link {self.what}{' closed' if self.closed else ''}>"


class KernelLink(Link):
    """A ``bpf_link``: tcx, XDP, cgroup, netns, netfilter, iterator, sockmap."""

    def __init__(self, fd: Fd, what: str) -> None:
        self.fd = fd
        self.what = what

    @classmethod
    def open_pinned(cls, path: str | Path) -> KernelLink:
        """Take over a link that was pinned, here or by an earlier process.

        :raises BpffsError: nothing is pinned there, or no link.
        """
        from k8sdatapath.pybpf import links

        return cls(links.open_pinned(Path(path), "link"), f"pinned at {path}")

    @property
    def info(self) -> LinkInfo:
        """Id, program and device, as the kernel tells them."""
        from k8sdatapath.pybpf import links

        return links.info(self.fd)

    @property
    def closed(self) -> bool:
        """Whether this reference was given up."""
        return self.fd.closed

    def fileno(self) -> int:
        """The link's descriptor."""
        return self.fd.number

    def update(self, program: _HasProgramFd) -> None:
        """Swap the program in one step.

        :raises DeviceGoneError: the device was deleted; the link is defunct.
        """
        from k8sdatapath.pybpf import links

        links.update(self.fd, program.fd)

    def detach(self) -> None:
        """Take the program off its hook, pinned or not, and close."""
        from k8sdatapath.pybpf import links

        links.detach(self.fd)
        self.close()

    def pin(self, path: str | Path) -> None:
        """Pin in bpffs: the program stays on its hook after :meth:`close` and after the process.

        :raises BpffsError: the path is not on a BPF filesystem, or taken.
        """
        from k8sdatapath.pybpf import links

        links.pin(self.fd, Path(path))

    def close(self) -> None:
        """Give up this reference."""
        self.fd.close()


class OtherLink(Link):
    """An attachment from before links: a clsact filter, a program on a sockmap.

    It has the same verbs, but nothing in the kernel that could be pinned: the attachment lasts until it is
    detached, and :meth:`close` detaches.
    """

    def __init__(self, what: str, *, detach: Callable[[], None], update: Callable[[Fd], None] | None) -> None:
        self.what = what
        self._detach: Callable[[], None] | None = detach
        self._update = update

    @property
    def closed(self) -> bool:
        """Whether it was detached."""
        return self._detach is None

    def update(self, program: _HasProgramFd) -> None:
        """Swap the program in one step, where the hook can."""
        if self.closed:
            raise ClosedError(f"{self.what} is closed")
        if self._update is None:
            raise NotSupportedError(
                "replacing a program in one step", subject=self.what, hint="detach and attach"
            )
        self._update(program.fd)

    def detach(self) -> None:
        """Take the program off its hook."""
        detach, self._detach = self._detach, None
        if detach is not None:
            detach()

    def close(self) -> None:
        """The same as :meth:`detach`: there is no reference to give up."""
        self.detach()

    def pin(self, path: str | Path) -> None:
        """Not possible: see the class."""
        raise NotSupportedError("pinning", subject=self.what, hint="only bpf links can be pinned")

    def __del__(self) -> None:
        if getattr(self, "_detach", None) is not None:
            warnings.warn(f"{self.what} was never detached", ResourceWarning, stacklevel=2, source=self)


@frozen
class First:
    """Run before every program that is on the hook now."""


@frozen
class Last:
    """Run after every program that is on the hook now."""


@frozen
class Before:
    """Run just before the program of ``link``."""

    link: KernelLink


@frozen
class After:
    """Run just after the program of ``link``."""

    link: KernelLink


Anchor = First | Last | Before | After


def anchor_arguments(anchor: Anchor) -> tuple[int, int]:
    """The ``(flags, relative descriptor)`` that say a place on a hook to the kernel."""
    match anchor:
        case First():
            return _BEFORE, 0
        case Last():
            return _AFTER, 0
        case Before(link):
            return _BEFORE | _LINK, link.fd.number
        case After(link):
            return _AFTER | _LINK, link.fd.number
