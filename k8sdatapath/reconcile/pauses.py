"""Garbage cycles are looked for a little at a time, so that no change waits long behind it."""

from __future__ import annotations

import gc

from k8sdatapath.reconcile.reconciler import Applied

__all__ = ["ShortPauses"]

_EVERY = 200


class ShortPauses:
    """A follower of a Reconciler that looks for garbage briefly, in a process that does little else.

    Nearly all that such a process makes it keeps, and left to itself the collector goes through it seldom and
    for long: tens of milliseconds, which the changes of that moment wait. Here what was made by the first
    changes is kept out of its sight for good, and later it looks at a few changes at a time, of which the
    memory is still warm.
    """

    def __init__(self) -> None:
        self._changes = 0
        self._begun = False
        gc.set_threshold(100_000, 250, 100)

    def __call__(self, applied: Applied) -> None:
        """Look for garbage if it is time."""
        if not self._begun:
            self._begun = True
            gc.freeze()
        self._changes += len(applied.delta.told)
        if self._changes >= _EVERY:
            self._changes = 0
            gc.collect(0)
