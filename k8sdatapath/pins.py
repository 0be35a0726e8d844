"""Pins: names in a BPF filesystem, under which maps, programs and links outlive the process."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from attrs import field, frozen

from k8sdatapath.errors import BpffsError, KernelError, PinsBusyError
from k8sdatapath.pybpf.fd import Fd

#: Where the kernel documentation, systemd and every BPF tool expect the filesystem.
BPFFS = Path("/sys/fs/bpf")


def ensure_bpffs(path: Path = BPFFS) -> None:
    """Make sure that ``path`` lies on a BPF filesystem, mounting one at :data:`BPFFS` if that is what lacks.

    :raises BpffsError: it does not, and says what to run.
    """
    from k8sdatapath.pybpf import links

    there = next(parent for parent in (path, *path.parents) if parent.exists())
    if links.is_bpffs(there):
        return
    if path.is_relative_to(BPFFS) and BPFFS.is_dir():
        try:
            links.mount_bpffs(BPFFS)
        except KernelError as error:
            hint = f"run as root: mount -t bpf bpf {BPFFS}"
            raise BpffsError("mount a BPF filesystem", str(BPFFS), error.errno, hint) from error
        return
    hint = f"choose one below {BPFFS}; where that is not mounted, run as root: mount -t bpf bpf {BPFFS}"
    raise BpffsError("use as a pin directory", str(path), errno.EINVAL, hint)


@frozen
class PinDir:
    """A directory in bpffs that holds the pins of one datapath: ``maps/NAME`` and ``links/NAME``.

    The kernel is the memory: what a restarted process finds here, it takes over.

    :param path: the directory; made on first use.
    """

    path: Path = field(converter=Path)

    def __str__(self) -> str:
        return str(self.path)

    def create(self) -> PinDir:
        """Make the directory, and the filesystem below it if need be.

        :raises BpffsError: the path is not on a BPF filesystem.
        """
        ensure_bpffs(self.path)
        for kind in ("maps", "links"):
            (self.path / kind).mkdir(parents=True, exist_ok=True)
        return self

    @property
    def maps(self) -> list[str]:
        """Names of the pinned maps."""
        return self._names("maps")

    @property
    def links(self) -> list[str]:
        """Names of the pinned links."""
        return self._names("links")

    def map_path(self, name: str) -> Path:
        """Where the map of this name is pinned."""
        return self.path / "maps" / name

    def link_path(self, name: str) -> Path:
        """Where the link of this name is pinned."""
        return self.path / "links" / name

    def open_map(self, name: str) -> Fd:
        """Open a pinned map; the caller owns the descriptor.

        :raises BpffsError: there is no such pin.
        """
        return self._open(self.map_path(name), f"map {name}")

    def open_link(self, name: str) -> Fd:
        """Open a pinned link; the caller owns the descriptor."""
        return self._open(self.link_path(name), f"link {name}")

    def pin(self, fd: Fd, path: Path) -> None:
        """Pin a descriptor at a path of this directory.

        :raises BpffsError: the path is not on a BPF filesystem, or taken.
        """
        from k8sdatapath.pybpf import links

        self.create()
        try:
            links.pin(fd, path)
        except KernelError as error:
            raise BpffsError(error.op, error.subject, error.errno, error.hint) from error

    def replace(self, fd: Fd, path: Path) -> None:
        """Pin in place of what is pinned at a path, in one step: there is always one or the other."""
        fresh = path.with_name(path.name + "~")
        fresh.unlink(missing_ok=True)  # of a process that was killed right here
        self.pin(fd, fresh)
        fresh.rename(path)

    @contextmanager
    def restored_on_error(self) -> Iterator[None]:
        """Around what pins several things: if it fails, those that it has pinned are unpinned."""
        existed, before = self.path.exists(), self._paths()
        try:
            yield
        except BaseException:
            for path in self._paths() - before:
                path.unlink()
            if not existed:
                self.remove()
            raise

    def lock(self) -> PinLock:
        """Be the only owner of the directory, which is made if need be, until the lock is closed.

        The kernel lets go of it when the process ends, however it does; children that it forked without
        an exec hold on to it.

        :raises PinsBusyError: another owner, of this process or another, has it.
        :raises BpffsError: the directory cannot be made.
        """
        while True:
            made = not self.path.exists()
            self.create()
            number = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            lock = PinLock(self, Fd(number, f"lock of {self}"), made=made)
            try:
                fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                hint = _holder(os.fstat(number))
                lock.fd.close()
                raise PinsBusyError("lock pin directory", str(self), errno.EBUSY, hint) from error
            if lock.valid:
                return lock
            lock.fd.close()  # its last owner removed the directory between our open and our lock

    def remove(self) -> None:
        """Remove every pin and the directory; what nothing else holds is freed by the kernel."""
        if self.path.exists():
            shutil.rmtree(self.path)

    def prune(self) -> None:
        """Remove the directory if nothing is pinned there."""
        for directory in (self.path / "maps", self.path / "links", self.path):
            with suppress(OSError):  # not empty, or not there
                directory.rmdir()

    def _names(self, kind: str) -> list[str]:
        return sorted(self._entries(kind))

    def _entries(self, kind: str) -> Iterator[str]:
        directory = self.path / kind
        if directory.is_dir():
            yield from (entry.name for entry in directory.iterdir())

    def _paths(self) -> set[Path]:
        return {self.path / kind / name for kind in ("maps", "links") for name in self._entries(kind)}

    def _open(self, path: Path, what: str) -> Fd:
        from k8sdatapath.pybpf import links

        try:
            return links.open_pinned(path, what)
        except KernelError as error:
            raise BpffsError(f"open pinned {what}", str(path), error.errno, error.hint) from error


class PinLock:
    """Sole ownership of a pin directory; see :meth:`PinDir.lock`."""

    def __init__(self, pins: PinDir, fd: Fd, *, made: bool) -> None:
        self.pins = pins
        self.fd = fd
        self._made = made

    @property
    def valid(self) -> bool:
        """Whether it is held, and of a directory that is still there."""
        return not self.fd.closed and os.fstat(self.fd.number).st_nlink > 0

    def close(self) -> None:
        """Let others have the directory. If it was made for the lock, and nothing came in, it goes."""
        if self._made and self.valid:
            self.pins.prune()
        self.fd.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()


def _holder(directory: os.stat_result) -> str:
    """Who holds the lock of a directory, from proc_locks(5)."""
    file = f"{os.major(directory.st_dev):02x}:{os.minor(directory.st_dev):02x}:{directory.st_ino}"
    for line in Path("/proc/locks").read_text().splitlines():
        match line.split():
            case [_, "FLOCK", _, _, pid, what, *_] if what == file:
                return f"process {pid} has it"
    return "another process has it"
