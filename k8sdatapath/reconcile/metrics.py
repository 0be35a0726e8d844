"""How often and how fast the kernel follows what is wanted."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from itertools import accumulate

from attrs import define, field

__all__ = ["FAST", "PROGRAMMING", "Histogram", "Metrics"]

FAST = tuple(1e-4 * 2**power for power in range(18))
"""From 0.1 ms to 13 s, each twice the one before."""

PROGRAMMING = (0.25, 0.5, *map(float, range(1, 60)), *map(float, range(60, 120, 5)), *range(120, 301, 30))
"""The buckets that kube-proxy has for this metric."""


@define
class Histogram:
    """Durations, counted in buckets.

    :ivar bounds: upper ends of the buckets, in seconds; beyond the last there is one more.
    :ivar counts: how many are in each bucket, that one included.
    """

    bounds: tuple[float, ...]
    counts: list[int] = field(init=False)
    sum: float = field(init=False, default=0.0)

    def __attrs_post_init__(self) -> None:
        self.counts = [0] * (len(self.bounds) + 1)

    @property
    def count(self) -> int:
        """How many durations were counted."""
        return sum(self.counts)

    def observe(self, seconds: Iterable[float]) -> None:
        """Count durations."""
        for each in seconds:
            self.counts[bisect_left(self.bounds, each)] += 1
            self.sum += each

    def cumulative(self) -> Iterator[tuple[float, int]]:
        """Each bound, and how many were not above it: what Prometheus wants."""
        return zip((*self.bounds, float("inf")), accumulate(self.counts), strict=True)

    def quantile(self, share: float) -> float:
        """The bound that so large a share does not exceed; 0 if nothing was counted."""
        count = self.count
        return next((bound for bound, seen in self.cumulative() if count and seen >= share * count), 0.0)


@define
class Metrics:
    """What a reconciler has done.

    :ivar network_programming: from what made endpoints change to the kernel, by the clocks of the cluster:
        ``network_programming_duration_seconds`` of kube-proxy. Changes from before the start do not count.
    :ivar event_to_kernel: from the bytes of an event to the kernel, for every object.
    :ivar change: how long writing a batch took.
    :ivar added: services; likewise ``changed`` and ``removed``.
    :ivar refused: times that a service was left as it was.
    :ivar failures: batches that the kernel did not take.
    :ivar retries: times that failed services were tried again.
    :ivar follower_failures: times that what follows a change failed.
    :ivar drifted: services that the kernel had otherwise than they were written.
    :ivar last_change: when something was last written, as Unix time.
    """

    network_programming: Histogram = field(factory=lambda: Histogram(PROGRAMMING))
    event_to_kernel: Histogram = field(factory=lambda: Histogram(FAST))
    change: Histogram = field(factory=lambda: Histogram(FAST))
    batches: int = 0
    added: int = 0
    changed: int = 0
    removed: int = 0
    refused: int = 0
    failures: int = 0
    retries: int = 0
    follower_failures: int = 0
    drifted: int = 0
    last_change: float = 0.0
