"""What a test session may leave behind: nothing."""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

LOCK = Path(tempfile.gettempdir()) / f"k8sdatapath-tests-{os.geteuid()}.lock"


def host_state() -> set[str]:
    """Namespaces, cgroups, devices and pins as they are now, one line each."""
    return {
        *(f"network namespace {path}" for path in mounts("nsfs")),
        *(f"cgroup {path}" for root in mounts("cgroup2") for path in directories(root)),
        *(f"network device {name}" for name in os.listdir("/sys/class/net")),
        *(f"pin {path}" for root in mounts("bpf") for path in files(root)),
    }


def mounts(kind: str) -> list[str]:
    """Mount points of filesystems of a kind."""
    with open("/proc/self/mountinfo") as table:
        rows = [line.split() for line in table]
    return [row[4] for row in rows if row[row.index("-") + 1] == kind]


def directories(root: str) -> Iterator[str]:
    return (path for path, _, _ in os.walk(root))


def files(root: str) -> Iterator[str]:
    return (os.path.join(path, name) for path, _, names in os.walk(root) for name in names)


def children() -> list[str]:
    """Processes of this thread."""
    with open("/proc/thread-self/children") as pids:
        return [f"{pid} ({command(pid)})" for pid in pids.read().split()]


def command(pid: str) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip() or "zombie"
    except OSError:
        return "gone"


class SharedMachine:
    """Tells whether this is the only test session of the machine.

    Each session holds a shared lock; the one that can make it exclusive is alone, and whatever
    appeared on the host during its life is its own doing.
    """

    def __init__(self) -> None:
        self._lock: IO[bytes] = LOCK.open("ab")
        fcntl.flock(self._lock, fcntl.LOCK_SH)

    def alone(self) -> bool:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def close(self) -> None:
        self._lock.close()
