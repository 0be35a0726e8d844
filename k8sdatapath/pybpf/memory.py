"""Maps as memory: ordered stores into a mapped array, and the end of every program that runs now."""

from __future__ import annotations

from array import array

from k8sdatapath.errors import KernelError
from k8sdatapath.pybpf.calls import check
from k8sdatapath.pybpf.lib import ffi, lib

__all__ = ["store_many", "wait_for_programs"]


def store_many(words: memoryview, places: array[int], values: array[int]) -> None:
    """Store 64-bit ``values`` at ``places`` of ``words``, each in one piece and after all earlier stores.

    :param places: ``array("I")``; ``values`` is ``array("Q")`` of the same length.
    :raises IndexError: a place is outside.
    """
    if len(places) and max(places) >= len(words):
        raise IndexError(f"place {max(places)} of {len(words)}")
    lib.kd_store64_many(ffi.from_buffer(words), ffi.from_buffer(places), ffi.from_buffer(values), len(places))


def wait_for_programs() -> None:
    """Return when every BPF program that ran at the call has ended: an RCU grace period, some 10 ms."""
    try:
        check(lib.kd_rcu_wait(), "wait for an RCU grace period")
    except (
        KernelError
    ):  # no membarrier(2), or nohz_full: a program runs for microseconds, a stolen CPU for less
        import time

        time.sleep(1.0)
