"""Control groups of the unified hierarchy: where socket programs attach."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from k8sdatapath.errors import KernelError, NotSupportedError
from k8sdatapath.pybpf.calls import kernel_error


def cgroup2_mount() -> Path:
    """Where the unified hierarchy is mounted: ``/sys/fs/cgroup``, or below it on hybrid machines.

    :raises NotSupportedError: if it is not mounted.
    """
    with open("/proc/self/mounts") as mounts:
        for line in mounts:
            _device, where, kind, *_rest = line.split()
            if kind == "cgroup2":
                return Path(where)
    hint = "mount -t cgroup2 none /sys/fs/cgroup/unified"
    raise NotSupportedError("cgroup2", min_kernel="4.5", op="find the cgroup2 mount", hint=hint)


class Cgroup:
    """A directory of the unified hierarchy.

    ::

        with Cgroup.create("web") as web:
            web.add(os.getpid())

    Leaving the ``with`` removes it, which the kernel allows once no process is in it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, name: str) -> Self:
        """Make ``name`` below the mount; a parent (``"web/one"``) has to exist."""
        path = cgroup2_mount() / name
        try:
            path.mkdir()
        except OSError as error:
            raise kernel_error(error.errno or 0, "create cgroup", str(path)) from None
        return cls(path)

    @property
    def pids(self) -> tuple[int, ...]:
        """The processes in it, those of its children not counted."""
        return tuple(int(pid) for pid in (self.path / "cgroup.procs").read_text().split())

    def add(self, pid: int) -> None:
        """Move a process here. Sockets that it has already made stay where they were made."""
        try:
            (self.path / "cgroup.procs").write_text(str(pid))
        except OSError as error:
            raise kernel_error(error.errno or 0, f"move process {pid} to cgroup", str(self.path)) from None

    def kill(self, *, timeout: float = 5.0) -> None:
        """End every process in it and in its children, and wait until they are gone (Linux 5.14)."""
        if not self.path.exists():
            return
        (self.path / "cgroup.kill").write_text("1")
        deadline = time.monotonic() + timeout
        while "populated 1" in (self.path / "cgroup.events").read_text():
            if time.monotonic() > deadline:
                raise KernelError("wait for the end of all processes in cgroup", str(self.path), errno.EBUSY)
            time.sleep(0.002)

    def remove(self) -> None:
        """Remove it and its children; does nothing if it is gone.

        :raises KernelError: ``EBUSY`` while a process is in it.
        """
        for directory, _children, _files in os.walk(self.path, topdown=False):
            try:
                os.rmdir(directory)
            except FileNotFoundError:
                continue
            except OSError as error:
                raise kernel_error(error.errno or 0, "remove cgroup", directory) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.remove()

    def __repr__(self) -> str:
        return f"<Cgroup {self.path}>"
