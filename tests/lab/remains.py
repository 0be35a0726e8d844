"""What a lab has left on the machine, looked for without asking the lab."""

from __future__ import annotations

import fcntl
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CGROUPS = next(
    Path(line.split()[1])
    for line in Path("/proc/self/mounts").read_text().splitlines()
    if line.split()[2] == "cgroup2"
)

_LOCK = Path(tempfile.gettempdir()) / f"k8sdatapath-sweeps-{os.geteuid()}.lock"


@contextmanager
def nobody_else_sweeps() -> Iterator[None]:
    """Labs whose owners die, and sweeping them, are one test's at a time: a sweep is of the whole machine."""
    with _LOCK.open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def remains(lab: str) -> list[str]:
    """Names, mounts, cgroups, the tag, and processes of a lab."""
    return [
        *(str(path) for path in Path("/run/netns").glob(f"kdlab.{lab}.*")),
        *(line for line in Path("/proc/self/mounts").read_text().splitlines() if f"kdlab.{lab}." in line),
        *(str(path) for path in CGROUPS.glob(f"kdlab.{lab}")),
        *(str(path) for path in Path("/run/k8sdatapath/lab").glob(lab)),
        *(f"process {pid}: {command}" for pid, command in commands() if _belongs(command, lab)),
    ]


def _belongs(command: str, lab: str) -> bool:
    """Whether it is an agent's or the keeper's: a name of a few digits is in many a command by chance."""
    return f"kdlab.{lab}/" in command or f"keeper.py {lab} " in command


def wait_until_gone(lab: str, seconds: float) -> float:
    """How long it took until nothing was left; what is left after ``seconds`` fails the test."""
    start = time.monotonic()
    while left := remains(lab):
        assert time.monotonic() - start < seconds, left
        time.sleep(0.01)
    return time.monotonic() - start


def commands() -> list[tuple[int, str]]:
    """Every process of the machine but this one, with its command line; zombies have none."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            command = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if command and int(path.name) != os.getpid():
            found.append((int(path.name), command))
    return found
