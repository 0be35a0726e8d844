"""How far an object is on its way into the kernel."""

from __future__ import annotations

from enum import StrEnum

from attrs import frozen

from k8sdatapath.component import ObjectKey
from k8sdatapath.errors import DatapathError

__all__ = ["NotProgrammedError", "State", "Status"]


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


class NotProgrammedError(DatapathError, TimeoutError):
    """An object was not in the kernel in time; the message says how far it is.

    :ivar status: the same for programs.
    """

    def __init__(self, key: ObjectKey, status: Status, seconds: float | None) -> None:
        kind, namespace, name = key
        who = f"{kind} {namespace}/{name}" if namespace else f"{kind} {name}"
        when = "" if seconds is None else f" after {seconds:g} s"
        super().__init__(f"{who} is not programmed{when}: {status}")
        self.key = key
        self.status = status
