"""Maglev tables, filled in C: tens of thousands of slots in one crossing."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

from k8sdatapath.pybpf.calls import check
from k8sdatapath.pybpf.lib import ffi, lib

__all__ = ["fill"]


def fill(members: Sequence[tuple[int, int, int]], size: int) -> array[int]:
    """A table of ``size`` (a prime) slots for members ``(hash, value, weight)``, as ``array("I")`` of values.

    :raises KernelError: ``EINVAL`` if no member has a weight.
    """
    given = ffi.new("struct kd_member[]", len(members))
    for slot, (hash, value, weight) in zip(given, members, strict=True):
        slot.hash, slot.value, slot.weight = hash, value, weight
    table = array("I", bytes(4 * size))
    check(
        lib.kd_maglev_fill(given, len(members), ffi.from_buffer("uint32_t[]", table), size),
        "fill Maglev table",
    )
    return table
