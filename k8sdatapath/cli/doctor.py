"""``k8sdatapath doctor``: what this machine offers, and what to do where it falls short."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from pathlib import Path

from attrs import asdict, frozen

from k8sdatapath import features
from k8sdatapath.cli.output import Output, show
from k8sdatapath.errors import NotSupportedError, PermissionDeniedError
from k8sdatapath.net.cgroup import cgroup2_mount
from k8sdatapath.pins import BPFFS

__all__ = ["Check", "machine_checks", "run"]

OK, MISSING, ABSENT = "ok", "missing", "absent"  # absent: the datapath works without it


@frozen
class Check:
    """One finding: ``advice`` says what to do, and is empty when nothing is to be done."""

    name: str
    state: str
    detail: str
    advice: str = ""


def run(output: Output) -> bool:
    """Print all findings; whether nothing that is needed is missing."""
    checks = [*machine_checks(), *feature_checks()]
    show([asdict(check) for check in checks], output)
    return all(check.state != MISSING for check in checks)


def machine_checks() -> Iterator[Check]:
    """Of the kernel, the process and the installation, in the order in which they matter."""
    yield kernel()
    yield btf()
    yield jit()
    yield capabilities()
    yield bpffs()
    yield cgroup2()
    yield mptcp()
    yield extension()
    yield objects()


def kernel() -> Check:
    """Its version is only shown: what it can do is found out by trying."""
    return Check("kernel", OK, f"Linux {platform.release()} {platform.machine()}")


def btf(path: Path = Path("/sys/kernel/btf/vmlinux")) -> Check:
    """Types of the kernel: for tracing programs and bpftool."""
    if path.exists():
        return Check("btf", OK, f"{path} ({path.stat().st_size // 1024} KiB)")
    return Check("btf", ABSENT, f"no {path}", "a kernel with CONFIG_DEBUG_INFO_BTF=y")


def jit(path: Path = Path("/proc/sys/net/core/bpf_jit_enable")) -> Check:
    """Without the just-in-time compiler, programs are interpreted: slow, but right."""
    if not path.exists():
        return Check("jit", ABSENT, f"no {path}", "a kernel with CONFIG_BPF_JIT=y")
    if path.read_text().strip() == "0":
        return Check("jit", ABSENT, "switched off", "sysctl -w net.core.bpf_jit_enable=1")
    return Check("jit", OK, "on")


def capabilities() -> Check:
    """Those of this process."""
    from k8sdatapath.pybpf.calls import NEEDED_CAPABILITIES, effective_capabilities

    have = effective_capabilities()
    lacking = [name for name, bit in NEEDED_CAPABILITIES.items() if not have >> bit & 1]
    if lacking:
        return Check("capabilities", MISSING, f"lacks {', '.join(lacking)}", "run as root, or grant them")
    return Check("capabilities", OK, ", ".join(NEEDED_CAPABILITIES))


def bpffs() -> Check:
    """Where pins go."""
    points = mounts("bpf")
    if points:
        return Check("bpffs", OK, f"at {', '.join(points)}")
    if os.geteuid() == 0 and BPFFS.is_dir():
        return Check("bpffs", OK, f"not mounted yet: the first pin mounts it at {BPFFS}")
    return Check("bpffs", MISSING, "not mounted", f"run as root: mount -t bpf bpf {BPFFS}")


def cgroup2() -> Check:
    """Where the socket load balancer attaches."""
    try:
        return Check("cgroup2", OK, f"at {cgroup2_mount()}")
    except NotSupportedError as error:
        return Check("cgroup2", MISSING, "not mounted", f"run as root: {error.hint}")


def mptcp(path: Path = Path("/proc/sys/net/mptcp/enabled")) -> Check:
    """What arrives over it cannot be read, so requests over it are not let through."""
    if not path.exists() or path.read_text().strip() == "0":
        return Check("mptcp", OK, "off")
    advice = "clients of servers with HTTP policy: GODEBUG=multipathtcp=0, or sysctl -w net.mptcp.enabled=0"
    return Check("mptcp", OK, "on: over it, servers with HTTP policy get nothing", advice)


def mounts(kind: str) -> list[str]:
    """Mount points of the filesystems of a kind."""
    rows = (line.split() for line in Path("/proc/self/mounts").read_text().splitlines())
    return [row[1] for row in rows if row[2] == kind]


def extension() -> Check:
    """The C extension, and the libbpf it is linked to."""
    try:
        from k8sdatapath.pybpf.lib import ffi, lib
    except ImportError as error:
        return Check("libbpf", MISSING, str(error), "apt-get install libbpf1, and install k8sdatapath again")
    return Check("libbpf", OK, ffi.string(lib.libbpf_version_string()).decode())


def objects(directory: Path = Path(__file__).parents[1] / "_objects") -> Check:
    """The BPF objects shipped in the package."""
    names = sorted(path.name.removesuffix(".bpf.o") for path in directory.glob("*.bpf.o"))
    if names:
        return Check("objects", OK, ", ".join(names))
    return Check("objects", MISSING, f"none in {directory}", "in a checkout: make build")


def feature_checks() -> Iterator[Check]:
    """What this kernel can do, each found out by a trial."""
    try:
        found = features.probe_all()
    except (PermissionDeniedError, ImportError) as error:
        yield Check("features", MISSING, f"cannot be tried: {error}", "see above")
        return
    for support in found:
        feature = support.feature
        advice = "" if support.supported else f"Linux {feature.min_kernel} or newer"
        yield Check(feature.name, OK if support.supported else ABSENT, feature.used_for, advice)
