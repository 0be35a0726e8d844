"""Why not: the rules that would nearly have allowed a connection, and what each of them asks beyond it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from attrs import frozen

from k8sdatapath.datapath.policy_rows import Cause, in_force
from k8sdatapath.model import IPNetwork
from k8sdatapath.model.policy import Action, Block, NetworkPeer, Policy, PortMatch, Tier, Toward, attributes
from k8sdatapath.model.workload import NamedPort, Party

__all__ = ["Miss", "misses"]


@frozen
class Miss:
    """A rule that does not match: ``NetworkPolicy shop/db spec.ingress[0]: k8s:app=web asked, it is cart``.

    :ivar lacks: what it asks that is not so; the fewer, the nearer.
    """

    cause: Cause
    lacks: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.cause}: {'; '.join(self.lacks)}"


def misses(
    policies: Iterable[Policy],
    subject: Party,
    peer: Party,
    toward: Toward,
    protocol: int,
    port: int,
    named: tuple[NamedPort, ...],
) -> list[Miss]:
    """The rules that allow something else where default denies, the nearest first.

    Those of the tier Baseline are asked only where it does not.

    :param named: the ports of the destination that have names.
    """
    found = []
    selecting = [each for each in policies if each.subject.matches(subject.labels)]
    counting = in_force(selecting, toward)
    for policy in selecting:
        for rule in policy.rules if policy.tier is not Tier.BASELINE else ():
            if rule.toward is toward and rule.action is Action.ALLOW:
                lacks = list(_peer(rule.peers, peer))
                if not any(_is_port(each, protocol, port, named) for each in rule.ports):
                    wanted = ", ".join(map(str, rule.ports[:3])) + (", ..." if len(rule.ports) > 3 else "")
                    lacks.append(f"asks for {wanted}, this is {PortMatch(protocol, port, port)}")
                if policy not in counting:
                    lacks.append("only looks on, and others are in force")
                if lacks:
                    found.append(Miss(Cause(policy.name, rule.name), tuple(lacks)))
    return sorted(found, key=lambda miss: (len(miss.lacks), miss.cause))


def _peer(peers: tuple[NetworkPeer, ...], party: Party) -> Iterator[str]:
    """What the nearest of them asks that the other side is not; nothing, if one selects it."""
    asked = [list(_asked(each, party)) for each in peers] or [["allows nobody"]]
    yield from min(asked, key=len)


def _asked(peer: NetworkPeer, party: Party) -> Iterator[str]:
    if isinstance(peer, Block):
        if not peer.matches(party.labels, party.network):
            yield f"asks for {peer}, this is {_shown(party.network)}"
        return
    known = attributes(party.labels)
    for each in peer.requirements:
        if not each.matches(known):
            values = known.get(each.key)
            there = ", ".join(sorted(values)) or "empty" if values is not None else "not there"
            yield f"asks for {each}, {each.key} is {there}"


def _shown(network: IPNetwork | None) -> str:
    return "in no network that a policy names" if network is None else f"in {network}"


def _is_port(wanted: PortMatch, protocol: int, port: int, named: tuple[NamedPort, ...]) -> bool:
    if wanted.protocol not in (None, protocol):
        return False
    if wanted.name:
        return NamedPort(wanted.name, port, protocol) in named if protocol in (6, 17, 132) else False
    return wanted.first <= port <= wanted.last
