"""Who is behind which address: kd_ipcache and kd_networks, and the workloads they are written for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Set
from ipaddress import IPv4Network, IPv6Network
from typing import Any, NamedTuple, TypeVar

from attrs import frozen

from k8sdatapath import maps
from k8sdatapath.datapath.policy_compiler import networks_of
from k8sdatapath.datapath.policy_dns import Answers
from k8sdatapath.datapath.policy_networks import Networks
from k8sdatapath.datapath.policy_sides import world
from k8sdatapath.errors import CapacityError
from k8sdatapath.model import IPAddress, IPNetwork
from k8sdatapath.model.identity import Reserved
from k8sdatapath.model.names import NamePattern, name_patterns
from k8sdatapath.model.policy import Policy
from k8sdatapath.model.workload import NamedPort, Party, Workload
from k8sdatapath.tables.peers import PeerKey
from k8sdatapath.tables.policy import PartyRow

__all__ = ["WORLDS", "Known", "Leads", "Turn", "Who", "count_uses", "follow_dict", "outside", "replaced"]

K = TypeVar("K")
V = TypeVar("V")

WORLDS = {4: Reserved.WORLD_IPV4, 6: Reserved.WORLD_IPV6}
"""Who has the addresses of a family that nobody is known to have."""


class Who(NamedTuple):
    """All that makes a difference to policies.

    :ivar audited: a pod of this node whose policies only look on.
    """

    identity: int
    labels: tuple[str, ...]
    network: IPNetwork | None
    ports: tuple[NamedPort, ...]
    audited: bool = False

    @property
    def party(self) -> Party:
        """All that rules can tell it by."""
        return Party(self.labels, self.network, self.ports)

    def __str__(self) -> str:
        return "; ".join((*self.labels, *([] if self.network is None else [f"in {self.network}"])))


class Known(NamedTuple):
    """Somebody with addresses."""

    workload: Workload
    identity: int


@frozen
class Turn:
    """What changes: None is nobody any more.

    :ivar claims: the names of who has an address; the last is believed.
    :ivar addresses: as kd_ipcache is to have them.
    :ivar networks: as kd_networks is.
    """

    learned: Mapping[str, Known]
    gone: Set[str]
    claims: Mapping[IPAddress, dict[str, None]]
    addresses: Mapping[IPAddress, Who | None]
    networks: Mapping[IPNetwork, Who | None]


class Leads:
    """Keeps both maps as workloads come and go, and as policies tell networks apart.

    :ivar networks: those that policies tell apart.
    :ivar answers: names of addresses outside, and those that policies ask for.
    :ivar known: workloads, by name.
    """

    def __init__(self, tables: Mapping[str, Any]) -> None:
        self.networks = Networks()
        self.answers = Answers()
        self.known: dict[str, Known] = {}
        self._ipcache: maps.Hash[IPAddress, PartyRow] = tables["kd_ipcache"]
        self._tries: maps.LPMTrie[PeerKey, PartyRow] = tables["kd_networks"]
        self._claims: dict[IPAddress, dict[str, None]] = {}
        self._addresses: dict[IPAddress, Who] = {}  # as kd_ipcache has them
        self._led: dict[IPNetwork, Who] = {}  # as kd_networks has them

    def tell_apart(self, policies: Iterable[Policy]) -> bool:
        """What these need to be told apart is to be from now on; whether that is anything new."""
        policies, before = tuple(policies), self._told_apart
        self.networks.add(each for policy in policies for each in networks_of(policy))
        self.answers.use(name_patterns(policies))
        return self._told_apart != before

    def tell_together(self, policies: Iterable[Policy]) -> bool:
        """The same the other way."""
        policies, before = tuple(policies), self._told_apart
        self.networks.remove(each for policy in policies for each in networks_of(policy))
        self.answers.drop(name_patterns(policies))
        return self._told_apart != before

    @property
    def _told_apart(self) -> tuple[Set[IPNetwork], Set[NamePattern]]:
        return frozenset(self.networks), frozenset(self.answers.patterns)

    def at(self, address: IPAddress) -> Who | None:
        """Who is behind an address, if somebody is known to be."""
        return self._addresses.get(address)

    def claimant(self, address: IPAddress) -> Known | None:
        """Who has an address, of several the one that is believed."""
        names = self._claims.get(address)
        return self.known.get(next(reversed(names))) if names else None

    def claiming(self, addresses: Iterable[IPAddress]) -> set[str]:
        """The names of all who have one of some addresses."""
        return {name for each in addresses for name in self._claims.get(each, ())}

    def turn(
        self,
        learned: Mapping[str, Known],
        gone: Set[str],
        *,
        networks: bool,
        named: Iterable[IPAddress] = (),
    ) -> Turn:
        """What it takes that some are known, and others no more.

        :param networks: other ones are told apart as well, and other names.
        :param named: addresses whose names are others.
        :raises CapacityError: it would not fit.
        """
        claims, concerned = self._claims_after(learned, gone), set(named)
        if networks:
            concerned |= {*self._addresses, *self.answers}
        addresses = self._addresses_after(claims, concerned, learned)
        turn = Turn(learned, gone, claims, addresses, self._networks_after() if networks else {})
        self._check(turn)
        return turn

    def uses(self, turn: Turn) -> Counter[Who]:
        """How many more places lead to somebody then; fewer are negative."""
        found = Counter[Who]()
        for change in (replaced(self._addresses, turn.addresses), replaced(self._led, turn.networks)):
            count_uses(found, change)
        return found

    def follow(self, turn: Turn, numbers: Mapping[Who, int]) -> bool:
        """Write it; whether that has led anything elsewhere.

        :param numbers: what rules know everybody by who is in the turn.
        """

        def row(who: Who) -> PartyRow:
            return PartyRow(numbers[who], who.identity)

        addresses, led = turn.addresses, turn.networks
        self._tries.update_many({PeerKey.of(net): row(who) for net, who in led.items() if who})
        self._ipcache.update_many({ip: row(who) for ip, who in addresses.items() if who})
        self._ipcache.delete_many([ip for ip, who in addresses.items() if who is None])
        self._tries.delete_many([PeerKey.of(net) for net, who in led.items() if who is None])
        follow_dict(self._claims, {ip: names or None for ip, names in turn.claims.items()})
        follow_dict(self._addresses, addresses)
        follow_dict(self._led, led)
        self.known.update(turn.learned)
        for name in turn.gone:
            del self.known[name]
        return bool(addresses or led)

    def go_on_in(self, tables: Mapping[str, Any]) -> None:
        """The same stands in other maps now."""
        self._ipcache, self._tries = tables["kd_ipcache"], tables["kd_networks"]

    def drop_strange(self) -> None:
        """Delete what an earlier process has left."""
        self._ipcache.delete_many([ip for ip in self._ipcache if ip not in self._addresses])
        led = {PeerKey.of(net) for net in self._led}
        self._tries.delete_many([key for key in self._tries if key not in led])

    def _claims_after(self, learned: Mapping[str, Known], gone: Set[str]) -> dict[IPAddress, dict[str, None]]:
        """Who will claim the addresses concerned."""
        touched = [self.known[name] for name in (*learned, *gone) if name in self.known]
        claims = {ip: dict.fromkeys(self._claims[ip]) for each in touched for ip in each.workload.addresses}
        for name in (*learned, *gone):
            for ip in self.known[name].workload.addresses if name in self.known else ():
                claims[ip].pop(name, None)
        for name, known in learned.items():
            for ip in known.workload.addresses:
                if ip not in claims:
                    claims[ip] = dict.fromkeys(self._claims.get(ip, ()))
                claims[ip][name] = None
        return claims

    def _addresses_after(
        self,
        claims: Mapping[IPAddress, dict[str, None]],
        others: Set[IPAddress],
        learned: Mapping[str, Known],
    ) -> dict[IPAddress, Who | None]:
        """Who will be behind addresses, where that changes."""
        after: dict[IPAddress, Who | None] = {}
        for ip in others | claims.keys():
            names = claims.get(ip, self._claims.get(ip, {}))
            last = next(reversed(names), None)
            known = None if last is None else learned.get(last) or self.known[last]
            found = self._named(ip) if known is None else self._who(ip, known)
            if found != self._addresses.get(ip):
                after[ip] = found
        return after

    def _networks_after(self) -> dict[IPNetwork, Who | None]:
        """Who is in the networks that come, and nobody in those that go."""
        wanted = {_EVERY_IPV4: _WORLD_IPV4} | {
            net: outside(net) for net in self.networks if not _is_mapped(net)
        }
        changed: dict[IPNetwork, Who | None] = {
            net: who for net, who in wanted.items() if self._led.get(net) != who
        }
        return {**changed, **{net: None for net in self._led if net not in wanted}}

    def _check(self, turn: Turn) -> None:
        """See that who is who fits."""
        for table, there, change in (
            (self._ipcache, len(self._addresses), replaced(self._addresses, turn.addresses)),
            (self._tries, len(self._led), replaced(self._led, turn.networks)),
        ):
            size = there + sum((after is not None) - (before is not None) for before, after in change)
            if size > table.info.max_entries:
                raise CapacityError(table.name, size, table.info.max_entries)

    def _named(self, ip: IPAddress) -> Who | None:
        """Who has an address outside of the cluster, if policies ask for one of its names."""
        labels = self.answers.labels(ip)
        if not labels:
            return None
        party = Party((*world(ip.version), *labels))
        return Who(WORLDS[ip.version], party.labels, self.networks.narrowest(ip), ())

    def _who(self, ip: IPAddress, known: Known) -> Who:
        workload = known.workload
        return Who(known.identity, workload.labels, self.networks.narrowest(ip), workload.ports)


_WORLD_IPV4 = Who(Reserved.WORLD_IPV4, Party(world(4)).labels, None, ())
_EVERY_IPV4 = IPv4Network("0.0.0.0/0")
"""Always led somewhere, or IPv4 would be in ``::/0``: the kernel has it as ``::ffff:0:0/96``."""
_MAPPED = IPv6Network("::ffff:0:0/96")


def _is_mapped(network: IPNetwork) -> bool:
    """A network of IPv6 whose addresses IPv4's are written as; no packet has one."""
    return network.version == 6 and network.subnet_of(_MAPPED)


def replaced(there: Mapping[K, V], changed: Mapping[K, V | None]) -> Iterator[tuple[V | None, V | None]]:
    """Of each key what was there, and what will be."""
    for key, value in changed.items():
        yield there.get(key), value


def follow_dict(there: dict[K, V], changed: Mapping[K, V | None]) -> None:
    """Where a change says None, there is nothing then."""
    for key, value in changed.items():
        if value is None:
            there.pop(key, None)
        else:
            there[key] = value


def count_uses(uses: Counter[Who], change: Iterable[tuple[Who | None, Who | None]]) -> None:
    """Count who is in more places after a change, and who in fewer."""
    for before, after in change:
        uses.update([after] if after else ())
        uses.subtract([before] if before else ())


def outside(network: IPNetwork) -> Who:
    """Who is in a network and nobody that is known."""
    return Who(WORLDS[network.version], Party(world(network.version)).labels, network, ())
