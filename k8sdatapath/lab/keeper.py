"""Outlives the owner of a lab by a moment, to take away what is left of the lab.

Run as ``python -I -S keeper.py LAB PATH...``, with the owner's pidfd as standard input, and its ``sys.path``.
Until the owner ends, however that comes about, this only waits.
"""

from __future__ import annotations

import os
import select
import signal
import sys


def main(lab: str, path: list[str]) -> None:
    """Wait, then sweep."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # meant for the owner
        signal.signal(number, signal.SIG_IGN)
    os.chdir("/")
    select.select([0], [], [])
    sys.path[:] = path

    from k8sdatapath.lab.leftovers import sweep

    sweep(lab)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
