"""What the policies of one pod say of one peer: ports, as prefixes, and the verdict of each.

All that applies to a pod in one direction stands in one order, strongest first::

    its own node | admin rules, one by one | denies | allows | allows that ask for requests
        | default deny, if anything isolates
        | else baseline rules, one by one, then allow

The place in it becomes one number, the precedence. A packet is looked up twice, for the identity of its peer
and for identity 0, which is everybody: the longest prefix of each, and of these two the one of greater
precedence. So that the longest prefix of an identity is the right one, what a wider and no weaker entry
covers is left out. An allow that asks for requests (L7) takes in what wider ones of its kind ask for: one of
all these is enough. A pass leads past the rest of its tier: where it matches, all that comes after that is
entered a second time, right below the place of the pass.

Policies that only look on are in all this like others where nothing else restricts the pod that way, and what
is denied then passes; elsewhere they are left out.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from enum import IntEnum
from typing import TypeAlias

from attrs import frozen

from k8sdatapath.model.names import NamePattern
from k8sdatapath.model.policy import (
    EVERYBODY,
    Action,
    NetworkPeer,
    Policy,
    PortMatch,
    Requirement,
    Rule,
    Selector,
    Tier,
    Toward,
    prefixes,
)
from k8sdatapath.model.workload import NamedPort

__all__ = ["HOST", "Because", "Cause", "Entry", "PortKey", "Row", "Stages", "covers", "in_force", "port_keys"]

_TCP, _UDP = 6, 17

HOST = Selector([Requirement("reserved:host")])
"""A pod's own node: probes of the kubelet come from there."""

PortKey: TypeAlias = tuple[int, int, int]
"""Protocol (0: any), port, and the number of leading bits of the port that count."""

ANY: PortKey = (0, 0, 0)


class Because(IntEnum):
    """Why a verdict is what it is."""

    RULE = 0
    DEFAULT_DENY = 1
    """A policy isolates the pod, and no rule allows it."""
    NOT_ISOLATED = 2
    """No policy isolates the pod, and no rule denies it."""
    OWN_NODE = 3
    ITSELF = 4
    """Nobody is kept from itself."""
    OWN_POD = 5
    """A node's policies are not for what is between it and its own pods."""


@frozen(order=True)
class Cause:
    """A rule of a policy, or (without a rule) a policy that isolates."""

    policy: str
    rule: str = ""

    def __str__(self) -> str:
        return f"{self.policy} {self.rule}".rstrip()


@frozen
class Entry:
    """What one key of a policy map leads to.

    :param causes: the rules, or policies, that it is for.
    :param l7: what requests have to be, one of these is enough; none at all: anything.
    :param audited: what it denies passes, and is told.
    """

    action: Action
    precedence: int
    because: Because
    causes: tuple[Cause, ...]
    l7: frozenset[Hashable] = frozenset()
    audited: bool = False


Row: TypeAlias = Mapping[PortKey, Entry]


@frozen
class _Stage:
    action: Action
    because: Because
    causes: tuple[Cause, ...] = ()  # of the last one, which has no rules


@frozen
class Placed:
    """A rule at its place in the order."""

    stage: int
    cause: Cause
    rule: Rule


def in_force(policies: Iterable[Policy], toward: Toward) -> list[Policy]:
    """Those that count in one direction for a pod, of all that select it.

    Those that only look on are among them if they are the only ones that restrict it: then all that is denied
    passes. Otherwise what they allow would be allowed in earnest, and what others deny would pass.
    """
    found = list(policies)
    enforced = [each for each in found if not each.audit]
    if len(enforced) == len(found) or any(each.restricts(toward) for each in enforced):
        return enforced
    return found if any(each.restricts(toward) for each in found) else enforced


class Stages:
    """The order of all that applies to a pod in one direction.

    :param policies: those in force.
    :ivar audited: what is denied passes, and is told.
    """

    def __init__(self, policies: Iterable[Policy], toward: Toward, *, allow_host: bool = True) -> None:
        ordered = sorted(policies, key=lambda each: (each.tier, each.priority, each.name))
        self.toward = toward
        self.audited = any(each.audit for each in ordered)
        self.placed: list[Placed] = []
        self._stages: list[_Stage] = []
        if toward is Toward.INGRESS and allow_host:
            host = Rule("", toward, [HOST])
            self.placed.append(Placed(0, Cause("own node"), host))
        self._stages.append(_Stage(Action.ALLOW, Because.OWN_NODE))
        self._one_by_one(ordered, Tier.ADMIN)
        self.after_admin = len(self._stages)
        for action, l7 in ((Action.DENY, False), (Action.ALLOW, False), (Action.ALLOW, True)):
            for policy, rule in self._rules(ordered, Tier.DEFAULT):
                if rule.action is action and bool(rule.l7) is l7:
                    self.placed.append(Placed(len(self._stages), Cause(policy.name, rule.name), rule))
            self._stages.append(_Stage(action, Because.RULE))
        isolating = tuple(Cause(each.name) for each in ordered if toward in each.isolates)
        if isolating:
            self._stages.append(_Stage(Action.DENY, Because.DEFAULT_DENY, isolating))
        else:
            self._one_by_one(ordered, Tier.BASELINE)
            self._stages.append(_Stage(Action.ALLOW, Because.NOT_ISOLATED))
        self.peers = {peer for each in self.placed for peer in each.rule.peers}
        self.naming = [
            at for at, each in enumerate(self.placed) if any(port.name for port in each.rule.ports)
        ]
        """Rules that name ports, whose meaning depends on the destination."""
        self._by_peer: dict[NetworkPeer, list[int]] = {}
        for at, each in enumerate(self.placed):
            for peer in each.rule.peers:
                self._by_peer.setdefault(peer, []).append(at)

    def _rules(self, policies: Iterable[Policy], tier: Tier) -> Iterator[tuple[Policy, Rule]]:
        for policy in policies:
            if policy.tier is tier:
                for rule in policy.rules:
                    if rule.toward is self.toward:
                        yield policy, rule

    def _one_by_one(self, policies: Iterable[Policy], tier: Tier) -> None:
        for policy, rule in self._rules(policies, tier):
            self.placed.append(Placed(len(self._stages), Cause(policy.name, rule.name), rule))
            passing = rule.action is Action.PASS and tier is Tier.BASELINE
            self._stages.append(_Stage(Action.ALLOW if passing else rule.action, Because.RULE))

    @property
    def of_everybody(self) -> list[int]:
        """The rules, by their place in ``placed``, whose peer is everybody."""
        return self._by_peer.get(EVERYBODY, [])

    def of_peer(self, peer: NetworkPeer) -> list[int]:
        """The rules that have a peer."""
        return self._by_peer.get(peer, [])

    def row(self, matching: Sequence[int], ports: tuple[NamedPort, ...], everybody: Row | None = None) -> Row:
        """What applies where some rules match.

        :param matching: the rules, in order, those of everybody among them.
        :param ports: those of the destination that have names.
        :param everybody: what is entered for everybody, and need not be once more.
        """
        found: dict[PortKey, dict[int, dict[int, Placed]]] = {}  # ... precedence -> rules, by identity
        stages: dict[int, int] = {}  # precedence -> stage
        size = len(self._stages)
        passes: list[tuple[int, set[PortKey]]] = []
        plain: list[tuple[int, Placed | None, set[PortKey]]] = []
        for at in matching:
            placed = self.placed[at]
            keys = port_keys(placed.rule.ports, ports)
            if self._stages[placed.stage].action is Action.PASS:
                passes.append((placed.stage, keys))
            else:
                plain.append((placed.stage, placed, keys))
        plain.append((size - 1, None, {ANY}))

        def enter(key: PortKey, precedence: int, stage: int, rule: Placed | None) -> None:
            stages[precedence] = stage
            rules = found.setdefault(key, {}).setdefault(precedence, {})
            if rule is not None:
                rules[id(rule)] = rule

        for stage, rule, keys in plain:
            for key in keys:
                enter(key, (size - stage) * (size + 1), stage, rule)
            for passed, regions in passes:
                if stage >= self.after_admin:
                    both = [_common(key, region) for key in keys for region in regions]
                    for key in {key for each in both for key in each}:
                        enter(key, (size - passed) * (size + 1) + size - stage, stage, rule)
        row: dict[PortKey, Entry] = {}
        for key in sorted(found, key=lambda key: (key[0] > 0, key[2])):  # the widest first
            precedence = max(found[key])
            wider = tuple(_wider(key))
            rules = tuple(found[key][precedence].values())
            if any(each.rule.l7 for each in rules):
                rules += tuple(each for w in wider for each in found.get(w, {}).get(precedence, {}).values())
            l7 = frozenset(request for each in rules for request in each.rule.l7)
            instead = [each for each in (_longest(row, wider), _longest(everybody, (*wider, key))) if each]
            strongest = max(instead, key=lambda entry: entry.precedence, default=None)
            held = self._held(key, l7)
            if (
                strongest is None
                or strongest.precedence < precedence
                or (strongest.precedence == precedence and strongest.l7 != held)
            ):
                stage_of = self._stages[stages[precedence]]
                action = Action.DENY if l7 and not held else stage_of.action
                causes = stage_of.causes or tuple(dict.fromkeys(each.cause for each in rules))
                row[key] = Entry(action, precedence, stage_of.because, causes, held, self.audited)
        return row

    def _held(self, key: PortKey, l7: frozenset[Hashable]) -> frozenset[Hashable]:
        """What requests can be held to: names of DNS are read where a pod asks for them, and not as HTTP."""
        others = frozenset(each for each in l7 if not isinstance(each, NamePattern))
        if others or key[0] not in (_TCP, _UDP) or self.toward is not Toward.EGRESS:
            return others
        return l7


def port_keys(ports: Iterable[PortMatch], named: Iterable[NamedPort]) -> set[PortKey]:
    """The keys that stand for some ports.

    :param named: those of the destination that have names.
    """
    found: set[PortKey] = set()
    for each in ports:
        if each.name:
            found |= {
                (port.protocol, port.number, 16)
                for port in named
                if port.name == each.name and each.protocol in (None, port.protocol)
            }
        elif each.protocol is None:
            found.add(ANY)
        else:
            found |= {(int(each.protocol), port, bits) for port, bits in prefixes(each.first, each.last)}
    return found


def covers(outer: PortKey, inner: PortKey) -> bool:
    """Whether all packets of one key are of another too."""
    if outer == ANY:
        return True
    shift = 16 - outer[2]
    return outer[0] == inner[0] and outer[2] <= inner[2] and outer[1] >> shift == inner[1] >> shift


def _longest(row: Row | None, keys: Sequence[PortKey]) -> Entry | None:
    """What a packet finds in a row: the entry of the last of some keys that has one."""
    return next((row[key] for key in reversed(keys) if key in row), None) if row else None


def _common(one: PortKey, other: PortKey) -> tuple[PortKey, ...]:
    """The key of the packets that both keys are for, if there are any."""
    if covers(one, other):
        return (other,)
    return (one,) if covers(other, one) else ()


def _wider(key: PortKey) -> Iterator[PortKey]:
    """All keys that cover it, but for itself."""
    protocol, port, bits = key
    if key != ANY:
        yield ANY
        for length in range(bits):
            yield protocol, port >> 16 - length << 16 - length, length
