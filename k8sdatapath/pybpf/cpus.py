"""The CPUs of this machine by their numbers, between which there may be holes."""

from __future__ import annotations

from functools import cache
from pathlib import Path

__all__ = ["online", "possible"]

_LISTS = Path("/sys/devices/system/cpu")


@cache
def possible() -> tuple[int, ...]:
    """Those that there can ever be: a per-CPU value has a part for each."""
    return listed((_LISTS / "possible").read_text())


def online() -> tuple[int, ...]:
    """Those that there are now, as far as this process is told."""
    return listed((_LISTS / "online").read_text())


def listed(text: str) -> tuple[int, ...]:
    """The numbers in a list of the kernel's, such as ``0-3,8``."""
    ranges = [[int(bound) for bound in each.split("-")] for each in text.strip().split(",") if each]
    return tuple(number for each in ranges for number in range(each[0], each[-1] + 1))
