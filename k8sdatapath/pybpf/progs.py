"""Program calls: load bare instructions, run on a packet, describe, list a hook."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from attrs import frozen

from k8sdatapath.pybpf.calls import check
from k8sdatapath.pybpf.fd import Fd
from k8sdatapath.pybpf.lib import ffi, lib

#: ``return 1``, the least program that every kind accepts: ``mov r0, 1; exit``.
RETURN_ONE = bytes.fromhex("b7000000010000009500000000000000")

_PUSHED = 512  # room in what comes out of a test run for headers that a program may push


@frozen
class ProgramInfo:
    """What the kernel knows of a loaded program. Run counts need ``kernel.bpf_stats_enabled``."""

    id: int
    type: int
    name: str
    btf_id: int
    run_time_ns: int
    run_count: int


def load(instructions: bytes, type: int, *, expected_attach_type: int = 0, name: str = "kd_probe") -> Fd:
    """Load eBPF instructions as they are, GPL-licensed, without maps or BTF."""
    number = lib.kd_prog_load(type, expected_attach_type, name.encode(), instructions, len(instructions) // 8)
    return Fd(check(number, "load program", name), f"program {name}")


def info(fd: Fd) -> ProgramInfo:
    """Ask the kernel about a program."""
    out = ffi.new("struct kd_prog_info *")
    check(lib.kd_prog_info(fd.number, out), "describe", fd.what)
    name = bytes(ffi.buffer(out.name)).split(b"\0")[0].decode()
    return ProgramInfo(out.id, out.type, name, out.btf_id, out.run_time_ns, out.run_count)


def map_ids(fd: Fd) -> list[int]:
    """The numbers of the maps that a program uses."""
    ids = ffi.new("uint32_t[64]")  # as many as the kernel lets one use
    count = ffi.new("uint32_t *", len(ids))
    check(lib.kd_prog_maps(fd.number, ids, count), "list maps of", fd.what)
    return list(ids[0 : count[0]])


def run(
    fd: Fd,
    data: bytes | None,
    *,
    ctx: bytes | None = None,
    repeat: int = 1,
    flags: int = 0,
    batch_size: int = 0,
) -> tuple[int, bytes, bytes, int]:
    """``BPF_PROG_TEST_RUN``; returns ``(retval, data, ctx, mean duration in ns)``.

    With ``repeat`` > 1 the packet is *not* restored between runs.
    """
    arguments = ffi.new("struct kd_run *")
    keep = []
    live = bool(flags)  # live frames go to devices, nothing comes back
    if data is not None:
        arguments.data_in, arguments.data_size_in = ffi.from_buffer(data), len(data)
        if not live:
            out = ffi.new("char[]", len(data) + _PUSHED)
            keep.append(out)
            arguments.data_out, arguments.data_size_out = out, len(out)
    if ctx is not None:
        ctx_out = ffi.new("char[]", len(ctx))
        keep.append(ctx_out)
        arguments.ctx_in, arguments.ctx_size_in = ffi.from_buffer(ctx), len(ctx)
        if not live:
            arguments.ctx_out, arguments.ctx_size_out = ctx_out, len(ctx)
    arguments.repeat, arguments.flags, arguments.batch_size = repeat, flags, batch_size
    check(lib.kd_prog_run(fd.number, arguments), "run", fd.what)
    return (
        arguments.retval,
        bytes(ffi.buffer(arguments.data_out, arguments.data_size_out)) if arguments.data_out else b"",
        bytes(ffi.buffer(arguments.ctx_out, arguments.ctx_size_out)) if arguments.ctx_out else b"",
        arguments.duration_ns,
    )


def run_many(
    fd: Fd, packets: Sequence[bytes], ctxs: Sequence[bytes] | None = None
) -> list[tuple[int, bytes]]:
    """``BPF_PROG_TEST_RUN`` on each packet, in one crossing into C; returns ``(retval, data)`` of each.

    :param ctxs: a context for each packet, all of one size.
    """
    count = len(packets)
    arguments, done = ffi.new("struct kd_run_many *"), ffi.new("uint32_t *")
    data = b"".join(packets)
    room = len(data) + count * _PUSHED
    out = bytearray(room)
    sizes, retvals = ffi.new("uint32_t[]", list(map(len, packets))), ffi.new("uint32_t[]", count)
    arguments.data_in, arguments.count = ffi.from_buffer(data), count
    arguments.data_out, arguments.data_size_out = ffi.from_buffer(out), room
    arguments.sizes, arguments.retvals = sizes, retvals
    if ctxs:
        joined = b"".join(ctxs)
        arguments.ctx_in, arguments.ctx_size_in = ffi.from_buffer(joined), len(ctxs[0])
    number = lib.kd_prog_run_many(fd.number, arguments, done)
    check(number, "run", f"{fd.what} on packet {done[0]}")
    ends = list(accumulate(sizes, initial=0))
    came = bytes(memoryview(out)[: ends[-1]])
    return [(retval, came[at:end]) for retval, at, end in zip(retvals, ends, ends[1:], strict=False)]


def query(target: int, attach_type: int) -> list[int]:
    """Program ids on a hook, in the order they run. ``target``: ifindex or descriptor, as the hook wants.

    An ifindex is of the calling thread's network namespace. Minimum kernel for tcx hooks: 6.6.
    """
    ids = ffi.new("uint32_t[64]")
    count, revision = ffi.new("uint32_t *", len(ids)), ffi.new("uint64_t *")
    check(lib.kd_prog_query(target, attach_type, ids, count, revision), "list programs on a hook")
    return list(ids[0 : count[0]])


def open_by_id(number: int) -> Fd:
    """A descriptor of the program with this id."""
    fd = check(lib.bpf_prog_get_fd_by_id(number), "open program", f"id {number}")
    return Fd(fd, f"program id {number}")


def attach(prog: Fd, target: int, attach_type: int, flags: int = 0) -> None:
    """``BPF_PROG_ATTACH``, for hooks that have no link: it stays until :func:`detach`."""
    check(lib.bpf_prog_attach(prog.number, target, attach_type, flags), "attach", prog.what)


def detach(prog: Fd, target: int, attach_type: int) -> None:
    """``BPF_PROG_DETACH``."""
    check(lib.bpf_prog_detach2(prog.number, target, attach_type), "detach", prog.what)


def has_helper(program_type: int, helper: int) -> bool:
    """Whether programs of this type may call the helper, by a trial load (libbpf's probe)."""
    return (
        check(lib.libbpf_probe_bpf_helper(program_type, helper, ffi.NULL), "probe helper", str(helper)) == 1
    )
