"""Whose lab is whose, and what remains when an owner is gone.

A lab writes a tag ``/run/k8sdatapath/lab/NAME`` before it makes anything, with the process that owns it, and
everything it makes carries ``kdlab.NAME`` in its name. So whatever happened, a sweep finds all of it, and
nothing that belongs to a living process or to somebody else. Each lab has a keeper process that sweeps
when the owner ends; :func:`clean` is for the case that the keeper was killed too.
"""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Final

from attrs import frozen

from k8sdatapath.errors import KernelError, LabError
from k8sdatapath.net.cgroup import Cgroup, cgroup2_mount
from k8sdatapath.net.netns import NAMES, NetNs
from k8sdatapath.pins import locked
from k8sdatapath.pybpf.calls import kernel_error

TAGS: Final = Path("/run/k8sdatapath/lab")


@frozen
class Owner:
    """A process, told from a later one with the same number by when it started."""

    pid: int
    started: int

    @classmethod
    def of(cls, pid: int) -> Owner | None:
        """Who has this pid now; none if nobody, or one that is dead and not yet waited for."""
        try:
            stat = Path(f"/proc/{pid}/stat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            return None
        state, *fields = stat.rpartition(")")[2].split()
        return None if state in "ZX" else cls(pid, int(fields[18]))

    @property
    def alive(self) -> bool:
        """Whether it is still the same process."""
        return Owner.of(self.pid) == self


def netns_name(lab: str, host: str) -> str:
    """The name of a host's network namespace. Neither part has a dot, so no lab's names begin another's."""
    return f"kdlab.{lab}.{host}"


def cgroup_name(lab: str) -> str:
    """The cgroup that all cgroups of a lab are in."""
    return f"kdlab.{lab}"


def claim(lab: str) -> None:
    """Tag ``lab`` as this process's own, after sweeping what a dead owner of the name has left.

    :raises LabError: if a living process has it.
    """
    try:
        TAGS.mkdir(parents=True, exist_ok=True)
        with locked(TAGS):  # else the keeper of a dead one of this name could sweep it
            owner = _owner(lab)
            if owner and owner.alive:
                raise LabError(f"a lab {lab!r} is running already, in process {owner.pid}")
            _sweep(lab)
            me = Owner.of(os.getpid())
            assert me is not None
            (TAGS / lab).write_text(json.dumps({"pid": me.pid, "started": me.started}))
    except PermissionError as error:
        raise kernel_error(error.errno or 0, "tag a lab in", str(TAGS), hint="labs need root") from None


def release(lab: str) -> None:
    """Take away all of a lab that this process owns, and then its tag."""
    with locked(TAGS):
        _sweep(lab)


def sweep(lab: str) -> list[str]:
    """Take away all of a lab if its owner is gone; says what there was."""
    with locked(TAGS):
        owner = _owner(lab)
        return [] if owner and owner.alive else _sweep(lab)


def clean() -> list[str]:
    """Remove what labs of dead processes have left on this machine; says what it removed.

    Labs of living processes, and anything that no lab has made, are not touched.
    """
    if not TAGS.is_dir():
        return []
    return [removed for tag in sorted(TAGS.iterdir()) for removed in sweep(tag.name)]


def _sweep(lab: str) -> list[str]:
    """Processes first, so that nothing is made any more; the tag last, so that it can be done again."""
    removed = []
    cgroup = Cgroup(cgroup2_mount() / cgroup_name(lab))
    if cgroup.path.exists():
        _end(cgroup)
        removed.append(f"cgroup {cgroup.path}")
    for path in sorted(NAMES.glob(netns_name(lab, "*"))):
        NetNs.open(path).remove()
        removed.append(f"network namespace {path.name}")
    (TAGS / lab).unlink(missing_ok=True)
    return removed


def _end(cgroup: Cgroup) -> None:
    """Kill and remove, again if a process that was just being started has entered in between."""
    while True:
        cgroup.kill()
        try:
            return cgroup.remove()
        except KernelError as error:
            if error.errno != errno.EBUSY:
                raise


def _owner(lab: str) -> Owner | None:
    """Who has tagged a lab; none if nobody has, or died before it was written down."""
    try:
        return Owner(**json.loads((TAGS / lab).read_text()))
    except (FileNotFoundError, ValueError):
        return None
