"""IdentityPolicy: which pods may talk to whom, enforced by the programs as pairs of identities."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Set
from contextlib import ExitStack
from ipaddress import IPv4Network, IPv6Network
from itertools import count
from typing import Any, Literal, NamedTuple, TypeAlias, TypeVar

from attrs import frozen

from k8sdatapath import maps
from k8sdatapath.component import Report
from k8sdatapath.datapath.contract import Bindable, bind_maps
from k8sdatapath.datapath.policy_compiler import PolicyCompiler, networks_of
from k8sdatapath.datapath.policy_maps import PolicyMaps, RequestRules, Requests, RuleCount
from k8sdatapath.datapath.policy_names import Names
from k8sdatapath.datapath.policy_networks import Networks
from k8sdatapath.datapath.policy_rows import Because, Cause
from k8sdatapath.datapath.policy_set import world
from k8sdatapath.errors import CapacityError, ModelError
from k8sdatapath.layout import addr
from k8sdatapath.model import IPAddress, IPNetwork
from k8sdatapath.model.address import shown
from k8sdatapath.model.identity import LOCAL_NUMBERS, Reserved
from k8sdatapath.model.policy import Action, Policy, Toward
from k8sdatapath.model.workload import NamedPort, Party, Workload
from k8sdatapath.pybpf.memory import wait_for_programs
from k8sdatapath.resource import Resource
from k8sdatapath.tables.counters import CounterRow
from k8sdatapath.tables.peers import PeerKey
from k8sdatapath.tables.policy import Named, NameKey, NameRow, PartyRow, PolicyRow, RuleKey, RuleRow

__all__ = ["CONTRACT", "EndpointPolicy", "Existing", "IdentityPair", "IdentityPolicy"]

CONTRACT = {
    "kd_ipcache": maps.Hash[addr, PartyRow],
    "kd_networks": maps.LPMTrie[PeerKey, PartyRow],
    "kd_policies": maps.Array[PolicyRow],
    "kd_rules": maps.Hash[RuleKey, RuleRow],
    "kd_rule_counts": maps.PerCpuArray[CounterRow],
    "kd_names": maps.Hash[NameKey, NameRow],
}

Existing: TypeAlias = Literal["enforce", "keep"]
"""What becomes of connections that a change no longer allows: they are cut, or go on."""

K = TypeVar("K")
V = TypeVar("V")

_WORLDS = {4: Reserved.WORLD_IPV4, 6: Reserved.WORLD_IPV6}


@frozen
class EndpointPolicy:
    """A pod of this node, and what it has for a policy.

    :ivar identity: that of its labels.
    :ivar policy: the number that all pods of this identity share.
    :ivar isolated: which ways a policy restricts.
    :ivar rules: how many its policy has in the kernel.
    """

    name: str
    addresses: tuple[IPAddress, ...]
    identity: int
    policy: int
    isolated: frozenset[Toward]
    rules: int


@frozen
class IdentityPair:
    """A rule as the kernel has it: ``ingress of 300 from 301: TCP 8080 allowed by ...``.

    :ivar subject: the identity whose pods it is for.
    :ivar peer: that of the other side; 0 is everybody.
    :ivar protocol: 0 is any.
    :ivar first: of the ports; likewise ``last``.
    :ivar l7: what requests have to be, one of these is enough; none at all: anything.
    """

    subject: int
    toward: Toward
    peer: int
    protocol: int
    first: int
    last: int
    allowed: bool
    because: Because
    causes: tuple[Cause, ...]
    l7: Requests = frozenset()


class _Who(NamedTuple):
    """All that makes a difference to policies."""

    identity: int
    labels: tuple[str, ...]
    network: IPNetwork | None
    ports: tuple[NamedPort, ...]


class _Known(NamedTuple):
    workload: Workload
    identity: int


class IdentityPolicy(Resource):
    """Which pods may talk to whom. It knows pods by their labels, which have numbers, their identities::

        policy = IdentityPolicy.bind(loaded)
        policy.learn({web: 300})                      # anywhere in the cluster
        number = policy.attach(api, 301)              # a pod of this node; for its row in kd_endpoints
        policy.upsert(*parse_policies(text))

    All pods of one identity share one policy. Whoever is known is in the policies before an address leads
    there, and leaves them afterwards.
    """

    def __init__(self, tables: dict[str, Any], own: ExitStack, *, l7: RequestRules | None = None) -> None:
        self._own = own
        self._l7 = l7
        self._lock = threading.RLock()
        self._ipcache: maps.Hash[IPAddress, PartyRow] = tables["kd_ipcache"]
        self._tries: maps.LPMTrie[PeerKey, PartyRow] = tables["kd_networks"]
        self._names = Names(tables["kd_names"])
        self._maps = PolicyMaps(tables, self._names, wait_for_programs, l7)
        self._compiler = PolicyCompiler()
        self._networks = Networks()
        self._known: dict[str, _Known] = {}
        self._claims: dict[IPAddress, dict[str, None]] = {}  # names of who has it; the last is believed
        self._subjects: dict[str, _Who] = {}  # pods of this node
        self._numbers: dict[_Who, int] = {}
        self._taken: set[int] = set()
        self._uses: Counter[_Who] = Counter()
        self._addresses: dict[IPAddress, _Who] = {}  # as kd_ipcache has them
        self._led: dict[IPNetwork, _Who] = {}  # as kd_networks has them
        self._local = count(LOCAL_NUMBERS.start)
        self._policies: dict[str, Policy] = {}
        self._left: list[_Who] = []  # whose policies may still be asked, though no pod is to have them
        self._kept: set[int] = set()  # subjects whose live connections have not felt a change yet
        self._reserve()

    @classmethod
    def bind(cls, source: Bindable, *, l7: RequestRules | None = None) -> IdentityPolicy:
        """The policies of a loaded object, pins or maps. The object may be closed before it.

        :param l7: who enforces what policies ask of requests; without, policies that do are refused.
        :raises ContractError: the maps are not there.
        :raises LayoutError: one holds something else.
        """
        tables, own = bind_maps(source, CONTRACT, cls.__name__, keep=True)
        return cls(tables, own, l7=l7)

    # ---- policies

    @property
    def policies(self) -> Mapping[str, Policy]:
        """Those in force, by name."""
        return self._policies

    def upsert(self, *policies: Policy, existing: Existing = "enforce") -> Report:
        """Add policies, or give those of the same names another content.

        :param existing: what becomes of connections that are no longer allowed. Those that were kept once are
            cut by the next change that is enforced.
        :raises CapacityError: they do not fit; nothing was changed.
        :raises ModelError: two have one name, or one asks for requests and nobody enforces that.
        """
        return self._change(policies, (), existing)

    def remove(self, *names: str, existing: Existing = "enforce") -> Report:
        """Take policies away; one that is not there is no error."""
        return self._change((), [name for name in names if name in self._policies], existing)

    def apply(self, policies: Iterable[Policy], *, existing: Existing = "enforce") -> Report:
        """These policies and no others; raises as :meth:`upsert`."""
        wanted = tuple(policies)
        with self._lock:
            names = {each.name for each in wanted}
            new = [each for each in wanted if self._policies.get(each.name) != each]
            return self._change(new, [name for name in self._policies if name not in names], existing)

    # ---- who is who

    def learn(self, workloads: Mapping[Workload, int]) -> None:
        """Know workloads, of whatever node, by their identities; of a name that is known, the latest.

        An address that two have is of the one that was learned last.

        :raises CapacityError: they do not fit; nothing was changed.
        """
        with self._lock:
            self._carry_out(learned={each.name: _Known(each, number) for each, number in workloads.items()})

    def attach(self, workload: Workload, identity: int) -> int:
        """The same of a pod of this node; returns the number of its policy, which is in force by then.

        A policy that it had before stays until :meth:`release`, or the next pod is attached: packets are
        judged by it for as long as the pod's row in kd_endpoints says so.
        """
        with self._lock:
            self.release()
            subject = _Who(identity, workload.labels, None, workload.ports)
            learned = {workload.name: _Known(workload, identity)}
            before = self._subjects.get(workload.name)
            self._left = [] if before in (None, subject) else [before]
            self._uses.update(self._left)
            try:
                self._carry_out(learned=learned, attached={workload.name: subject})
            except CapacityError:
                self.release()
                raise
            return self._maps.number(self._numbers[subject])

    def release(self) -> None:
        """The pod that was attached last has its number in kd_endpoints: what it had before goes."""
        with self._lock:
            left, self._left = self._left, []
            self._uses.subtract(left)
            if left:
                self._leave(left)

    def detach(self, addresses: Iterable[IPAddress]) -> None:
        """The pods of this node that have these addresses are gone; after nothing is delivered there."""
        with self._lock:
            names = {name for each in addresses for name in self._claims.get(each, ())}
            self._carry_out(gone=names & self._subjects.keys())

    def forget(self, *names: str) -> None:
        """Workloads that are gone. Addresses that others have by now stay with these."""
        with self._lock:
            self._carry_out(gone=self._known.keys() & names)

    def forget_strangers(self) -> None:
        """All that there is was learned, attached and applied: what pinned maps still have from before goes.

        Until then pods that are not attached again keep the policies that an earlier process gave them.
        """
        with self._lock:
            self._ipcache.delete_many([ip for ip in self._ipcache if ip not in self._addresses])
            led = {PeerKey.of(net) for net in self._led}
            self._tries.delete_many([key for key in self._tries if key not in led])
            self._maps.drop_strange()
            self._names.drop_strange()
            self._maps.restamp(self._maps)

    @property
    def endpoints(self) -> tuple[EndpointPolicy, ...]:
        """The pods of this node."""
        with self._lock:
            return tuple(self._endpoint(name, who) for name, who in self._subjects.items())

    def identity_of(self, address: IPAddress) -> int | None:
        """Whose an address is, if it is known."""
        who = self._addresses.get(address)
        return None if who is None else who.identity

    # ---- what there is

    def dump(self) -> tuple[IdentityPair, ...]:
        """The rules of all pods of this node, by identities."""
        with self._lock:
            by_number = {number: who for who, number in self._numbers.items()}
            return tuple(
                IdentityPair(
                    by_number[subject].identity,
                    key.toward,
                    key.identity,
                    key.protocol,
                    key.port,
                    key.port | (0xFFFF >> key.bits),
                    entry.action is Action.ALLOW,
                    entry.because,
                    entry.causes,
                    entry.l7,
                )
                for subject in self._maps
                for key, entry in self._compiler.table(subject).items()
            )

    def counts(self) -> tuple[RuleCount, ...]:
        """Which rules were decisive for how many packets, since they are in force."""
        with self._lock:
            return self._maps.counts()

    def close(self) -> None:
        """Let go of the maps; packets are judged as they are."""
        self._own.close()

    def __repr__(self) -> str:
        return f"<IdentityPolicy {len(self._policies)} policies, {len(self._subjects)} pods>"

    # ---- how it is done

    def _reserve(self) -> None:
        """Those who are known from the beginning."""
        labels_of: dict[Reserved, tuple[str, ...]] = {
            Reserved.HOST: ("reserved:host",),
            Reserved.REMOTE_NODE: ("reserved:remote-node",),
            **{number: world(version) for version, number in _WORLDS.items()},
        }
        for number, labels in labels_of.items():
            who = _Who(number, Party(labels).labels, None, ())
            self._numbers[who], self._uses[who] = number, 1
            self._taken.add(number)
        self._names.call(Named.PARTY, {number: _called(who) for who, number in self._numbers.items()})
        self._compiler.update(identities={number: _party(who) for who, number in self._numbers.items()})

    def _change(self, new: Iterable[Policy], removed: Iterable[str], existing: Existing) -> Report:
        if existing not in ("enforce", "keep"):
            raise ModelError(f"existing is 'enforce' or 'keep', not {shown(existing)}")
        with self._lock:
            started = time.perf_counter()
            new, removed = tuple(new), tuple(removed)
            by_name = {each.name: each for each in new}
            if len(by_name) < len(new):
                (name, _), *_ = Counter(each.name for each in new).most_common(1)
                raise ModelError(f"{name} is given twice")
            for each in new if self._l7 is None else ():
                if any(rule.l7 for rule in each.rules):
                    raise ModelError(
                        f"{each.name} asks for requests, which nothing here enforces: bind(l7=...)"
                    )
            old = [self._policies[name] for name in {*by_name, *removed} if name in self._policies]
            less = [each for policy in old for each in networks_of(policy)]
            more = [each for policy in new for each in networks_of(policy)]
            changed = sum(name in self._policies for name in by_name)
            with ExitStack() as undo:
                undo.callback(self._networks.add, less)
                undo.callback(self._networks.remove, more)
                self._networks.remove(less)
                self._networks.add(more)
                self._carry_out(by_name, removed, existing=existing)
                undo.pop_all()
            for name in removed:
                del self._policies[name]
            self._policies.update(by_name)
            return Report(len(new) - changed, changed, len(removed), time.perf_counter() - started)

    def _carry_out(
        self,
        new: Mapping[str, Policy] = {},
        removed: Iterable[str] = (),
        *,
        learned: Mapping[str, _Known] = {},
        attached: Mapping[str, _Who] = {},
        gone: Set[str] = frozenset(),
        existing: Existing = "enforce",
    ) -> None:
        """Everything that changes, in the order that no packet notices."""
        claims, addresses = self._addresses_after(learned, gone, every=bool(new or removed))
        led = self._networks_after() if new or removed else {}
        subjects = {**dict.fromkeys(gone & self._subjects.keys()), **attached}
        uses = Counter[_Who]()
        for change in (
            _replaced(self._addresses, addresses),
            _replaced(self._led, led),
            _replaced(self._subjects, subjects),
        ):
            for before, after in change:
                uses.update([after] if after else ())
                uses.subtract([before] if before else ())
        fresh = {who: self._number(who) for who in uses if who not in self._numbers}
        self._check(addresses, led)
        here = {self._numbers.get(who) or fresh[who] for who in attached.values()}
        policies = dict(self._policies)
        changes = self._compiler.update(
            new.values(),
            removed=removed,
            identities={number: _party(who) for who, number in fresh.items()},
            subjects=here,
        )
        felt = {n for n in changes if n in self._maps} if new or removed else set()
        tables = {n: self._compiler.table(n) for n in (*changes, *here) if n in self._maps or n in here}
        try:
            self._maps.check(tables, changes)
        except CapacityError:
            self._taken -= set(fresh.values())
            self._compiler.update(
                [policies[name] for name in {*new, *removed} if name in policies],
                removed=[name for name in new if name not in policies],
                gone=fresh.values(),
                no_subjects=[n for n in here if n not in self._maps],
            )
            raise
        self._numbers |= fresh
        self._names.call(Named.PARTY, {number: _called(who) for who, number in fresh.items()})
        self._uses.update(uses)
        self._maps.apply(tables, changes)
        _follow_dict(self._claims, {ip: names or None for ip, names in claims.items()})
        if self._lead(addresses, led):
            felt = set(self._maps)
        self._known.update(learned)
        for name in gone:
            del self._known[name]
        _follow_dict(self._subjects, subjects)
        self._kept |= felt
        if existing == "enforce":
            self._maps.restamp(each for each in self._kept if each in self._maps)
            self._kept.clear()
        self._leave(uses)

    def _addresses_after(
        self, learned: Mapping[str, _Known], gone: Set[str], *, every: bool
    ) -> tuple[dict[IPAddress, dict[str, None]], dict[IPAddress, _Who | None]]:
        """Who will claim the addresses concerned, and who will be behind those where that changes."""
        touched = [self._known[name] for name in (*learned, *gone) if name in self._known]
        claims = {ip: dict.fromkeys(self._claims[ip]) for each in touched for ip in each.workload.addresses}
        for name in (*learned, *gone):
            for ip in self._known[name].workload.addresses if name in self._known else ():
                claims[ip].pop(name, None)
        for name, known in learned.items():
            for ip in known.workload.addresses:
                if ip not in claims:
                    claims[ip] = dict.fromkeys(self._claims.get(ip, ()))
                claims[ip][name] = None
        after: dict[IPAddress, _Who | None] = {}
        for ip in self._addresses.keys() | claims.keys() if every else claims:
            names = claims.get(ip, self._claims.get(ip, {}))
            last = next(reversed(names), None)
            found = None if last is None else self._who(ip, learned.get(last) or self._known[last])
            if found != self._addresses.get(ip):
                after[ip] = found
        return claims, after

    def _networks_after(self) -> dict[IPNetwork, _Who | None]:
        """Who is in the networks that come, and nobody in those that go."""
        wanted = {_EVERY_IPV4: _WORLD_IPV4} | {
            net: _outside(net) for net in self._networks if not _is_mapped(net)
        }
        changed: dict[IPNetwork, _Who | None] = {
            net: who for net, who in wanted.items() if self._led.get(net) != who
        }
        return {**changed, **{net: None for net in self._led if net not in wanted}}

    def _check(
        self, addresses: Mapping[IPAddress, _Who | None], led: Mapping[IPNetwork, _Who | None]
    ) -> None:
        """See that who is who fits."""
        for table, there, change in (
            (self._ipcache, len(self._addresses), _replaced(self._addresses, addresses)),
            (self._tries, len(self._led), _replaced(self._led, led)),
        ):
            size = there + sum((after is not None) - (before is not None) for before, after in change)
            if size > table.info.max_entries:
                raise CapacityError(table.name, size, table.info.max_entries)

    def _lead(self, addresses: Mapping[IPAddress, _Who | None], led: Mapping[IPNetwork, _Who | None]) -> bool:
        """Write who is behind addresses; whether that has changed anything."""
        self._tries.update_many({PeerKey.of(net): self._row(who) for net, who in led.items() if who})
        self._ipcache.update_many({ip: self._row(who) for ip, who in addresses.items() if who})
        self._ipcache.delete_many([ip for ip, who in addresses.items() if who is None])
        self._tries.delete_many([PeerKey.of(net) for net, who in led.items() if who is None])
        _follow_dict(self._addresses, addresses)
        _follow_dict(self._led, led)
        return bool(addresses or led)

    def _leave(self, changed: Iterable[_Who]) -> None:
        """Forget who leads nowhere, when no packet can be asked about it any more."""
        gone = {who: self._numbers[who] for who in changed if not self._uses[who]}
        here = {self._numbers[who] for who in (*self._subjects.values(), *self._left)}
        strangers = set(self._maps) - here
        for number in strangers:
            self._maps.drop(number)
        self._maps.settle(wait=bool(gone))
        if gone or strangers:
            self._maps.shrink(self._compiler.update(gone=gone.values(), no_subjects=strangers))
        self._names.forget(Named.PARTY, gone.values())
        for who, number in gone.items():
            del self._numbers[who], self._uses[who]
            self._taken.discard(number)

    def _who(self, ip: IPAddress, known: _Known) -> _Who:
        workload = known.workload
        return _Who(known.identity, workload.labels, self._networks.narrowest(ip), workload.ports)

    def _number(self, who: _Who) -> int:
        """Its labels' own, where nothing else makes a difference."""
        number = (
            who.identity if who.network is None and who.identity not in self._taken else next(self._local)
        )
        self._taken.add(number)
        return number

    def _row(self, who: _Who) -> PartyRow:
        return PartyRow(self._numbers[who], who.identity)

    def _endpoint(self, name: str, who: _Who) -> EndpointPolicy:
        number = self._numbers[who]
        table = self._compiler.table(number)
        isolated = {key.toward for key, entry in table.items() if entry.because is Because.DEFAULT_DENY}
        workload = self._known[name].workload
        return EndpointPolicy(
            name,
            workload.addresses,
            who.identity,
            self._maps.number(number),
            frozenset(isolated),
            len(table),
        )


_WORLD_IPV4 = _Who(Reserved.WORLD_IPV4, Party(world(4)).labels, None, ())
_EVERY_IPV4 = IPv4Network("0.0.0.0/0")
"""Always led somewhere, or IPv4 would be in ``::/0``: the kernel has it as ``::ffff:0:0/96``."""
_MAPPED = IPv6Network("::ffff:0:0/96")


def _is_mapped(network: IPNetwork) -> bool:
    """A network of IPv6 whose addresses IPv4's are written as; no packet has one."""
    return network.version == 6 and network.subnet_of(_MAPPED)


def _replaced(there: Mapping[K, V], changed: Mapping[K, V | None]) -> Iterator[tuple[V | None, V | None]]:
    for key, value in changed.items():
        yield there.get(key), value


def _follow_dict(there: dict[K, V], changed: Mapping[K, V | None]) -> None:
    """Where a change says None, there is nothing then."""
    for key, value in changed.items():
        if value is None:
            there.pop(key, None)
        else:
            there[key] = value


def _party(who: _Who) -> Party:
    return Party(who.labels, who.network, who.ports)


def _called(who: _Who) -> str:
    """Its labels, and the network that it is in."""
    return "; ".join((*who.labels, *([] if who.network is None else [f"in {who.network}"])))


def _outside(network: IPNetwork) -> _Who:
    """Who is in a network and nobody that is known."""
    return _Who(_WORLDS[network.version], Party(world(network.version)).labels, network, ())
