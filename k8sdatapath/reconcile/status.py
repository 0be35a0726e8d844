"""How far an object is on its way into the kernel."""

from __future__ import annotations

from enum import StrEnum

from attrs import frozen

__all__ = ["State", "Status"]


class State(StrEnum):
    """Where an object stands."""

    UNKNOWN = "unknown"
    """No source has told of it."""
    PENDING = "pending"
    """It has changed, and the kernel is still to follow."""
    PROGRAMMED = "programmed"
    """The kernel does what it says; also if that is nothing."""
    ERROR = "error"
    """It could not be done; what was there before still is."""


@frozen
class Status:
    """How far an object is.

    :ivar reason: what is wrong, or empty.
    :ivar since: when it was last programmed, as Unix time; 0: never by this process.
    :ivar retry_at: when it is tried again at the latest, as Unix time; 0: when it changes.
    """

    state: State
    reason: str = ""
    since: float = 0.0
    retry_at: float = 0.0

    def __str__(self) -> str:
        return f"{self.state}: {self.reason}" if self.reason else str(self.state)
