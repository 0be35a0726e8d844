"""What a node does beside its packets, again and again: flows that are over are collected."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from k8sdatapath.datapath.conntrack_table import Sweep
from k8sdatapath.errors import DatapathError
from k8sdatapath.resource import Resource

__all__ = ["Upkeep"]

_SHORTEST, _LONGEST = 1.0, 10.0
_FULL_ENOUGH = 0.75
_SHARE = 0.1  # of a processor, at most


class Upkeep(Resource):
    """A thread that collects flows, the more often the faster their table fills.

    :ivar sweeps: how often it has done so.
    :ivar collected: flows that it has collected altogether.
    :ivar last: the last time.
    :ivar error: why the last time failed; it goes on trying.
    """

    def __init__(self, sweep: Callable[[], Sweep]) -> None:
        self._sweep = sweep
        self._stop = threading.Event()
        self.sweeps = 0
        self.collected = 0
        self.last: Sweep | None = None
        self.error: DatapathError | None = None
        self._thread = threading.Thread(target=self._run, name="upkeep of a node", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        wait, left, began = _SHORTEST, 0, time.monotonic()
        while not self._stop.wait(wait):
            try:
                sweep = self._sweep()
            except DatapathError as error:
                self.error, wait = error, _LONGEST
                continue
            now = time.monotonic()
            wait = pause(sweep, left, now - began)
            left, began = sweep.left, now
            self.sweeps, self.collected = self.sweeps + 1, self.collected + sweep.flows
            self.last, self.error = sweep, None

    def close(self) -> None:
        """Stop; returns when it has."""
        self._stop.set()
        self._thread.join()


def pause(sweep: Sweep, left: int, elapsed: float) -> float:
    """Seconds until the next sweep: so that the table will not be full, if it goes on filling as it did.

    :param left: entries that the sweep before had left.
    :param elapsed: seconds since then.
    """
    grown = sweep.entries - left
    room = max(_FULL_ENOUGH * sweep.capacity - sweep.left, 0)
    wait = room * elapsed / grown if grown > 0 else _LONGEST
    return max(min(wait, _LONGEST), _SHORTEST, sweep.seconds / _SHARE)
