"""Policies tried out: who may reach whom, and which rule says so, without a cluster."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from difflib import get_close_matches
from ipaddress import IPv4Network, IPv6Network
from typing import Any

from attrs import frozen

from k8sdatapath.datapath.policy_compiler import EntryKey, PolicyCompiler
from k8sdatapath.datapath.policy_misses import Miss, misses
from k8sdatapath.datapath.policy_networks import Networks
from k8sdatapath.datapath.policy_rows import Because, Cause
from k8sdatapath.datapath.policy_sides import (
    RESERVED,
    Side,
    addresses_of,
    at_home,
    family_of,
    is_outside,
    seen_from,
    world,
)
from k8sdatapath.errors import ModelError, near_misses
from k8sdatapath.model import IPAddress, IPNetwork, Protocol, address, network
from k8sdatapath.model.address import shown
from k8sdatapath.model.enums import member
from k8sdatapath.model.host_firewall import HostFirewall, to_host_firewall
from k8sdatapath.model.http import HTTPReason, judge, written
from k8sdatapath.model.http_rules import HTTPRule
from k8sdatapath.model.identity import LOCAL_NUMBERS
from k8sdatapath.model.names import NamePattern, name_labels, name_patterns
from k8sdatapath.model.policy import Action, Policy, Toward, within
from k8sdatapath.model.workload import Party, Workload

__all__ = ["ICMP", "Decision", "PolicySet", "Verdict", "Why"]

ICMP = {"ICMP": 1, "ICMPV6": 58}
_PROTOCOLS = (*Protocol.__members__, "ICMP", "ICMPv6")


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
        causes, isolate = ", ".join(map(str, self.causes)), "isolate" if self.causes[1:] else "isolates"
        why = {
            Because.RULE: f"by {causes}",
            Because.DEFAULT_DENY: f"by default: {causes} {isolate}, and no rule allows it",
            Because.NOT_ISOLATED: "by default: no policy isolates",
            Because.OWN_NODE: "from the pod's own node",
            Because.ITSELF: "to itself",
            Because.OWN_POD: "between a node and its pod",
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
    :param host_firewall: policies are for nodes as well, as where this is enforced; True: with its usual
        ports. Each node is asked as it is by itself, and not about what is between it and its own pods.
    """

    def __init__(
        self,
        policies: Iterable[Policy],
        workloads: Iterable[Workload] = (),
        *,
        names: Mapping[str, Iterable[Any]] = {},
        host_firewall: HostFirewall | bool | None = None,
    ) -> None:
        self.workloads: dict[str, Workload] = {}
        for each in workloads:
            if self.workloads.setdefault(each.name, each) is not each:
                raise ModelError(f"{shown(each.name)} is given twice")
        firewall = to_host_firewall(host_firewall)
        self._of_nodes = firewall is not None
        self._compiler = PolicyCompiler()
        self._compiler.update([*policies, *([firewall.failsafe] if firewall else [])])
        self._patterns = dict.fromkeys(name_patterns(self._compiler.policies.values()))
        told: dict[IPAddress, list[str]] = {}
        for name, addresses in names.items():
            for ip in map(address, addresses):
                told.setdefault(ip, []).append(name)
        self._named = {ip: tuple(name_labels(self._patterns, its)) for ip, its in told.items()}
        self._networks = Networks(self._compiler.networks)
        self._numbers: dict[Party, int] = {}
        self._known: dict[tuple[Side, int], int] = {}
        self._subjects: set[int] = set()

    @property
    def unnamed(self) -> tuple[str, ...]:
        """The DNS names and patterns in policies of which no address is told: such rules match none."""
        told = {label for labels in self._named.values() for label in labels}
        return tuple(sorted(str(each) for each in self._patterns if each.label not in told))

    @property
    def policies(self) -> Mapping[str, Policy]:
        """By name; the one that keeps a node's ports open is among them."""
        return self._compiler.policies

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

        :param source: a workload, the name of one, or an address: what no workload has is of the world. Or
            one of ``"world"``, ``"host"`` (a pod's own node), ``"remote-node"`` and what else
            ``fromEntities`` has, a network that no policy tells a part of from the rest, or a DNS name that
            policies have, which stands for an address of this name.
        :param port: of the destination, after any translation of a service; of ICMP the type.
        :param protocol: also ``"ICMP"`` and ``"ICMPv6"``.
        :param version: of IP, where both sides have addresses of both families; the first is taken.
        :param request: of HTTP, that is made over it: ``"POST /charge"``, headers on lines of their own. To
            a name server: the name.
        """
        number = _protocol(protocol)
        if type(port) is not int or not 0 <= port <= 65535:
            raise ModelError(f"{shown(port)} is not a port")
        sides = self._side(source), self._side(destination)
        version = version or family_of(sides)
        same = sides[0] == sides[1]
        found = []
        for toward in (Toward.EGRESS, Toward.INGRESS):
            own, peer = seen_from(sides, toward)
            if not isinstance(own, Workload) or not (own.is_pod or (self._of_nodes and own.is_node)):
                continue
            if same or at_home(own, peer):
                found.append(Decision(True, toward, Because.ITSELF if same else Because.OWN_POD))
                continue
            subject, other = self._number(own, version), self._number(peer, version)
            if subject not in self._subjects:
                self._compiler.update(subjects=[subject])
                self._subjects.add(subject)
            key, entry = self._compiler.table(subject).find(toward, other, number, port)
            reason = _reason(request.strip("\n"), entry.l7)
            allowed = entry.action is Action.ALLOW and reason is None
            looks_on = entry.audited or own.audit
            l7 = entry.l7 if reason or not looks_on else frozenset()
            said = toward, entry.because, entry.causes, key, l7, reason
            found.append(Decision(allowed or looks_on, *said, looks_on and not allowed))
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
        found: list[Miss] = []
        for each in verdict.decisions:
            if each.because is Because.DEFAULT_DENY:
                own, peer = (self._party(side, family) for side in seen_from(sides, each.toward))
                policies = self._compiler.policies.values()
                asked = _protocol(protocol), port, (peer if each.toward is Toward.EGRESS else own).ports
                found += misses(policies, own, peer, each.toward, *asked)[:most]
        return Why(verdict, tuple(found))

    def _side(self, side: Workload | str | IPAddress) -> Side:
        if isinstance(side, Workload):
            return side
        if isinstance(side, str) and side in self.workloads:
            return self.workloads[side]
        if isinstance(side, str) and side in RESERVED:
            return RESERVED[side]
        try:
            found = network(side) if isinstance(side, str) and "/" in side else address(side)
        except ModelError:
            return self._by_name(side)
        if isinstance(found, IPv4Network | IPv6Network):
            return self._one_of(found)
        return next((each for each in self.workloads.values() if found in each.addresses), found)

    def _by_name(self, name: Any) -> Workload:
        """An address of the world that has a DNS name which policies have."""
        if isinstance(name, str) and (labels := tuple(name_labels(self._patterns, [name]))):
            return Workload(name, [*map(str, RESERVED["world"].labels), *labels])
        same = [each for each in self.workloads if each.endswith(f"/{name}")]
        near = same[:3] or get_close_matches(str(name), self.workloads)
        hint = f": {near_misses(near[0], near)}" if near else ""
        raise ModelError(f"{shown(name)} is neither a workload nor an address{hint}") from None

    def _one_of(self, outside: IPNetwork) -> IPAddress:
        """An address of a network, which stands for all of them."""
        parts = [each for each in self._networks if each != outside and within(each, outside)]
        named = [ip for ip in self._named if ip in outside]
        if parts or named:
            there = ", ".join(map(str, [*parts, *named][:3]))
            raise ModelError(
                f"{outside} is not all one to these policies: ask for {there}, or other parts of it"
            )
        return outside.network_address

    def _number(self, side: Side, version: int) -> int:
        """The identity that it has under an address of a family."""
        if (known := self._known.get((side, version))) is not None:
            return known
        party = self._party(side, version)
        if party not in self._numbers:
            self._numbers[party] = LOCAL_NUMBERS[len(self._numbers)]
            self._compiler.update(identities={self._numbers[party]: party})
        self._known[side, version] = self._numbers[party]
        return self._numbers[party]

    def _party(self, side: Side, version: int) -> Party:
        found = next((each for each in addresses_of(side) if each.version == version), None)
        around = None if found is None else self._networks.narrowest(found)
        if isinstance(side, Workload):
            outside = world(version) if is_outside(side) else ()
            return Party((*side.labels, *outside), around, side.ports)
        return Party(world(side.version) + self._named.get(side, ()), around)


def _reason(request: str, l7: frozenset[Hashable]) -> HTTPReason | None:
    """Why a request is denied by rules, if it is; a request that nothing is asked of is not."""
    names = [each for each in l7 if isinstance(each, NamePattern)]
    if request and names:
        return None if any(each.matches(request) for each in names) else HTTPReason.NO_RULE
    rules = [each for each in l7 if isinstance(each, HTTPRule)]
    return judge(written(request), rules).reason if request and l7 else None


def _protocol(value: Any) -> int:
    if isinstance(value, str) and value.upper() in ICMP:
        return ICMP[value.upper()]
    if type(value) is int and 0 < value < 256:
        return value
    try:
        return member(Protocol, value, "protocol")
    except ModelError:
        raise ModelError(f"{shown(value)} is not a protocol ({', '.join(_PROTOCOLS)})") from None
