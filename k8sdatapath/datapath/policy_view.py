"""The policies that a node enforces, as its maps have them: for who looks at pins, whoever wrote them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from typing import Any

from attrs import frozen

from k8sdatapath import maps
from k8sdatapath.datapath.contract import Bindable, bind_maps
from k8sdatapath.datapath.identity_policy import CONTRACT
from k8sdatapath.errors import ModelError
from k8sdatapath.layout import addr
from k8sdatapath.model import IPAddress, IPNetwork, address, network
from k8sdatapath.model.identity import Reserved
from k8sdatapath.model.policy import Toward
from k8sdatapath.resource import Resource
from k8sdatapath.tables.counters import CounterRow
from k8sdatapath.tables.endpoints import EndpointRow
from k8sdatapath.tables.peers import PeerKey
from k8sdatapath.tables.policy import (
    NAMES,
    Named,
    NameKey,
    NameRow,
    PartyRow,
    PolicyFlags,
    PolicyRow,
    RuleKey,
    RuleRow,
)

__all__ = ["LiveParty", "LivePod", "LiveRule", "PolicyView"]

_HARMLESS = PolicyFlags.OPEN | PolicyFlags.AUDIT
_CONTRACT = {**CONTRACT, "kd_endpoints": maps.Hash[addr, EndpointRow]}


@frozen
class LiveParty:
    """Who is behind an address, or behind all of a network that nobody else is known to have.

    :ivar number: what rules know it by, on this node only.
    :ivar identity: that of its labels, in all the cluster.
    :ivar name: its labels.
    """

    where: IPNetwork
    number: int
    identity: int
    name: str


@frozen
class LivePod:
    """The pods of this node that share a policy.

    :ivar policy: its number; 0: it is not known yet who they are, and they are cut off.
    :ivar revision: of each direction; it grows with each change that live connections have to feel.
    :ivar restricted: the ways in which something may be denied.
    :ivar rules: how many there are in the kernel.
    """

    policy: int
    identity: int
    addresses: tuple[IPAddress, ...]
    name: str
    revision: Mapping[Toward, int]
    restricted: frozenset[Toward]
    rules: int


_NODE = 1
"""The number of the node's own policy, which is empty where none is enforced for it."""


@frozen
class LiveRule:
    """One rule as the kernel has it.

    :ivar peer: the number of the other side; 0: everybody.
    :ivar peer_name: its labels.
    :ivar protocol: 0: any.
    :ivar first: of the ports; likewise ``last``.
    :ivar name: the rules of policies that it comes from, or what else is the reason.
    :ivar requests: the number of the rules that each request is held to; 0: none.
    :ivar names: the number of the names that may be asked for, likewise; see :class:`NamesView`.
    :ivar audited: every pod it is for has policies that only look on, so that it denies nothing.
    :ivar packets: those it was decisive for, together with all that have the same name; likewise ``bytes``.
    """

    toward: Toward
    peer: int
    peer_name: str
    protocol: int
    first: int
    last: int
    allowed: bool
    precedence: int
    name: str
    packets: int
    bytes: int
    audited: bool = False
    requests: int = 0
    names: int = 0


class PolicyView(Resource):
    """Reads what some process has put in force, and changes nothing::

        with PolicyView.bind(PinDir("/sys/fs/bpf/k8sdatapath")) as view:
            for rule in view.rules("10.244.1.2"):
                print(rule.name, rule.packets)

    While policies change, what is read may be of before and of after.
    """

    def __init__(self, tables: Mapping[str, Any], own: ExitStack) -> None:
        self._own = own
        self._pods: maps.Hash[IPAddress, EndpointRow] = tables["kd_endpoints"]
        self._ipcache: maps.Hash[IPAddress, PartyRow] = tables["kd_ipcache"]
        self._networks: maps.LPMTrie[PeerKey, PartyRow] = tables["kd_networks"]
        self._policies: maps.Array[PolicyRow] = tables["kd_policies"]
        self._rules: maps.Hash[RuleKey, RuleRow] = tables["kd_rules"]
        self._counts: maps.PerCpuArray[CounterRow] = tables["kd_rule_counts"]
        self._names: maps.Hash[NameKey, NameRow] = tables["kd_names"]

    @classmethod
    def bind(cls, source: Bindable) -> PolicyView:
        """The policies of a loaded object, pins or maps.

        :raises ContractError: the maps are not there.
        :raises LayoutError: one holds something else.
        """
        return cls(*bind_maps(source, _CONTRACT, cls.__name__, keep=True))

    def parties(self) -> tuple[LiveParty, ...]:
        """Who is who: addresses, then networks."""
        known = self._called(Named.PARTY)
        found = [(network(str(ip)), row) for ip, row in self._ipcache.items()]
        found += [(key.network, row) for key, row in self._networks.items()]
        parties = (
            LiveParty(where, row.number, row.identity, known.get(row.number, "")) for where, row in found
        )
        return tuple(sorted(parties, key=lambda each: (each.where.version, each.where)))

    def party(self, who: IPAddress | str) -> LiveParty:
        """Who is behind an address, as packets are judged: whom nobody knows is of the world."""
        ip = address(who)
        row, where = self._ipcache.get(ip), network(str(ip))
        if row is None:
            number = Reserved.WORLD_IPV4 if ip.version == 4 else Reserved.WORLD_IPV6
            world = network("0.0.0.0/0" if ip.version == 4 else "::/0"), PartyRow(number, number)
            around = [world, *((key.network, row) for key, row in self._networks.items())]
            inside = [each for each in around if each[0].version == ip.version and ip in each[0]]
            where, row = max(inside, key=lambda each: each[0].prefixlen)
        return LiveParty(where, row.number, row.identity, self.name(Named.PARTY, row.number))

    def pods(self) -> tuple[LivePod, ...]:
        """The pods of this node, by policy."""
        behind: dict[tuple[int, int], list[IPAddress]] = defaultdict(list)
        for ip, row in self._pods.items():
            behind[row.policy, row.identity].append(ip)
        sizes: dict[int, int] = defaultdict(int)
        for rule in self._rules:
            sizes[rule.table] += 1
        found = []
        for (policy, identity), addresses in sorted(behind.items()):
            rows = {toward: self._row(policy, toward) for toward in Toward}
            known = self._ipcache.get(addresses[0])
            found.append(
                LivePod(
                    policy,
                    identity,
                    tuple(sorted(addresses, key=lambda each: (each.version, each))),
                    "" if known is None else self.name(Named.PARTY, known.number),
                    {toward: row.revision for toward, row in rows.items()},
                    frozenset(toward for toward, row in rows.items() if not row.flags & _HARMLESS),
                    sum(sizes[row.table] for row in rows.values() if row.table),
                )
            )
        return tuple(found)

    def rules(self, *pods: IPAddress | str) -> tuple[LiveRule, ...]:
        """The rules of the policies of pods of this node, or of all; those that are asked first come first.

        :raises ModelError: a pod that is not of this node.
        """
        tables = self._tables(map(address, pods) if pods else self._pods)
        names, parties = self._called(Named.COUNTER), self._called(Named.PARTY)
        found = []
        for key, rule in self._rules.items():
            if key.table in tables:
                rows = self._counts[rule.counter]
                found.append(
                    LiveRule(
                        tables[key.table][0],
                        key.number,
                        parties.get(key.number, "") if key.number else "everybody",
                        key.protocol,
                        key.port,
                        key.port | (0xFFFF >> key.bits),
                        not rule.deny,
                        rule.precedence,
                        names.get(rule.counter, ""),
                        sum(row.packets for row in rows),
                        sum(row.bytes for row in rows),
                        tables[key.table][1],
                        0 if rule.l7 & NAMES else rule.l7,
                        rule.l7 & ~NAMES if rule.l7 & NAMES else 0,
                    )
                )
        found.sort(key=lambda each: (each.toward, -each.precedence, each.peer, each.protocol, each.first))
        return tuple(found)

    def close(self) -> None:
        """Let go of the maps."""
        self._own.close()

    def __repr__(self) -> str:
        return f"<PolicyView {len(self._pods)} addresses of pods>"

    def _tables(self, pods: Iterable[IPAddress]) -> dict[int, tuple[Toward, bool]]:
        """Where the rules of pods are, which way they are for, and whether all of these pods only look on."""
        found: dict[int, tuple[Toward, bool]] = {}
        for each in pods:
            row = self._pods.get(each)
            known = self._ipcache.get(each) if row is None else None
            if row is None and (known is None or known.identity != Reserved.HOST):
                raise ModelError(f"{each} is no pod of this node")
            for toward in Toward:
                policy = self._row(_NODE if row is None else row.policy, toward)
                if policy.table:
                    audited = found.get(policy.table, (toward, True))[1]
                    found[policy.table] = toward, audited and bool(policy.flags & PolicyFlags.AUDIT)
        return found

    def _row(self, policy: int, toward: Toward) -> PolicyRow:
        return self._policies[2 * policy + toward]

    def _called(self, kind: Named) -> dict[int, str]:
        return {key.number: row.text for key, row in self._names.items() if key.kind == kind}

    def name(self, kind: Named, number: int) -> str:
        """What a number in the maps is called."""
        row = self._names.get(NameKey(kind, number))
        return "" if row is None else row.text
