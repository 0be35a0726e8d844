"""Pins: names in a BPF filesystem, under which maps, programs and links outlive the process."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from attrs import field, frozen

from k8sdatapath.errors import BpffsError, PinsBusyError
from k8sdatapath.pybpf.calls import kernel_error
from k8sdatapath.pybpf.fd import Fd
from k8sdatapath.resource import Resource

#: Where the kernel documentation, systemd and every BPF tool expect the filesystem.
BPFFS = Path("/sys/fs/bpf")


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Keep out other processes that do the same to a directory."""
    lock = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def ensure_bpffs(path: Path = BPFFS) -> None:
    """Make sure that ``path`` lies on a BPF filesystem, mounting one at :data:`BPFFS` if that is what lacks.

    :raises BpffsError: it does not, and says what to run.
    """
    from k8sdatapath.pybpf import links

    there = next(parent for parent in (path, *path.parents) if os.path.exists(parent))
    if links.is_bpffs(there):
        return
    if path.is_relative_to(BPFFS) and BPFFS.is_dir():
        try:
            with locked(BPFFS):  # a second one would hide what others have pinned in the first
                if not links.is_bpffs(BPFFS):
                    links.mount_bpffs(BPFFS)
        except OSError as error:
            hint = f"run as root: mount -t bpf bpf {BPFFS}"
            raise BpffsError("mount a BPF filesystem", str(BPFFS), error.errno or 0, hint) from error
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
        """Make the directory, and the filesystem below it if need be. Only its owner may look into it.

        :raises BpffsError: the path is not on a BPF filesystem, cannot be made, or is open to other users.
        """
        from k8sdatapath.pybpf import links

        ensure_bpffs(self.path)
        try:
            for directory in reversed(self._missing()):
                directory.mkdir(0o700, exist_ok=True)
        except OSError as error:
            raise links.pin_error(error.errno or errno.EIO, "make pin directory", self.path) from error
        for directory in self._directories:
            _check_trust(directory)
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

        :raises BpffsError: there is no such pin, or it is not of a map.
        """
        return self._open(self.map_path(name), "map")

    def open_link(self, name: str) -> Fd:
        """Open a pinned link; the caller owns the descriptor."""
        return self._open(self.link_path(name), "link")

    def pin(self, fd: Fd, path: Path) -> None:
        """Pin a descriptor at a path of this directory.

        :raises BpffsError: the path is not on a BPF filesystem, or taken.
        """
        from k8sdatapath.pybpf import links

        self.create()
        links.pin(fd, path)

    def replace(self, fd: Fd, path: Path) -> None:
        """Pin in place of what is pinned at a path, in one step: there is always one or the other."""
        fresh = path.with_name(path.name + "~")
        fresh.unlink(missing_ok=True)  # of a process that was killed right here
        self.pin(fd, fresh)
        fresh.rename(path)

    @contextmanager
    def restored_on_error(self) -> Iterator[None]:
        """Around what pins several things: if it fails, what it has pinned and the directories it made go."""
        missing, before = self._missing(), self._paths()
        try:
            yield
        except BaseException:
            _unlink(self._paths() - before)
            _remove_empty(missing)
            raise

    def lock(self) -> PinLock:
        """Be the only owner of the directory, which is made if need be, until the lock is closed.

        The kernel lets go of it when the process ends, however it does; children that it forked without
        an exec hold on to it.

        :raises PinsBusyError: another owner, of this process or another, has it.
        :raises BpffsError: the directory cannot be made.
        """
        while True:
            made = self._missing()
            try:
                self.create()
                number = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            except FileNotFoundError:  # its last owner removed it just now
                continue
            lock = PinLock(Fd(number, f"lock of {self}"), made=made)
            try:
                fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                hint = _holder(os.fstat(number))
                lock.fd.close()
                raise PinsBusyError("lock pin directory", str(self), errno.EBUSY, hint) from error
            if lock.valid:
                return lock
            lock.fd.close()  # likewise, between our open and our lock

    def remove(self) -> None:
        """Remove every pin and the directory; what nothing else holds is freed by the kernel.

        :raises BpffsError: it is no pin directory, or more is in it: nothing else is ever removed.
        """
        from k8sdatapath.pybpf import links

        if not os.path.lexists(self.path):
            return
        for directory in self._directories:
            if os.path.lexists(directory) and not links.is_bpffs(directory):
                hint = "it is not on a BPF filesystem, nothing was removed"
                raise BpffsError("remove pin directory", str(directory), errno.EINVAL, hint)
        _unlink(self._paths())
        _remove_empty(self._directories)
        if self.path.exists():
            hint = "what is left was not pinned by this library"
            raise BpffsError("remove pin directory", str(self), errno.ENOTEMPTY, hint)

    @property
    def _directories(self) -> tuple[Path, ...]:
        """The two that pins are in, and the one that these are in."""
        return self.path / "maps", self.path / "links", self.path

    def _missing(self) -> list[Path]:
        """The directories that :meth:`create` would make, the deepest first."""
        return [each for each in (*self._directories, *self.path.parents) if not os.path.exists(each)]

    def _names(self, kind: str) -> list[str]:
        return sorted(self._entries(kind))

    def _entries(self, kind: str) -> Iterator[str]:
        try:
            yield from os.listdir(self.path / kind)
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            number, op = error.errno or errno.EIO, "read pin directory"
            raise BpffsError(op, str(self), number, kernel_error(number, op).hint) from error

    def _paths(self) -> set[Path]:
        return {self.path / kind / name for kind in ("maps", "links") for name in self._entries(kind)}

    def _open(self, path: Path, kind: str) -> Fd:
        from k8sdatapath.pybpf import links

        for directory in (self.path, path.parent):
            if os.path.exists(directory):
                _check_trust(directory)
        return links.open_pinned(path, kind)


class PinLock(Resource):
    """Sole ownership of a pin directory; see :meth:`PinDir.lock`."""

    def __init__(self, fd: Fd, *, made: Iterable[Path]) -> None:
        self.fd = fd
        self._made = made

    @property
    def valid(self) -> bool:
        """Whether it is held, and of a directory that is still there."""
        return not self.fd.closed and os.fstat(self.fd.number).st_nlink > 0

    def close(self) -> None:
        """Let others have the directory. What was made of it for the lock goes, if nothing came in."""
        if self.valid:
            _remove_empty(self._made)
        self.fd.close()


def _check_trust(directory: Path) -> None:
    """Refuse a directory where another user may have put other maps, or may put them later."""
    about = directory.lstat()
    if not stat.S_ISDIR(about.st_mode):
        raise BpffsError("use pin directory", str(directory), errno.ENOTDIR, "something else is there")
    if about.st_uid not in (os.geteuid(), 0):
        hint = f"user {about.st_uid} owns it, and decides what is pinned there: use another directory"
        raise BpffsError("use pin directory", str(directory), errno.EPERM, hint)
    if about.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        hint = "other users can write to it: use another directory, or if its pins are yours, chmod go-w it"
        raise BpffsError("use pin directory", str(directory), errno.EPERM, hint)


def _unlink(pins: Iterable[Path]) -> None:
    for path in pins:
        if not path.is_dir():
            path.unlink(missing_ok=True)


def _remove_empty(directories: Iterable[Path]) -> None:
    for directory in directories:
        with suppress(OSError):  # not empty, or not there
            directory.rmdir()


def _holder(directory: os.stat_result) -> str:
    """Who holds the lock of a directory, from proc_locks(5)."""
    file = f"{os.major(directory.st_dev):02x}:{os.minor(directory.st_dev):02x}:{directory.st_ino}"
    for line in Path("/proc/locks").read_text().splitlines():
        match line.split():
            case [_, "FLOCK", _, _, pid, what, *_] if what == file:
                return f"process {pid} has it"
    return "another process has it"
