"""Link calls: create with the options of each hook, update, detach, pin; clsact filters for old kernels."""

from __future__ import annotations

import errno
import os
import struct
from pathlib import Path

from attrs import frozen

from k8sdatapath.errors import BpffsError
from k8sdatapath.pybpf.calls import check, kernel_error
from k8sdatapath.pybpf.fd import Fd
from k8sdatapath.pybpf.lib import ffi, lib

#: Magic number of a BPF filesystem (``BPF_FS_MAGIC``).
BPFFS_MAGIC = 0xCAFE4A11
#: Attach type of iterators (``BPF_TRACE_ITER``).
ITER = 28


@frozen
class LinkInfo:
    """What the kernel knows of a link.

    ``ifindex`` is for tcx and XDP, and 0 once the device is gone; ``map_id`` for maps of sockets.
    """

    id: int
    type: int
    program_id: int
    ifindex: int
    map_id: int = 0


def create(
    prog: Fd, target: int, attach_type: int, *, flags: int = 0, tail: bytes = b"", subject: str = ""
) -> Fd:
    """``BPF_LINK_CREATE``. ``tail`` is the packed part of the arguments that belongs to the link's kind.

    An ifindex as ``target`` is of the calling thread's network namespace.
    """
    number = lib.kd_link_create(prog.number, target, attach_type, flags, tail, len(tail))
    return Fd(check(number, f"attach {prog.what}", subject), f"link of {prog.what}")


def update(link: Fd, prog: Fd, *, expected: Fd | None = None) -> None:
    """Swap the program behind a link in one step; with ``expected`` only if that one is there now."""
    old = expected.number if expected is not None else -1
    check(lib.kd_link_update(link.number, prog.number, old), f"update {link.what}")


def detach(link: Fd) -> None:
    """Take the program off its hook; the link stays, defunct."""
    check(lib.bpf_link_detach(link.number), f"detach {link.what}")


def info(link: Fd) -> LinkInfo:
    """Ask the kernel about a link."""
    out = ffi.new("struct kd_link_info *")
    check(lib.kd_link_info(link.number, out), "describe", link.what)
    return LinkInfo(out.id, out.type, out.prog_id, out.ifindex, out.map_id)


def create_iter(link: Fd) -> Fd:
    """A file whose reading runs the iterator program behind the link."""
    return Fd(check(lib.bpf_iter_create(link.number), f"read {link.what}"), f"iterator of {link.what}")


def pin(fd: Fd, path: Path) -> None:
    """Give a map, program or link a name in bpffs, under which it outlives this process."""
    result = lib.bpf_obj_pin(fd.number, os.fsencode(path))
    if result < 0:
        raise pin_error(-result, f"pin {fd.what}", path)


def open_pinned(path: Path, kind: str) -> Fd:
    """Open what is pinned at ``path``; ``kind`` is ``"map"`` or ``"link"``.

    :raises BpffsError: nothing is pinned there, or something else.
    """
    number = lib.bpf_obj_get(os.fsencode(path))
    if number < 0:
        raise pin_error(-number, f"open pinned {kind}", path)
    fd = Fd(number, f"{kind} {path.name}")
    held = os.readlink(f"/proc/self/fd/{number}").removeprefix("anon_inode:")  # bpf-map, bpf-link, ...
    if kind not in held:
        fd.close()
        raise BpffsError(f"open pinned {kind}", str(path), errno.EINVAL, f"a {held} is pinned there")
    return fd


def pin_error(number: int, op: str, path: Path) -> BpffsError:
    """The error for errno ``number`` of a pin or its directory, and a reason: the kernel has few numbers."""
    if any("." in part.name and is_bpffs(part.parent) for part in (path, *path.parents)):
        hint = "names in a BPF filesystem may not contain dots"
    elif number == errno.ENOENT:
        hint = "nothing is pinned there"
    elif number == errno.ENOTDIR:
        hint = "a part of the path is not a directory"
    elif os.path.isdir(path):
        hint = "a directory is there"
    elif number != errno.EEXIST and not is_bpffs(path.parent):
        hint = "it is not on a BPF filesystem"
    else:
        hint = kernel_error(number, op).hint
    return BpffsError(op, str(path), number, hint)


def is_bpffs(path: Path) -> bool:
    """Whether ``path`` exists and lies on a BPF filesystem."""
    magic = ffi.new("uint64_t *")
    return bool(lib.kd_fs_type(os.fsencode(path), magic) == 0 and magic[0] & 0xFFFFFFFF == BPFFS_MAGIC)


def mount_bpffs(path: Path) -> None:
    """Mount a BPF filesystem at an existing directory."""
    check(lib.kd_mount_bpffs(os.fsencode(path)), "mount bpffs", str(path))


def tc_attach(ifindex: int, point: int, prog: Fd) -> tuple[int, int]:
    """Attach by a clsact filter; returns its ``(priority, handle)``. ``point``: 1 ingress, 2 egress."""
    priority, handle = ffi.new("uint32_t *"), ffi.new("uint32_t *")
    check(
        lib.kd_tc_attach(ifindex, point, prog.number, 0, 0, priority, handle), f"attach {prog.what} by clsact"
    )
    return priority[0], handle[0]


def tc_replace(ifindex: int, point: int, prog: Fd, priority: int, handle: int) -> None:
    """Swap the program of a clsact filter in one step."""
    check(lib.kd_tc_replace(ifindex, point, prog.number, priority, handle), f"replace by {prog.what}")


def tc_detach(ifindex: int, point: int, priority: int, handle: int) -> None:
    """Remove a clsact filter."""
    check(lib.kd_tc_detach(ifindex, point, priority, handle), "detach clsact filter")


def create_iter_link(prog: Fd, map_fd: int | None) -> Fd:
    """Attach an iterator program; element iterators name the map that they walk."""
    if map_fd is None:
        return create(prog, 0, ITER)
    info = ffi.new("uint32_t[2]", [map_fd, 0])  # union bpf_iter_link_info { struct { __u32 map_fd; } map; }
    pointer = int(ffi.cast("uintptr_t", info))
    return create(prog, 0, ITER, tail=struct.pack("QII", pointer, 4, 0))
