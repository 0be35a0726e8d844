"""What this kernel can do, found out by trying: a trial load, a trial map, a trial attach.

Never by version: distributions port features back. Probing costs milliseconds, so the library tries the real
thing first and asks here only to explain a failure, or when a person asks (``k8sdatapath features``).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path

from attrs import frozen

from k8sdatapath.errors import KernelError, NotSupportedError, near_misses

__all__ = ["Feature", "Support", "known", "probe", "probe_all", "require"]


@frozen
class Feature:
    """Something a kernel may lack.

    :ivar used_for: what of this library needs it.
    :ivar min_kernel: first release that has it; for people, probing does not look at it.
    """

    name: str
    used_for: str
    min_kernel: str
    _attempt: Callable[[], None]


@frozen
class Support:
    """The outcome of a probe; ``detail`` is the kernel's answer where it is no."""

    feature: Feature
    supported: bool
    detail: str = ""


def known() -> list[str]:
    """The names that can be probed."""
    return sorted(_FEATURES)


@cache
def probe(name: str) -> Support:
    """Try one feature; remembered for the life of the process.

    :raises PermissionDeniedError: the process may not use BPF, so nothing can be told.
    :raises KeyError: no feature has this name.
    """
    if name not in _FEATURES:
        raise KeyError(f"no feature {name!r}: {near_misses(name, _FEATURES)}")
    feature = _FEATURES[name]
    try:
        feature._attempt()
    except KernelError as error:
        if error.errno == errno.EPERM:
            raise
        return Support(feature, False, str(error))
    return Support(feature, True)


def probe_all() -> list[Support]:
    """Try everything that is known, in order of name."""
    return [probe(name) for name in known()]


def require(*names: str) -> None:
    """Raise unless the kernel has every one of these.

    :raises NotSupportedError: names the first that is missing, and the release that brought it.
    """
    for name in names:
        found = probe(name)
        if not found.supported:
            raise NotSupportedError(name, min_kernel=found.feature.min_kernel, hint=found.detail)


def _program(type: int, expected_attach_type: int = 0) -> Callable[[], None]:
    def attempt() -> None:
        from k8sdatapath.pybpf import progs

        progs.load(progs.RETURN_ONE, type, expected_attach_type=expected_attach_type).close()

    return attempt


def _map(
    type: int, key_size: int = 4, value_size: int = 4, max_entries: int = 1, flags: int = 0
) -> Callable[[], None]:
    def attempt() -> None:
        from k8sdatapath.pybpf import maps

        maps.create(type, "kd_probe", key_size, value_size, max_entries, flags=flags).close()

    return attempt


def _helper(program_type: int, helper: int) -> Callable[[], None]:
    def attempt() -> None:
        from k8sdatapath.pybpf import progs

        if not progs.has_helper(program_type, helper):
            raise KernelError("call helper", str(helper), errno.EINVAL)

    return attempt


def _batch() -> None:
    from k8sdatapath.layout import u32
    from k8sdatapath.maps import Hash

    with Hash[u32, u32].create("kd_probe", 4) as trial:
        trial.update_packed(bytes(4), bytes(4))


def _kernel_btf() -> None:
    if not Path("/sys/kernel/btf/vmlinux").exists():
        raise KernelError("read kernel BTF", "/sys/kernel/btf/vmlinux", errno.ENOENT)


def _psock() -> None:
    """Whether sockets tell what was handed to them from what came by the stack; kernels before do not."""
    from k8sdatapath.pybpf.btf import Btf, Kind

    _kernel_btf()
    kernel = Btf(Path("/sys/kernel/btf/vmlinux").read_bytes())
    psock = kernel.find("sk_psock", Kind.STRUCT)
    if psock is None or "msg_tot_len" not in {member.name for member in kernel.members(psock.id)}:
        raise KernelError("find in kernel BTF", "sk_psock.msg_tot_len", errno.ENOENT)


def _link(program: tuple[int, int], attach_type: int) -> Callable[[], None]:
    """Attach to a device that cannot be: a kernel that knows the hook says ENODEV, another one EINVAL."""

    def attempt() -> None:
        from k8sdatapath.pybpf import links, progs

        with progs.load(progs.RETURN_ONE, program[0], expected_attach_type=program[1]) as trial:
            try:
                links.create(trial, 0x7FFFFFFF, attach_type).close()
            except KernelError as error:
                if error.errno != errno.ENODEV:
                    raise

    return attempt


def _shipped(name: str) -> Callable[[], None]:
    """Load an object of this package, with maps as small as can be."""

    def attempt() -> None:
        from k8sdatapath.objects import ObjectSpec

        spec = ObjectSpec.from_file(name)
        sizes = {name: 1 for name, definition in spec.maps.items() if definition.max_entries}
        spec.with_maps(**sizes).load().close()

    return attempt


def _tunnel(kind: str) -> Callable[[], None]:
    """Make a device, in a namespace that goes with it."""

    def create() -> None:
        from k8sdatapath.net.netlink import Netlink

        with Netlink() as net:
            net.create_tunnel(kind, "kdprobe", port=8472, mtu=1400)

    def attempt() -> None:
        from k8sdatapath.net.netns import NetNs

        with NetNs.create(f"kdprobe-{os.getpid()}") as netns:
            netns.call(create)

    return attempt


_TC, _XDP, _SOCK_ADDR = 3, 6, 18
_NO_PREALLOC, _MMAPABLE = 1, 1 << 10

_FEATURES = {
    feature.name: feature
    for feature in (
        Feature("batch", "bulk changes of maps", "5.6", _batch),
        Feature("kernel_btf", "CO-RE programs and iterators", "5.4", _kernel_btf),
        Feature("cgroup_sock_addr", "socket load balancing: connect", "4.17", _program(_SOCK_ADDR, 10)),
        Feature("cgroup_recvmsg", "socket load balancing: UDP replies", "5.2", _program(_SOCK_ADDR, 19)),
        Feature(
            "cgroup_getpeername", "socket load balancing: the peer's name", "5.8", _program(_SOCK_ADDR, 29)
        ),
        Feature(
            "set_retval", "ECONNREFUSED for a service without backends", "5.18", _helper(_SOCK_ADDR, 187)
        ),
        Feature(
            "sk_storage",
            "socket load balancing: translation kept with the socket",
            "5.2",
            _helper(_SOCK_ADDR, 107),
        ),
        Feature("sock_destroy", "ending sockets whose backend is gone", "6.5", _shipped("reaper")),
        Feature("tc", "per-packet load balancing", "4.1", _program(_TC)),
        Feature("tcx", "ordered, atomic TC attachment (else clsact)", "6.6", _link((_TC, 0), 46)),
        Feature("redirect_neigh", "fast forwarding to the network", "5.10", _helper(_TC, 152)),
        Feature("redirect_peer", "fast forwarding to pods", "5.10", _helper(_TC, 155)),
        Feature("fib_lookup", "fast forwarding to the network", "4.18", _helper(_TC, 69)),
        Feature("check_mtu", "telling who sends more than fits", "5.12", _helper(_TC, 163)),
        Feature("coarse_clock", "flow timestamps", "5.11", _helper(_TC, 160)),
        Feature(
            "mmapable_arrays",
            "backend tables written without system calls",
            "5.5",
            _map(2, 4, 8, 1, _MMAPABLE),
        ),
        Feature("lru_hash", "conntrack", "4.10", _map(9)),
        Feature("lpm_trie", "CIDR tables", "4.11", _map(11, 8, 4, 1, _NO_PREALLOC)),
        Feature("ring_buffer", "events", "5.8", _map(27, 0, 0, 4096)),
        Feature("sockhash", "socket acceleration", "4.18", _map(18)),
        Feature("xdp", "XDP load balancing", "4.8", _program(_XDP)),
        Feature("sk_msg", "socket acceleration", "4.17", _program(16)),
        Feature("sock_redirect", "socket acceleration: handing over without losing count", "6.12.75", _psock),
        Feature("sk_lookup", "listeners for many addresses", "5.9", _program(30, 36)),
        Feature("vxlan", "a tunnel to the pods of other nodes", "4.3", _tunnel("vxlan")),
        Feature("geneve", "a tunnel to the pods of other nodes", "4.3", _tunnel("geneve")),
        Feature("netfilter", "programs at netfilter hooks", "6.4", _program(32, 45)),
    )
}
