"""The last things an agent has done, for those who ask."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator

from attrs import frozen

from k8sdatapath.model.agent_event import AgentEvent

__all__ = ["AgentEvents", "TimedEvent"]


@frozen
class TimedEvent:
    """An event, and when it was, in nanoseconds since 1970."""

    number: int
    time: int
    event: AgentEvent


class AgentEvents:
    """The newest so many.

    :param capacity: how many are kept.
    """

    def __init__(self, capacity: int = 1024) -> None:
        self._events: deque[TimedEvent] = deque(maxlen=capacity)
        self._next = 0
        self._changed = threading.Condition()

    def add(self, event: AgentEvent) -> None:
        """Something was done, now."""
        with self._changed:
            self._events.append(TimedEvent(self._next, time.time_ns(), event))
            self._next += 1
            self._changed.notify_all()

    def all(self) -> list[TimedEvent]:
        """Those that are kept, oldest first."""
        with self._changed:
            return list(self._events)

    def after(self, number: int, timeout: float) -> Iterator[TimedEvent]:
        """Those after a number; if there are none, those that come within the seconds."""
        with self._changed:
            self._changed.wait_for(lambda: self._next > number + 1, timeout)
            found = [each for each in self._events if each.number > number]
        return iter(found)
