"""Ports that the kernel gives by chance to sockets that ask for none, in the calling thread's namespace."""

from __future__ import annotations

from pathlib import Path

__all__ = ["given_by_chance"]

_SYSCTLS = Path("/proc/sys/net/ipv4")


def given_by_chance(first: int, last: int) -> tuple[int, int] | None:
    """The first and the last port of a range that a socket may be given by chance; None: it is given none.

    That is what is in ``net.ipv4.ip_local_port_range`` and not in ``net.ipv4.ip_local_reserved_ports``.
    """
    low, high = map(int, (_SYSCTLS / "ip_local_port_range").read_text().split())
    reserved = (_SYSCTLS / "ip_local_reserved_ports").read_text().strip()
    loose = set(range(max(first, low), min(last, high) + 1))
    for part in filter(None, reserved.split(",")):
        begin, _, end = part.partition("-")
        loose.difference_update(range(int(begin), int(end or begin) + 1))
    return (min(loose), max(loose)) if loose else None
