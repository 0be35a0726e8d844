"""The nodes that have an observer, as a relay asks for them."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from functools import partial

from attrs import frozen

__all__ = ["PeerChange", "PeerNode", "Peers"]


@frozen
class PeerNode:
    """An observer: ``PeerNode("default/node-1", "192.0.2.11:4244")``.

    :ivar tls_name: the name in its certificate; empty for one without.
    """

    name: str
    address: str
    tls_name: str = ""


@frozen
class PeerChange:
    """That one has come (1), gone (2) or changed (3), as the protocol numbers it."""

    kind: int
    peer: PeerNode


class Peers:
    """All that are known now."""

    def __init__(self, peers: Iterable[PeerNode] = ()) -> None:
        self._known = {each.name: each for each in peers}
        self._changed = threading.Condition()

    def replace(self, peers: Iterable[PeerNode]) -> None:
        """These are all from now on."""
        with self._changed:
            self._known = {each.name: each for each in peers}
            self._changed.notify_all()

    def _differ(self, told: dict[str, PeerNode]) -> bool:
        return self._known != told

    def changes(self, timeout: float) -> Iterator[list[PeerChange]]:
        """First all, then what has changed, at the latest after the seconds: maybe nothing."""
        told: dict[str, PeerNode] = {}
        while True:
            with self._changed:
                self._changed.wait_for(partial(self._differ, told), timeout)
                known = dict(self._known)
            gone = [PeerChange(2, told[name]) for name in told.keys() - known.keys()]
            new = [
                PeerChange(3 if name in told else 1, peer)
                for name, peer in known.items()
                if told.get(name) != peer
            ]
            told = known
            yield gone + new
