"""Network namespaces, as the kernel has them: a descriptor, a name that is a mount, a thread that enters."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from k8sdatapath.pybpf.calls import check
from k8sdatapath.pybpf.fd import Fd
from k8sdatapath.pybpf.lib import ffi, lib


def _hint(code: int) -> str:
    return "needs CAP_SYS_ADMIN: run as root" if code == -errno.EPERM else ""


def create(path: Path) -> None:
    """Make a namespace and mount it at ``path``; no thread of Python's is moved.

    The parent directory becomes a shared mount, as ``ip netns add`` does it.
    """
    code = lib.kd_netns_create(os.fsencode(path.parent), os.fsencode(path))
    check(code, "create network namespace", str(path), hint=_hint(code))


def remove(path: Path) -> None:
    """Take away the name; the namespace lives on while a process, socket or descriptor holds it."""
    check(lib.kd_netns_remove(os.fsencode(path)), "remove network namespace", str(path))


def enter(fd: Fd) -> None:
    """Move the calling thread into a namespace. There is no way back: the thread has to end afterwards."""
    code = lib.kd_netns_enter(fd.number)
    check(code, "enter", fd.what, hint=_hint(code))


def cookie(fd: Fd) -> int:
    """The number that BPF programs see as ``bpf_get_netns_cookie()``; never reused while the kernel runs."""
    out = ffi.new("uint64_t *")
    check(lib.kd_netns_cookie(fd.number, out), "read the cookie of", fd.what)
    return int(out[0])
