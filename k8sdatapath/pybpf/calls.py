"""From a kernel result to a typed error."""

from __future__ import annotations

import errno

from k8sdatapath.errors import DeviceGoneError, KernelError, NotSupportedError, PermissionDeniedError

#: Internal to the kernel, yet returned by bpf(2) where an operation does not exist for a map or hook.
ENOTSUPP = 524

_UNSUPPORTED = frozenset({ENOTSUPP, errno.EOPNOTSUPP, errno.ENOSYS})
_GONE = frozenset({errno.ENODEV, errno.ENXIO, errno.ENOLINK})


def check(result: int, op: str, subject: str = "", *, hint: str = "") -> int:
    """Return ``result`` if it is no error, else raise what it stands for.

    :param result: a count or descriptor, or a negative errno.
    :param op: what was tried, as a verb phrase; ``subject`` what on.
    """
    if result >= 0:
        return result
    raise kernel_error(-result, op, subject, hint=hint)


def kernel_error(number: int, op: str, subject: str = "", *, hint: str = "") -> KernelError:
    """The error for errno ``number``."""
    if number in (errno.EPERM, errno.EACCES):
        return PermissionDeniedError(op, subject, number, hint or _capability_hint())
    if number in _UNSUPPORTED:
        return NotSupportedError(op, op=op, subject=subject, errno=errno.EOPNOTSUPP, hint=hint)
    if number in _GONE:
        return DeviceGoneError(op, subject, number, hint or "the network device is not there")
    return KernelError(op, subject, number, hint)


def _capability_hint() -> str:
    """Which capability is missing, as far as the process itself can tell."""
    have = effective_capabilities()
    missing = [name for name, bit in NEEDED_CAPABILITIES.items() if not have >> bit & 1]
    if missing:
        return f"needs {' and '.join(missing)}: run as root, or give the process these capabilities"
    return "the process has the capabilities; a lockdown, LSM or seccomp filter may forbid it"


#: Name to bit of what the datapath needs (capabilities(7)); CAP_BPF and CAP_PERFMON since Linux 5.8.
NEEDED_CAPABILITIES = {"CAP_BPF": 39, "CAP_NET_ADMIN": 12, "CAP_PERFMON": 38}


def effective_capabilities() -> int:
    """The capabilities of this thread as a bit mask; CAP_SYS_ADMIN implies CAP_BPF and CAP_PERFMON."""
    with open("/proc/thread-self/status") as status:
        mask = next((int(line.split()[1], 16) for line in status if line.startswith("CapEff:")), 0)
    if mask >> 21 & 1:  # CAP_SYS_ADMIN
        mask |= 1 << 39 | 1 << 38
    return mask
