"""Policies tried out: who may reach whom, and which rule says so, without a cluster."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from typing import Any, TypeAlias

from attrs import frozen

from k8sdatapath.datapath.policy_compiler import EntryKey, PolicyCompiler
from k8sdatapath.datapath.policy_misses import Miss, misses
from k8sdatapath.datapath.policy_networks import Networks
from k8sdatapath.datapath.policy_rows import Because, Cause
from k8sdatapath.errors import ModelError
from k8sdatapath.model import IPAddress, Protocol, address
from k8sdatapath.model.address import shown
from k8sdatapath.model.enums import member
from k8sdatapath.model.http import HTTPReason, judge, written
from k8sdatapath.model.http_rules import HTTPRule
from k8sdatapath.model.identity import LOCAL_NUMBERS
from k8sdatapath.model.names import name_labels, name_patterns
from k8sdatapath.model.policy import Action, Policy, Toward
from k8sdatapath.model.workload import Party, Workload

__all__ = ["ICMP", "Decision", "PolicySet", "Verdict", "Why"]

Side: TypeAlias = Workload | IPAddress
ICMP = {"ICMP": 1, "ICMPV6": 58}


@frozen
class Decision:
    """What one side's policies say.

    :ivar because: the kind of reason, :class:`~k8sdatapath.datapath.policy_rows.Because`.
    :ivar causes: the rules, or the policies that isolate.
    :ivar key: of the entry that decides, None if none is asked.
    :ivar l7: what requests have to be, one of these is enough; none at all: anything.
    :ivar reason: why the request that was asked for is denied, while others are not.
    :ivar audited: it is allowed, and policies that only look on would deny it.
    """

    allowed: bool
    toward: Toward
    because: Because
    causes: tuple[Cause, ...] = ()
    key: EntryKey | None = None
    l7: frozenset[Hashable] = frozenset()
    reason: HTTPReason | None = None
    audited: bool = False

    def __str__(self) -> str:
        what = f"{self.toward.name.lower()} {'allowed' if self.allowed else 'denied'}"
        if self.audited:
            what += ", though it would be denied"
        causes = ", ".join(map(str, self.causes))
        why = {
            Because.RULE: f"by {causes}",
            Because.DEFAULT_DENY: f"by default: {causes} isolates, and no rule allows it",
            Because.NOT_ISOLATED: "by default: no policy isolates",
            Because.OWN_NODE: "from the pod's own node",
            Because.ITSELF: "to itself",
        }[self.because]
        if not self.l7:
            return f"{what} {why}"
        rules = " or ".join(sorted(map(str, self.l7)))
        return f"{what} {why}, for {rules}" + (f": {self.reason.words}" if self.reason else "")


@frozen
class Verdict:
    """What becomes of a new connection: true if it is allowed.

    :ivar decisions: of the source's egress and of the destination's ingress, as far as they are pods.
    :ivar version: of IP.
    """

    decisions: tuple[Decision, ...]
    version: int = 4

    @property
    def allowed(self) -> bool:
        """Whether both sides agree."""
        return all(each.allowed for each in self.decisions)

    @property
    def audited(self) -> bool:
        """Whether it is allowed only since policies look on that would deny it."""
        return self.allowed and any(each.audited for each in self.decisions)

    def __bool__(self) -> bool:
        return self.allowed

    def __str__(self) -> str:
        return "; ".join(map(str, self.decisions)) or "allowed: neither side is a pod"


@frozen
class Why:
    """A verdict and, where default denies, or would, the rules that would nearly have allowed it.

    :ivar nearest: the nearest first, of each side.
    """

    verdict: Verdict
    nearest: tuple[Miss, ...] = ()

    def __bool__(self) -> bool:
        return self.verdict.allowed

    def __str__(self) -> str:
        return "\n".join([str(self.verdict), *(f"    not by {each}" for each in self.nearest)])


class PolicySet:
    """Policies and pods, and who of these may reach whom by them::

        policies = PolicySet(read_policies("payments.yaml"), pods)
        print(policies.verdict("frontend/checkout", "payments/api", 8080))

    What answers are the entries that policy maps are made of, found as these are asked.

    :param workloads: those that verdicts are asked for; others can be given with the question.
    :param names: the addresses of DNS names, for policies by name: ``{"bank.example": ["192.0.2.7"]}``.
    """

    def __init__(
        self,
        policies: Iterable[Policy],
        workloads: Iterable[Workload] = (),
        *,
        names: Mapping[str, Iterable[Any]] = {},
    ) -> None:
        self.workloads: dict[str, Workload] = {}
        for each in workloads:
            if self.workloads.setdefault(each.name, each) is not each:
                raise ModelError(f"{shown(each.name)} is given twice")
        self._compiler = PolicyCompiler()
        self._compiler.update(policies)
        patterns = tuple(name_patterns(self._compiler.policies.values()))
        told: dict[IPAddress, list[str]] = {}
        for name, addresses in names.items():
            for ip in map(address, addresses):
                told.setdefault(ip, []).append(name)
        self._named = {ip: tuple(name_labels(patterns, its)) for ip, its in told.items()}
        self._networks = Networks(self._compiler.networks)
        self._numbers: dict[Party, int] = {}
        self._subjects: set[int] = set()

    def verdict(
        self,
        source: Workload | str | IPAddress,
        destination: Workload | str | IPAddress,
        port: int,
        protocol: Protocol | str | int = Protocol.TCP,
        *,
        version: int = 0,
        request: str = "",
    ) -> Verdict:
        """What becomes of a new connection.

        :param source: a workload, the name of one, or an address: what no workload has is of the world.
        :param port: of the destination, after any translation of a service; of ICMP the type.
        :param protocol: also ``"ICMP"`` and ``"ICMPv6"``.
        :param version: of IP, where both sides have addresses of both families; the first is taken.
        :param request: of HTTP, that is made over it: ``"POST /charge"``, headers on lines of their own.
        """
        number = _protocol(protocol)
        if type(port) is not int or not 0 <= port <= 65535:
            raise ModelError(f"{shown(port)} is not a port")
        sides = self._side(source), self._side(destination)
        version = version or next((each.version for each in sides if not isinstance(each, Workload)), 0)
        if not version:
            version = next((each.version for side in sides for each in _addresses(side)), 4)
        same = sides[0] == sides[1]
        found = []
        for toward in (Toward.EGRESS, Toward.INGRESS):
            own, peer = sides if toward is Toward.EGRESS else sides[::-1]
            if not isinstance(own, Workload) or not own.is_pod:
                continue
            if same:
                found.append(Decision(True, toward, Because.ITSELF))
                continue
            subject, other = self._number(own, version), self._number(peer, version)
            if subject not in self._subjects:
                self._compiler.update(subjects=[subject])
                self._subjects.add(subject)
            key, entry = self._compiler.table(subject).find(toward, other, number, port)
            reason = _reason(request, entry.l7)
            allowed = entry.action is Action.ALLOW and reason is None
            l7 = entry.l7 if reason or not entry.audited else frozenset()
            said = toward, entry.because, entry.causes, key, l7, reason
            found.append(Decision(allowed or entry.audited, *said, entry.audited and not allowed))
        return Verdict(tuple(found), version)

    def why(
        self,
        source: Workload | str | IPAddress,
        destination: Workload | str | IPAddress,
        port: int,
        protocol: Protocol | str | int = Protocol.TCP,
        *,
        version: int = 0,
        request: str = "",
        most: int = 3,
    ) -> Why:
        """The same, and where it is denied by default: the rules that would nearly have allowed it.

        :param most: of these, for each side.
        """
        verdict = self.verdict(source, destination, port, protocol, version=version, request=request)
        sides = self._side(source), self._side(destination)
        family = verdict.version
        parties = [Party((), None)] * 2
        if any(each.because is Because.DEFAULT_DENY for each in verdict.decisions):
            by_number = {number: party for party, number in self._numbers.items()}
            parties = [by_number[self._number(each, family)] for each in sides]
        found: list[Miss] = []
        for each in verdict.decisions:
            if each.because is Because.DEFAULT_DENY:
                own, peer = parties if each.toward is Toward.EGRESS else parties[::-1]
                policies = self._compiler.policies.values()
                asked = _protocol(protocol), port, parties[1].ports
                found += misses(policies, own, peer, each.toward, *asked)[:most]
        return Why(verdict, tuple(found))

    def _side(self, side: Workload | str | IPAddress) -> Side:
        if isinstance(side, Workload):
            return side
        if isinstance(side, str) and side in self.workloads:
            return self.workloads[side]
        try:
            found = address(side)
        except ModelError:
            raise ModelError(f"{shown(side)} is neither a workload nor an address") from None
        return next((each for each in self.workloads.values() if found in each.addresses), found)

    def _number(self, side: Side, version: int) -> int:
        """The identity that it has under an address of a family."""
        found = next((each for each in _addresses(side) if each.version == version), None)
        network = None if found is None else self._networks.narrowest(found)
        if isinstance(side, Workload):
            party = Party(side.labels, network, side.ports)
        else:
            party = Party(world(side.version) + self._named.get(side, ()), network)
        if party not in self._numbers:
            self._numbers[party] = LOCAL_NUMBERS[len(self._numbers)]
            self._compiler.update(identities={self._numbers[party]: party})
        return self._numbers[party]


def _reason(request: str, l7: frozenset[Hashable]) -> HTTPReason | None:
    """Why a request is denied by rules, if it is; a request that nothing is asked of is not."""
    rules = [each for each in l7 if isinstance(each, HTTPRule)]
    return judge(written(request), rules).reason if request and l7 else None


def world(version: int) -> tuple[str, ...]:
    """The labels of addresses outside of the cluster."""
    return "reserved:world", f"reserved:world-ipv{version}"


def _addresses(side: Side) -> tuple[IPAddress, ...]:
    return side.addresses if isinstance(side, Workload) else (side,)


def _protocol(value: Any) -> int:
    if isinstance(value, str) and value.upper() in ICMP:
        return ICMP[value.upper()]
    if type(value) is int and 0 < value < 256:
        return value
    return member(Protocol, value, "protocol")
