"""``k8sdatapath doctor``: what this machine offers, and what to do where it falls short."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Mapping, Set
from pathlib import Path

from attrs import asdict, frozen

from k8sdatapath import features
from k8sdatapath.cli.output import Output, show
from k8sdatapath.errors import NotSupportedError, PermissionDeniedError
from k8sdatapath.net.cgroup import cgroup2_mount
from k8sdatapath.pins import BPFFS

__all__ = ["Check", "machine_checks", "run"]

_ACCELERATION = frozenset({"sockhash", "sk_msg", "sock_redirect"})
_REQUESTS = frozenset({"sockhash", "sk_msg", "sk_storage", "sock_destroy", "mmapable_arrays", "ring_buffer"})
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
    lacking = {each.feature.name: each.feature.min_kernel for each in found if not each.supported}
    yield requests(lacking)
    yield acceleration(lacking)


def requests(lacking: Mapping[str, str]) -> Check:
    """Whether servers may be held to HTTP rules, and which of them cannot be.

    :param lacking: features that this kernel has not, and where they come with.
    """
    others = "" if mptcp().detail == "off" else ", and over MPTCP they get nothing"
    found = Check(
        "requests",
        OK,
        f"servers may be held to HTTP rules; not those that splice() what they receive{others}",
        "rules for the servers behind TCP proxies that splice (in Go, haproxy with splice-request), "
        "not for the proxies: `k8sdatapath l7 stats` counts UNREADABLE where one did",
    )
    return _at_sockets(found, _REQUESTS & lacking.keys(), lacking)


def acceleration(lacking: Mapping[str, str]) -> Check:
    """Whether sockets may hand each other what they send, and which of them never will.

    :param lacking: features that this kernel has not, and where they come with.
    """
    others = "" if mptcp().detail == "off" else "; connections over MPTCP go on through the stack"
    found = Check("acceleration", OK, f"sockets of one node may skip the stack{others}")
    return _at_sockets(found, _ACCELERATION & lacking.keys(), lacking)


def _at_sockets(found: Check, absent: Set[str], lacking: Mapping[str, str]) -> Check:
    """What is found where programs can be at the sockets of a cgroup; else what is lacking for that."""
    if absent:
        advice = f"Linux {', '.join(sorted({lacking[each] for each in absent}))} or newer"
        return Check(found.name, ABSENT, f"not here: no {', '.join(sorted(absent))}", advice)
    if cgroup2().state != OK:
        return Check(found.name, ABSENT, "not here: no cgroup2", "see cgroup2")
    return found
