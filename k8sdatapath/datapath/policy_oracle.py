"""What policies say of one connection, read off the rules one after the other: the other answer.

It shares nothing with the compiler but the values that policies are. Tests hold both together, and the
policy maps of the kernel to them; so nothing here may be clever.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping

from attrs import frozen

from k8sdatapath.model import IPAddress
from k8sdatapath.model.names import NamePattern, name_labels, name_patterns
from k8sdatapath.model.policy import Action, Block, Policy, PortMatch, Rule, Tier, Toward
from k8sdatapath.model.workload import Workload

__all__ = ["allows", "audits", "requests_asked"]


def allows(
    policies: Iterable[Policy],
    source: Workload | IPAddress,
    destination: Workload | IPAddress,
    port: int,
    protocol: int,
    *,
    version: int = 4,
    allow_host: bool = True,
    names: Mapping[IPAddress, Collection[str]] = {},
    nodes: bool = False,
) -> bool:
    """Whether a new connection is allowed.

    :param protocol: of IP, by number.
    :param version: of IP: which addresses of the two it is between.
    :param names: the DNS names of addresses.
    :param nodes: policies are enforced for the node as well.
    """
    question = _Question(source, destination, port, protocol, version, allow_host, names, nodes)
    sides = _sides(policies, question)
    return all(_one_side(_enforced(selecting), connection) for selecting, connection in sides)


def audits(
    policies: Iterable[Policy],
    source: Workload | IPAddress,
    destination: Workload | IPAddress,
    port: int,
    protocol: int,
    *,
    version: int = 4,
) -> frozenset[Toward]:
    """The sides that allow a new connection only since policies look on that would deny it."""
    return frozenset(
        connection.toward
        for selecting, connection in _sides(policies, _Question(source, destination, port, protocol, version))
        if not any(each.restricts(connection.toward) for each in _enforced(selecting))
        and not _one_side(selecting, connection)
    )


def requests_asked(
    policies: Iterable[Policy],
    source: Workload | IPAddress,
    destination: Workload | IPAddress,
    port: int,
    protocol: int,
    *,
    version: int = 4,
) -> dict[Toward, frozenset[Hashable]]:
    """What requests over an allowed connection have to be, as each side asks that is a pod: one of these is
    enough, none at all is anything.
    """
    found: dict[Toward, frozenset[Hashable]] = {}
    for those, connection in _sides(policies, _Question(source, destination, port, protocol, version)):
        selecting = _enforced(those)
        rules: list[Rule] = []
        if _first(selecting, Tier.ADMIN, connection) in (None, Action.PASS):
            rules = [each for each in _default_rules(selecting, connection) if each.action is Action.ALLOW]
        anything = any(not each.l7 for each in rules)
        asked = frozenset(each for rule in rules for each in rule.l7 if connection.can_hold_to(each))
        if len({isinstance(each, NamePattern) for each in asked}) > 1:  # it is read as HTTP
            asked = frozenset(each for each in asked if not isinstance(each, NamePattern))
        found[connection.toward] = frozenset() if anything else asked
    return found


@frozen
class _Question:
    """A new connection, and what there is around it: as :func:`allows` has it."""

    source: Workload | IPAddress
    destination: Workload | IPAddress
    port: int
    protocol: int
    version: int
    allow_host: bool = True
    names: Mapping[IPAddress, Collection[str]] = {}
    nodes: bool = False


def _sides(policies: Iterable[Policy], asked: _Question) -> Iterator[tuple[list[Policy], _Connection]]:
    """The policies that are asked, of each side that is a pod."""
    if asked.source == asked.destination:
        return
    found = list(policies)
    told = {ip: tuple(name_labels(name_patterns(found), its)) for ip, its in asked.names.items()}
    for own, peer, toward in (
        (asked.source, asked.destination, Toward.EGRESS),
        (asked.destination, asked.source, Toward.INGRESS),
    ):
        if not isinstance(own, Workload) or not (own.is_pod or (asked.nodes and own.is_host)):
            continue  # policies are for pods, and for the node where they are enforced
        to_pod = toward is Toward.INGRESS
        if asked.allow_host and to_pod and "reserved:host=" in _labels(peer, asked.version):
            continue
        selecting = [policy for policy in found if policy.subject.matches(own.labels)]
        yield selecting, _Connection(asked, peer, toward, told)


def _enforced(policies: list[Policy]) -> list[Policy]:
    return [each for each in policies if not each.audit]


def _one_side(policies: list[Policy], connection: _Connection) -> bool:
    verdict = _first(policies, Tier.ADMIN, connection)
    if verdict in (Action.ALLOW, Action.DENY):
        return verdict is Action.ALLOW
    rules = _default_rules(policies, connection)
    if any(rule.action is Action.DENY for rule in rules):
        return False
    allowing = [rule for rule in rules if rule.action is Action.ALLOW]
    if any(connection.can_hold(rule) for rule in allowing):
        return True
    if allowing or any(connection.toward in policy.isolates for policy in policies):
        return False
    return _first(policies, Tier.BASELINE, connection) is not Action.DENY


def _default_rules(policies: list[Policy], connection: _Connection) -> list[Rule]:
    """All of the default tier that match."""
    return [
        rule
        for policy in policies
        if policy.tier is Tier.DEFAULT
        for rule in policy.rules
        if connection.matches(rule)
    ]


def _first(policies: list[Policy], tier: Tier, connection: _Connection) -> Action | None:
    """What the first rule of a tier says that matches."""
    inside = [policy for policy in policies if policy.tier is tier]
    for policy in sorted(inside, key=lambda each: (each.priority, each.name)):
        for rule in policy.rules:
            if connection.matches(rule):
                return rule.action
    return None


class _Connection:
    def __init__(
        self,
        asked: _Question,
        peer: Workload | IPAddress,
        toward: Toward,
        told: Mapping[IPAddress, tuple[str, ...]],
    ) -> None:
        self.toward = toward
        self._port = asked.port
        self._protocol = asked.protocol
        self._labels = _labels(peer, asked.version)
        if not isinstance(peer, Workload):
            self._labels += told.get(peer, ())
        self._address = _address(peer, asked.version)
        self._named = asked.destination.ports if isinstance(asked.destination, Workload) else ()

    def matches(self, rule: Rule) -> bool:
        return (
            rule.toward is self.toward
            and any(self._is_port(each) for each in rule.ports)
            and any(
                self._in(each) if isinstance(each, Block) else each.matches(self._labels)
                for each in rule.peers
            )
        )

    def can_hold(self, rule: Rule) -> bool:
        """Whether what the rule asks of requests, if anything, can be asked here."""
        return not rule.l7 or any(map(self.can_hold_to, rule.l7))

    def can_hold_to(self, request: Hashable) -> bool:
        """Names are read where a pod asks for them, over TCP or UDP."""
        of_names = isinstance(request, NamePattern)
        return not of_names or (self._protocol in (6, 17) and self.toward is Toward.EGRESS)

    def _in(self, block: Block) -> bool:
        ip = self._address
        if ip is None or ip not in block.network or any(ip in each for each in block.excepts):
            return False
        return block.pods or "reserved:world=" in self._labels

    def _is_port(self, wanted: PortMatch) -> bool:
        if wanted.protocol is not None and wanted.protocol != self._protocol:
            return False
        if wanted.name:
            return any(
                (each.name, each.number, each.protocol) == (wanted.name, self._port, self._protocol)
                for each in self._named
            )
        return wanted.first <= self._port <= wanted.last


def _labels(side: Workload | IPAddress, version: int) -> tuple[str, ...]:
    if isinstance(side, Workload):
        return side.labels
    return "reserved:world=", f"reserved:world-ipv{version}="


def _address(side: Workload | IPAddress, version: int) -> IPAddress | None:
    if isinstance(side, Workload):
        return next((each for each in side.addresses if each.version == version), None)
    return side
