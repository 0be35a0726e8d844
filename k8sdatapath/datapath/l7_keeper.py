"""What HTTP policy does beside the packets: it ends connections that they do not end."""

from __future__ import annotations

import threading
from collections.abc import Callable

from k8sdatapath.errors import DatapathError
from k8sdatapath.resource import Resource

__all__ = ["L7Keeper"]

_PAUSE = 1.0


class L7Keeper(Resource):
    """A thread that has something done every second.

    :ivar error: why it failed the last time; it goes on trying.

    :param work: what is to be done; must be quick where there is nothing to do.
    """

    def __init__(self, work: Callable[[], None]) -> None:
        self._work = work
        self._closing = threading.Event()
        self.error: DatapathError | None = None
        self._thread = threading.Thread(target=self._run, name="keeper of HTTP policy", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._closing.wait(_PAUSE):
            try:
                self._work()
                self.error = None
            except DatapathError as error:
                self.error = error

    def close(self) -> None:
        """Stop, behind what is being done."""
        self._closing.set()
        self._thread.join()
