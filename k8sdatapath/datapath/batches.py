"""Programs that are run over rows which user space has, many at a time."""

from __future__ import annotations

from k8sdatapath import maps, programs
from k8sdatapath.objects import Object

__all__ = ["run_over"]

_FRAME = bytes(64)  # a test run wants a packet, which the program does not look at


def run_over(loaded: Object, program: str, array: str, rows: bytes | bytearray) -> int:
    """Run a program of a loaded object over packed rows; returns the sum of what it returned.

    :param array: the map of memory that it reads rows from, up to one of zeros.
    """
    entry = loaded.program(program, programs.TC)
    with loaded.map(array, maps.Array) as given:
        room, found = given.view().nbytes, 0
        for at in range(0, len(rows), room):
            given.view()[:] = bytes(rows[at : at + room]).ljust(room, b"\0")
            found += entry.run(_FRAME).retval
    return found
