"""Network policies as values: who is selected, by which rules, in which tier.

All languages of policies are read into these. What a rule leaves open is said, never left out: a selector
without requirements is everybody, no peers at all are nobody.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping
from enum import IntEnum
from functools import lru_cache
from typing import Any, TypeAlias

from attrs import field, frozen

from k8sdatapath.errors import ModelError
from k8sdatapath.model import labels
from k8sdatapath.model.address import IPNetwork, shown
from k8sdatapath.model.address import network as to_network

__all__ = [
    "ALL_PORTS",
    "EVERYBODY",
    "NAMESPACE_LABELS",
    "POD_NAMESPACE",
    "Action",
    "Block",
    "NetworkPeer",
    "Operator",
    "Policy",
    "PortMatch",
    "Requirement",
    "Rule",
    "Selector",
    "Tier",
    "Toward",
    "attributes",
    "prefixes",
]

POD_NAMESPACE = f"k8s:{labels.NAMESPACE}"
"""Label of every pod, as part of its identity: its namespace."""
NAMESPACE_LABELS = f"k8s:{labels.NAMESPACE_LABELS}"
"""Before the keys of its namespace's labels, which are part of its identity too."""


class Toward(IntEnum):
    """Which way a connection is opened, as seen from the pod that a policy selects."""

    INGRESS = 0
    EGRESS = 1


class Tier(IntEnum):
    """The tiers are asked in this order."""

    ADMIN = 0
    DEFAULT = 1
    """NetworkPolicy and Cilium's: a deny beats every allow, and order means nothing."""
    BASELINE = 2
    """For pods that no policy of the default tier isolates."""


class Action(IntEnum):
    """What a rule says of the packets it matches."""

    ALLOW = 0
    DENY = 1
    PASS = 2
    """Nothing more in this tier; the next one decides."""


class Operator(IntEnum):
    """What a requirement asks of the values of a key."""

    IN = 0
    NOT_IN = 1
    """Also true where the key is missing."""
    EXISTS = 2
    ABSENT = 3


def _to_values(values: Iterable[str]) -> frozenset[str]:
    if isinstance(values, str):
        raise ModelError(f"values is an iterable of values; {shown(values)} is a single one")
    return frozenset(values)


@frozen(cache_hash=True)
class Requirement:
    """One demand on a set of labels: ``Requirement("k8s:app", Operator.IN, ["web"])``.

    :param key: with its source before it; ``any:`` is every source.
    """

    key: str
    operator: Operator = Operator.EXISTS
    values: frozenset[str] = field(default=frozenset(), converter=_to_values)

    def __attrs_post_init__(self) -> None:
        if (self.operator in (Operator.IN, Operator.NOT_IN)) is not bool(self.values):
            raise ModelError(f"{self.operator.name} of {shown(self.key)} has {len(self.values)} values")

    def matches(self, attributes: Mapping[str, frozenset[str]]) -> bool:
        """Whether labels meet it, given as :func:`attributes` has them."""
        values = attributes.get(self.key)
        if self.operator is Operator.IN:
            return values is not None and not values.isdisjoint(self.values)
        if self.operator is Operator.NOT_IN:
            return values is None or values.isdisjoint(self.values)
        return (values is not None) is (self.operator is Operator.EXISTS)

    def __str__(self) -> str:
        values = ", ".join(sorted(self.values))
        return {
            Operator.IN: f"{self.key} in ({values})" if len(self.values) > 1 else f"{self.key}={values}",
            Operator.NOT_IN: f"{self.key} not in ({values})",
            Operator.EXISTS: self.key,
            Operator.ABSENT: f"!{self.key}",
        }[self.operator]


def _to_requirements(requirements: Iterable[Requirement]) -> tuple[Requirement, ...]:
    """Sort them, each once: two selectors that ask the same are equal."""
    return tuple(sorted(set(requirements), key=lambda each: (each.key, each.operator, sorted(each.values))))


@frozen(cache_hash=True)
class Selector:
    """Those whose labels meet every requirement; without any: everybody, in the cluster and outside."""

    requirements: tuple[Requirement, ...] = field(default=(), converter=_to_requirements)

    def matches(self, known: tuple[str, ...]) -> bool:
        """Whether it selects who is known by these labels, ``source:key=value`` each."""
        found = attributes(known)
        return all(each.matches(found) for each in self.requirements)

    def __str__(self) -> str:
        return ", ".join(map(str, self.requirements)) or "everybody"


EVERYBODY = Selector()


def _to_networks(values: Iterable[Any]) -> tuple[IPNetwork, ...]:
    if isinstance(values, str):
        raise ModelError(f"excepts is an iterable of networks; {shown(values)} is a single one")
    return tuple(sorted({to_network(each) for each in values}, key=lambda each: (each.version, each)))


@frozen(cache_hash=True)
class Block:
    """The addresses of a network, without some: ``Block("10.0.0.0/8", ["10.1.0.0/16"])``.

    :param pods: also those of pods and nodes, as Kubernetes reads it. Without it only those of the world.
    :raises ModelError: an exception that is not inside of the network.
    """

    network: IPNetwork = field(converter=to_network)
    excepts: tuple[IPNetwork, ...] = field(default=(), converter=_to_networks)
    pods: bool = True

    def __attrs_post_init__(self) -> None:
        for each in self.excepts:
            if not within(each, self.network) or each == self.network:
                raise ModelError(f"{each} is not a part of {self.network}")

    @property
    def networks(self) -> tuple[IPNetwork, ...]:
        """All that are told apart by it."""
        return (self.network, *self.excepts)

    def matches(self, known: tuple[str, ...], network: IPNetwork | None) -> bool:
        """Whether it selects an address, given by the narrowest network that anybody tells apart."""
        if network is None or not within(network, self.network):
            return False
        if not self.pods and not any(each.startswith("reserved:world") for each in known):
            return False
        return not any(within(network, each) for each in self.excepts)

    def __str__(self) -> str:
        without = f" without {', '.join(map(str, self.excepts))}" if self.excepts else ""
        return f"{self.network}{without}"


NetworkPeer: TypeAlias = Selector | Block
"""The other side, as a rule names it."""


def within(inner: IPNetwork, outer: IPNetwork) -> bool:
    """Whether one network is part of another; never, if they are of different families."""
    if inner.version != outer.version or inner.prefixlen < outer.prefixlen:
        return False
    shift = outer.max_prefixlen - outer.prefixlen
    return int(inner.network_address) >> shift == int(outer.network_address) >> shift


_PROTOCOLS = {1: "ICMP", 6: "TCP", 17: "UDP", 58: "ICMPv6", 132: "SCTP"}


@frozen
class PortMatch:
    """Ports of a destination: ``PortMatch(6, 8000, 8100)``, ``PortMatch(6, name="http")``.

    :param protocol: of IP, by number; None: every one.
    :param first: the range includes both ends. Of ICMP they are types.
    :param name: instead of a range: the port that the destination gives this name, of this protocol.
    """

    protocol: int | None = None
    first: int = 0
    last: int = 65535
    name: str = ""

    def __attrs_post_init__(self) -> None:
        if not 0 <= self.first <= self.last <= 65535:
            raise ModelError(f"{self.first} to {self.last} is not a range of ports (0 to 65535)")
        if self.protocol is None and (self.first, self.last) != (0, 65535):
            raise ModelError("a range of ports needs its protocol")

    def __str__(self) -> str:
        protocol = "any protocol" if self.protocol is None else _PROTOCOLS.get(self.protocol, "")
        protocol = protocol or f"protocol {self.protocol}"
        if self.name:
            return f"port {self.name!r} of {protocol}"
        if (self.first, self.last) == (0, 65535):
            return protocol
        ends = str(self.first) if self.first == self.last else f"{self.first}-{self.last}"
        return f"{ends} of {protocol}"


def prefixes(first: int, last: int) -> Iterator[tuple[int, int]]:
    """The fewest prefixes that make up a range of ports: port and number of bits, at most 30.

    >>> list(prefixes(8000, 8005))
    [(8000, 14), (8004, 15)]
    """
    while first <= last:
        size = min(first & -first or 65536, 1 << (last - first + 1).bit_length() - 1)
        yield first, 17 - size.bit_length()
        first += size


ALL_PORTS = PortMatch()


def _to_peers(peers: Iterable[NetworkPeer]) -> tuple[NetworkPeer, ...]:
    return tuple(dict.fromkeys(peers))


def _to_ports(ports: Iterable[PortMatch]) -> tuple[PortMatch, ...]:
    return tuple(dict.fromkeys(ports))


def _to_l7(requests: Iterable[Hashable]) -> tuple[Hashable, ...]:
    return tuple(dict.fromkeys(requests))


@frozen
class Rule:
    """What a policy says of some packets.

    :param name: for people, where it stands in its policy.
    :param peers: one of them is enough; none at all: nobody.
    :param ports: likewise.
    :param l7: what requests have to be, one of these is enough; none at all: anything. A rule that matches
        the same packets and asks nothing of requests makes up for it.
    :raises ModelError: it asks for requests, but does not allow.
    """

    name: str
    toward: Toward
    peers: tuple[NetworkPeer, ...] = field(converter=_to_peers)
    ports: tuple[PortMatch, ...] = field(default=(ALL_PORTS,), converter=_to_ports)
    action: Action = Action.ALLOW
    l7: tuple[Hashable, ...] = field(default=(), converter=_to_l7)

    def __attrs_post_init__(self) -> None:
        if self.l7 and self.action is not Action.ALLOW:
            raise ModelError(f"{self.name}: only a rule that allows can ask for requests")


def _to_rules(rules: Iterable[Rule]) -> tuple[Rule, ...]:
    return tuple(rules)


def _to_isolated(isolates: Iterable[Toward]) -> frozenset[Toward]:
    return frozenset(isolates)


@frozen
class Policy:
    """Rules for the pods that it selects.

    :param name: ``kind namespace/name``, of which there is one.
    :param isolates: of the default tier: what is denied unless a rule allows it.
    :param priority: of the other tiers: the smallest is asked first, and of equal ones the first by name.
    :param audit: it only looks on: what it would deny passes and is told, where no other policy restricts the
        same pods the same way. Where one does, it is left out.
    :param where: file and document, for errors.
    """

    name: str
    subject: Selector
    rules: tuple[Rule, ...] = field(default=(), converter=_to_rules)
    isolates: frozenset[Toward] = field(default=frozenset(), converter=_to_isolated)
    tier: Tier = Tier.DEFAULT
    priority: int = 0
    audit: bool = field(default=False, kw_only=True)
    where: str = field(default="", eq=False)

    def __attrs_post_init__(self) -> None:
        if self.tier is Tier.DEFAULT and any(rule.action is Action.PASS for rule in self.rules):
            raise ModelError(f"{self.name}: only the rules of other tiers can pass")
        if self.tier is not Tier.DEFAULT and any(rule.l7 for rule in self.rules):
            raise ModelError(f"{self.name}: only the rules of the default tier can ask for requests")
        if self.tier is not Tier.DEFAULT and self.isolates:
            raise ModelError(f"{self.name}: only a policy of the default tier isolates")

    def restricts(self, toward: Toward) -> bool:
        """Whether it can deny anything that way, a connection or a request."""
        return toward in self.isolates or any(
            rule.toward is toward and (rule.action is Action.DENY or bool(rule.l7)) for rule in self.rules
        )


@lru_cache(1 << 16)
def attributes(known: tuple[str, ...]) -> Mapping[str, frozenset[str]]:
    """The values of each key of some labels, under the key with its source, and under ``any:`` as well."""
    found: dict[str, frozenset[str]] = {}
    for label in known:
        source, colon, rest = label.partition(":")
        if not colon:
            raise ModelError(f"{shown(label)} is not a label: write source:key=value")
        key, _, value = rest.partition("=")
        for each in (f"{source}:{key}", f"any:{key}"):
            found[each] = found.get(each, frozenset()) | {value}
    return found
