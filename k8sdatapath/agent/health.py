"""How an agent is, for probes: whether it lives, whether its node is served, whether all is well."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from enum import Enum

from attrs import define, field, frozen

__all__ = ["Checks", "Finding", "Probe"]


class Probe(Enum):
    """What is asked for.

    ``LIVE``: the agent's parts are at work; a new start may help if not. ``READY``: the node's services are
    programmed as a whole, and the agent is not about to end. ``HEALTHY``: the node serves, so that a load
    balancer may send it traffic: it is live, its services were programmed once, and nothing is wrong that all
    of them have to do with.
    """

    LIVE = "livez"
    READY = "readyz"
    HEALTHY = "healthz"


@frozen
class Finding:
    """The outcome of one check.

    :ivar problem: a sentence; empty if all is well.
    """

    name: str
    problem: str

    @property
    def well(self) -> bool:
        """Whether all is well."""
        return not self.problem


@define
class Checks:
    """Checks by what they are asked for; each answers with a problem, or nothing."""

    _checks: dict[Probe, dict[str, Callable[[], str]]] = field(factory=lambda: {each: {} for each in Probe})

    def add(self, name: str, check: Callable[[], str], *probes: Probe, of_health: bool = True) -> None:
        """Add a check to some probes; one of life and one of readiness are of health as well.

        :param of_health: False: what it finds is no reason to send the node no traffic.
        """
        for probe in {*probes, *([Probe.HEALTHY] if of_health else [])}:
            self._checks[probe][name] = check

    def ask(self, probe: Probe) -> tuple[Finding, ...]:
        """The outcome of each check."""
        return tuple(self._findings(self._checks[probe]))

    def _findings(self, checks: Mapping[str, Callable[[], str]]) -> Iterator[Finding]:
        for name, check in list(checks.items()):
            try:
                yield Finding(name, check())
            except Exception as error:  # a check that cannot be made is a problem, not the end of the probe
                yield Finding(name, f"cannot be checked: {error}")
