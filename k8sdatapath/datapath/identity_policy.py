"""IdentityPolicy: which pods may talk to whom, enforced by the programs as pairs of identities."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Set
from contextlib import ExitStack
from itertools import count
from typing import Any, Literal, TypeAlias

from k8sdatapath import maps
from k8sdatapath.component import Report
from k8sdatapath.datapath.contract import Bindable, bind_maps
from k8sdatapath.datapath.copying import copy_map
from k8sdatapath.datapath.flow_names import Ruling, policy_ref
from k8sdatapath.datapath.policy_compiler import PolicyCompiler, networks_of
from k8sdatapath.datapath.policy_leads import (
    WORLDS,
    Known,
    Leads,
    Who,
    count_uses,
    follow_dict,
    replaced,
)
from k8sdatapath.datapath.policy_maps import PolicyMaps, RequestRules, RuleCount
from k8sdatapath.datapath.policy_names import Names
from k8sdatapath.datapath.policy_pairs import EndpointPolicy, IdentityPair
from k8sdatapath.datapath.policy_rows import Because
from k8sdatapath.datapath.policy_set import world
from k8sdatapath.datapath.rule_matches import RuleMatches
from k8sdatapath.errors import CapacityError, ModelError
from k8sdatapath.layout import addr
from k8sdatapath.model import IPAddress, address
from k8sdatapath.model.address import shown
from k8sdatapath.model.host_firewall import HostFirewall
from k8sdatapath.model.identity import LOCAL_NUMBERS, Reserved
from k8sdatapath.model.names import name_patterns
from k8sdatapath.model.policy import Action, Policy, Toward
from k8sdatapath.model.workload import Party, Workload
from k8sdatapath.pybpf.memory import wait_for_programs
from k8sdatapath.resource import Resource
from k8sdatapath.tables.counters import CounterRow
from k8sdatapath.tables.peers import PeerKey
from k8sdatapath.tables.policy import (
    Named,
    NameKey,
    NameRow,
    PartyRow,
    PolicyFlags,
    PolicyRow,
    RuleKey,
    RuleRow,
)

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
        self._own, self._tables = own, tables
        self._l7 = l7
        self._lock = threading.RLock()
        self._leads = Leads(tables)
        self._names = Names(tables["kd_names"])
        self._maps = PolicyMaps(tables, self._names, wait_for_programs, l7)
        self._compiler = PolicyCompiler()
        self._subjects: dict[str, Who] = {}  # pods of this node
        self._numbers: dict[Who, int] = {}
        self._taken: set[int] = set()
        self._uses: Counter[Who] = Counter()
        self._local = count(LOCAL_NUMBERS.start)
        self._policies: dict[str, Policy] = {}
        self._matches = RuleMatches(self._policies)
        self._left: list[Who] = []  # whose policies may still be asked, though no pod is to have them
        self._modes = PolicyFlags(0)
        self._failsafe: Policy | None = None
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

    @property
    def audit(self) -> bool:
        """Whether policies only look on: what they deny passes, and is counted with the rule that denies it.

        Turned off, live connections feel it too. Pods of which nobody has said who they are stay cut off.
        """
        return bool(self._modes & PolicyFlags.AUDIT)

    @audit.setter
    def audit(self, on: bool) -> None:
        self._set_mode(PolicyFlags.AUDIT, on)

    @property
    def answer(self) -> bool:
        """Whether pods of this node are told when policies here deny what they send, instead of waiting.

        TCP is told by a RST, so that ``connect()`` fails at once, and UDP by an ICMP error, "administratively
        prohibited". Other nodes and the world are never told.
        """
        return bool(self._modes & PolicyFlags.ANSWER)

    @answer.setter
    def answer(self, on: bool) -> None:
        self._set_mode(PolicyFlags.ANSWER, on)

    # ---- who is who

    def learn(self, workloads: Mapping[Workload, int]) -> None:
        """Know workloads, of whatever node, by their identities; of a name that is known, the latest.

        An address that two have is of the one that was learned last.

        :raises CapacityError: they do not fit; nothing was changed.
        """
        with self._lock:
            self._carry_out(learned={each.name: Known(each, number) for each, number in workloads.items()})

    def attach(self, workload: Workload, identity: int, *, audit: bool = False) -> int:
        """The same of a pod of this node; returns the number of its policy, which is in force by then.

        A policy that it had before stays until :meth:`release`, or the next pod is attached: packets are
        judged by it for as long as the pod's row in kd_endpoints says so.

        :param audit: as :attr:`audit`, for this pod alone.
        """
        with self._lock:
            self.release()
            subject = Who(identity, workload.labels, None, workload.ports, audit)
            learned = {workload.name: Known(workload, identity)}
            before = self._subjects.get(workload.name)
            self._left = [] if before in (None, subject) else [before]
            self._uses.update(self._left)
            try:
                self._carry_out(learned=learned, attached={workload.name: subject})
            except CapacityError:
                self.release()
                raise
            return self._maps.number(self._numbers[subject])

    def attach_host(self, workload: Workload, firewall: HostFirewall) -> None:
        """Know the node itself, and enforce policies for it: those that select its labels.

        What is decided of it is in force by then. It stays for as long as the maps do, under the number
        that programs know the node's policy by.

        :param firewall: says which ports no policy closes.
        :raises CapacityError: it does not fit; nothing was changed.
        """
        with self._lock:
            if self._failsafe != firewall.failsafe:
                self._failsafe = firewall.failsafe
                self._compiler.update([self._failsafe])
            subject = Who(Reserved.HOST, workload.labels, None, workload.ports)
            known = Known(workload, Reserved.HOST)
            self._carry_out(learned={workload.name: known}, attached={workload.name: subject}, node=subject)

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
            self._carry_out(gone=self._leads.claiming(addresses) & self._subjects.keys())

    def forget(self, *names: str) -> None:
        """Workloads that are gone. Addresses that others have by now stay with these."""
        with self._lock:
            self._carry_out(gone=self._leads.known.keys() & names)

    def learn_name(self, name: str, addresses: Iterable[Any], ttl: float) -> None:
        """DNS has answered that a name has these addresses, for so many seconds.

        When it returns, policies by that name (``toFQDNs``) are in force for them: who has asked may be told.
        Addresses of pods and nodes stay with these. :meth:`expire_names` forgets.

        :raises CapacityError: they do not fit; nothing was changed.
        :raises ModelError: an address that is none.
        """
        found = [address(each) for each in addresses]
        with self._lock:
            before = self._leads.answers.learn(name, found, time.monotonic() + ttl)
            try:
                self._carry_out(named=found)
            except CapacityError:
                self._leads.answers.restore(name, before)
                raise

    def goes_by(self, address: IPAddress, name: str) -> bool:
        """Whether a policy of the pod at an address, on this node, names peers by a pattern that fits a name.

        Only what such a pod is answered is to be learned: nobody opens a way for others.
        """
        with self._lock:
            known = self._leads.claimant(address)
            if known is None or known.workload.name not in self._subjects:
                return False
            return self._leads.answers.knows(name) and any(
                each.matches(name)
                for policy in self._policies.values()
                if policy.subject.matches(known.workload.labels)
                for each in name_patterns([policy])
            )

    def expire_names(self, live: Callable[[], Collection[IPAddress]] = tuple) -> None:
        """Forget the names whose time is over, as an open node does now and then.

        :param live: tells the addresses that somebody talks to: these keep their names until that has ended.
        """
        with self._lock:
            now = time.monotonic()
            if self._leads.answers.due(now):
                self._carry_out(named=self._leads.answers.expire(now, live()))

    def forget_strangers(self) -> None:
        """All that there is was learned, attached and applied: what pinned maps still have from before goes.

        Until then pods that are not attached again keep the policies that an earlier process gave them.
        """
        with self._lock:
            self._leads.drop_strange()
            self._maps.drop_strange()
            self._names.drop_strange()
            self._maps.restamp(self._maps)
            if self._l7 is not None:
                self._l7.forget_strangers()

    @property
    def endpoints(self) -> tuple[EndpointPolicy, ...]:
        """The pods of this node, and the node itself, if policies are enforced for it."""
        with self._lock:
            return tuple(self._endpoint(name, who) for name, who in self._subjects.items())

    def identity_of(self, address: IPAddress) -> int | None:
        """Whose an address is, if it is known."""
        who = self._leads.at(address)
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
                    entry.audited,
                )
                for subject in self._maps
                for key, entry in self._compiler.table(subject).items()
            )

    def ruling(self, counter: int) -> Ruling | None:
        """What a counter of a rule stands for; None: nothing any more."""
        found = self._maps.ruling(counter)
        if found is None:
            return None
        because, causes = found
        names = dict.fromkeys(cause.policy for cause in causes if because is not Because.OWN_NODE)
        rule = because is Because.RULE
        match = self._matches.of(causes if rule else ())
        return Ruling(tuple(map(policy_ref, names)), rule, match)

    def whose(self, address: IPAddress) -> tuple[Workload, int] | None:
        """Who has an address, with its identity; None: nobody who is known."""
        known = self._leads.claimant(address)
        return None if known is None else (known.workload, known.identity)

    def counts(self) -> tuple[RuleCount, ...]:
        """Which rules were decisive for how many packets, since they are in force."""
        with self._lock:
            return self._maps.counts()

    def move(self, target: Bindable, switch: Callable[[], object]) -> None:
        """Go on in other maps, which may be of other sizes, as :meth:`ServiceTable.move`.

        :param switch: puts programs over the new maps in place of those over the old. Until it is done both
            judge alike.
        :raises CapacityError: what is here does not fit there; ``switch`` was not called.
        """
        bound, owned = bind_maps(target, CONTRACT, "policies", keep=True)
        with ExitStack() as undo, self._lock:
            undo.push(owned)
            for name, new in bound.items():
                if new.info.id != self._tables[name].info.id:
                    copy_map(self._tables[name], new)
            switch()
            undo.pop_all()
            self._own.close()
            self._own, self._tables = owned, bound
            self._leads.go_on_in(bound)
            self._names.go_on_in(bound["kd_names"])
            self._maps.go_on_in(bound)

    def close(self) -> None:
        """Let go of the maps; packets are judged as they are."""
        self._own.close()

    def __repr__(self) -> str:
        return f"<IdentityPolicy {len(self._policies)} policies, {len(self._subjects)} pods>"

    # ---- how it is done

    def _set_mode(self, mode: PolicyFlags, on: bool) -> None:
        with self._lock:
            self._modes = self._modes | mode if on else self._modes & ~mode
            self._maps.set_modes(self._modes)

    def _reserve(self) -> None:
        """Those who are known from the beginning."""
        labels_of: dict[Reserved, tuple[str, ...]] = {
            Reserved.HOST: ("reserved:host",),
            Reserved.REMOTE_NODE: ("reserved:remote-node",),
            **{number: world(version) for version, number in WORLDS.items()},
        }
        for number, labels in labels_of.items():
            who = Who(number, Party(labels).labels, None, ())
            self._numbers[who], self._uses[who] = number, 1
            self._taken.add(number)
        self._names.call(Named.PARTY, {number: str(who) for who, number in self._numbers.items()})
        self._compiler.update(identities={number: who.party for who, number in self._numbers.items()})

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
            answers, unnamed, named = self._leads.answers, [*name_patterns(old)], [*name_patterns(new)]
            changed = sum(name in self._policies for name in by_name)
            with ExitStack() as undo:
                undo.callback(self._leads.networks.add, less)
                undo.callback(self._leads.networks.remove, more)
                self._leads.networks.remove(less)
                self._leads.networks.add(more)
                undo.callback(answers.use, unnamed)
                undo.callback(answers.drop, named)
                answers.drop(unnamed)
                answers.use(named)
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
        learned: Mapping[str, Known] = {},
        attached: Mapping[str, Who] = {},
        gone: Set[str] = frozenset(),
        named: Iterable[IPAddress] = (),
        node: Who | None = None,
        existing: Existing = "enforce",
    ) -> None:
        """Everything that changes, in the order that no packet notices."""
        turn = self._leads.turn(learned, gone, networks=bool(new or removed), named=named)
        subjects = {**dict.fromkeys(gone & self._subjects.keys()), **attached}
        uses = self._leads.uses(turn)
        count_uses(uses, replaced(self._subjects, subjects))
        fresh = {who: self._number(who) for who in uses if who not in self._numbers}
        here = {self._numbers.get(who) or fresh[who] for who in attached.values()}
        policies = dict(self._policies)
        changes = self._compiler.update(
            new.values(),
            removed=removed,
            identities={number: who.party for who, number in fresh.items()},
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
        self._names.call(Named.PARTY, {number: str(who) for who, number in fresh.items()})
        self._uses.update(uses)
        audited = {self._numbers[who] for who in attached.values() if who.audited}
        self._maps.apply(tables, changes, audited, 0 if node is None else self._numbers[node])
        if self._leads.follow(turn, self._numbers):
            felt = set(self._maps)
        follow_dict(self._subjects, subjects)
        if not (new or removed):  # what an earlier change has spared is none of its business
            self._maps.restamp(felt)
        elif existing == "keep":
            self._kept |= felt
        else:
            self._maps.restamp(each for each in self._kept | felt if each in self._maps)
            self._kept.clear()
        self._leave(uses)

    def _leave(self, changed: Iterable[Who]) -> None:
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

    def _number(self, who: Who) -> int:
        """Its labels' own, where nothing else makes a difference."""
        plain = who.network is None and not who.audited
        number = who.identity if plain and who.identity not in self._taken else next(self._local)
        self._taken.add(number)
        return number

    def _endpoint(self, name: str, who: Who) -> EndpointPolicy:
        number = self._numbers[who]
        table = self._compiler.table(number)
        isolated = {key.toward for key, entry in table.items() if entry.because is Because.DEFAULT_DENY}
        workload = self._leads.known[name].workload
        return EndpointPolicy(
            name,
            workload.addresses,
            who.identity,
            self._maps.number(number),
            frozenset(isolated),
            len(table),
            who.audited,
            frozenset(filter(table.audits, Toward)),
        )
