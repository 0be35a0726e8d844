"""What a node does beside its packets: it forgets flows that are over, and those that a change has ended."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from math import inf

from k8sdatapath.datapath.conntrack_table import Sweep
from k8sdatapath.errors import DatapathError
from k8sdatapath.resource import Resource

__all__ = ["Upkeep"]

_SHORTEST, _LONGEST = 1.0, 10.0
_FULL_ENOUGH = 0.75
_SHARE = 0.1  # of a processor, at most: waiting for one, or for programs to end, is no work
_LINGER = 3.5  # seconds until nothing is kept for answers to flows that have ended: above KD_CT_LINGER


class Upkeep(Resource):
    """A thread that collects flows, the more often the faster their table fills.

    :ivar sweeps: how often it has done so.
    :ivar collected: flows that it has collected altogether.
    :ivar reaped: flows that it has forgotten because a change had ended them.
    :ivar last: the last time.
    :ivar error: why the last time failed; it goes on trying.

    :param reap: forgets what a change has ended, and says how many flows that were.
    """

    def __init__(self, sweep: Callable[[], Sweep], reap: Callable[[], int]) -> None:
        self._sweep = sweep
        self._reap = reap
        self._woken = threading.Event()
        self._closing = False
        self._asked = False
        self._hurry = False
        self._again_at = inf
        self.sweeps = 0
        self.collected = 0
        self.reaped = 0
        self.last: Sweep | None = None
        self.error: DatapathError | None = None
        self._thread = threading.Thread(target=self._run, name="upkeep of a node", daemon=True)
        self._thread.start()

    def reap_soon(self) -> None:
        """A change may have ended flows. Many such calls are answered by one walk through the table."""
        self._asked = True
        self._woken.set()

    def sweep_soon(self) -> None:
        """The table is another now, and may be fuller than the one before it."""
        self._hurry = True
        self._woken.set()

    def _run(self) -> None:
        left, began = 0, time.monotonic()
        sweep_at, reap_at = began + _SHORTEST, began
        while True:
            at = min(sweep_at, reap_at if self._asked else max(reap_at, self._again_at))
            self._woken.wait(max(at - time.monotonic(), 0))
            self._woken.clear()
            started, closing = time.monotonic(), self._closing
            again = started >= self._again_at and not closing
            if (self._asked and closing) or ((self._asked or again) and started >= reap_at):
                reap_at = started + self._reaped(started)
            if closing:
                return
            if started < sweep_at and not self._hurry:
                continue
            self._hurry = False
            worked = time.thread_time()
            try:
                sweep = self._sweep()
            except DatapathError as error:
                self.error, sweep_at = error, started + _LONGEST
                continue
            now = time.monotonic()
            sweep_at = now + pause(sweep, left, now - began, time.thread_time() - worked)
            left, began = sweep.left, now
            if not self.sweeps:
                self._asked = True  # a process before this one may have ended in between
            self.sweeps, self.collected = self.sweeps + 1, self.collected + sweep.flows
            self.last, self.error = sweep, None

    def _reaped(self, started: float) -> float:
        """Forget what changes have ended until now; returns after how many seconds it may be done again."""
        # What was not asked for takes away what the walk before it has left to answers on their way.
        self._again_at, self._asked = started + _LINGER if self._asked else inf, False
        worked = time.thread_time()
        try:
            reaped = self._reap()
        except DatapathError as error:
            self.error, self._asked = error, True
            return _LONGEST
        if reaped:
            self.reaped, self._again_at = self.reaped + reaped, started + _LINGER
        return (time.thread_time() - worked) / _SHARE

    def close(self) -> None:
        """Stop, when what has been asked for is done."""
        self._closing = True
        self._woken.set()
        self._thread.join()


def pause(sweep: Sweep, left: int, elapsed: float, worked: float) -> float:
    """Seconds until the next sweep: so that the table will not be full, if it goes on filling as it did.

    :param left: entries that the sweep before had left.
    :param elapsed: seconds since then.
    :param worked: seconds that a processor has spent on this sweep.
    """
    grown = sweep.entries - left
    room = max(_FULL_ENOUGH * sweep.capacity - sweep.left, 0)
    wait = room * elapsed / grown if grown > 0 else _LONGEST
    return max(min(wait, _LONGEST), _SHORTEST, worked / _SHARE)
