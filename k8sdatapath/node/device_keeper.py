"""Looks after devices that are deleted and made anew."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from k8sdatapath.errors import DatapathError
from k8sdatapath.net.netns import NetNs
from k8sdatapath.net.rtnetlink import LinkChanges
from k8sdatapath.programs.base import in_netns
from k8sdatapath.resource import Resource

__all__ = ["DeviceKeeper"]

_log = logging.getLogger(__name__)
_STILL = 0.05
"""Seconds between two looks: one is for all that changes meanwhile."""
_RETRY = 1.0


class DeviceKeeper(Resource):
    """A thread that looks whenever devices or routes have changed.

    :param look: is called then; again after a moment if it fails.
    :param netns: where; None is the namespace of the calling thread.
    """

    def __init__(self, look: Callable[[], object], netns: NetNs | None) -> None:
        self._look = look
        self._closing = threading.Event()
        self._changes = in_netns(netns, LinkChanges)
        self._thread = threading.Thread(target=self._run, name="keeper of devices", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        failed = False
        while not self._closing.is_set():
            if not self._changes.wait(_RETRY if failed else None) and not failed:
                continue
            try:
                self._look()
                failed = False
            except (DatapathError, OSError) as error:
                if not failed:
                    _log.error("a device that was made anew has not got its programs yet: %s", error)
                failed = True
            self._closing.wait(_STILL)

    def close(self) -> None:
        """Stop; returns when it has."""
        if not self._closing.is_set():
            self._closing.set()
            self._changes.wake()
            self._thread.join()
            self._changes.close()
