"""IdentityPolicy: which pods may talk to whom, enforced by the programs as pairs of identities."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Set
from contextlib import ExitStack, suppress
from itertools import count
from typing import Any, Literal, TypeAlias

from attrs import evolve

from k8sdatapath import maps
from k8sdatapath.component import Report
from k8sdatapath.datapath.contract import Bindable, bind_maps, names_of
from k8sdatapath.datapath.copying import copy_map
from k8sdatapath.datapath.named_peers import NamedPeers
from k8sdatapath.datapath.policy_compiler import PolicyCompiler
from k8sdatapath.datapath.policy_cuts import cut_connections
from k8sdatapath.datapath.policy_dns import KeptAnswers
from k8sdatapath.datapath.policy_leads import (
    WORLDS,
    Known,
    Leads,
    Who,
    count_uses,
    follow_dict,
    replaced,
)
from k8sdatapath.datapath.policy_maps import PolicyMaps, RequestRules
from k8sdatapath.datapath.policy_names import Names, inherited_numbers, numbers_in_use
from k8sdatapath.datapath.policy_pairs import EndpointPolicy, IdentityPair
from k8sdatapath.datapath.policy_plan import PolicyPlan, plan_policies
from k8sdatapath.datapath.policy_records import PolicyRecords
from k8sdatapath.datapath.policy_senders import Senders
from k8sdatapath.datapath.policy_set import PolicySet
from k8sdatapath.datapath.policy_sides import world
from k8sdatapath.datapath.policy_tables import CONTRACT
from k8sdatapath.datapath.request_kinds import RequestKinds
from k8sdatapath.datapath.rule_matches import RuleMatches
from k8sdatapath.datapath.talks import ask_again, live_talks
from k8sdatapath.errors import CapacityError, ModelError
from k8sdatapath.model import IPAddress
from k8sdatapath.model.address import shown
from k8sdatapath.model.host_firewall import HostFirewall
from k8sdatapath.model.identity import LOCAL_NUMBERS, Reserved
from k8sdatapath.model.policy import Policy, Toward
from k8sdatapath.model.workload import Party, Workload
from k8sdatapath.pybpf.memory import wait_for_programs
from k8sdatapath.tables.conntrack import Tuple
from k8sdatapath.tables.policy import (
    Named,
    PolicyFlags,
    TalkRow,
)

__all__ = ["CONTRACT", "EndpointPolicy", "Existing", "IdentityPair", "IdentityPolicy"]

_TALKS = maps.LRUHash[Tuple, TalkRow]

Existing: TypeAlias = Literal["enforce", "keep"]
"""What becomes of connections that a change no longer allows: they are cut, or go on."""


class IdentityPolicy(NamedPeers, PolicyRecords):
    """Which pods may talk to whom. It knows pods by their labels, which have numbers, their identities::

        policy = IdentityPolicy.bind(loaded)
        policy.learn({web: 300})                      # anywhere in the cluster
        number = policy.attach(api, 301)              # a pod of this node; for its row in kd_endpoints
        policy.upsert(*parse_policies(text))

    All pods of one identity share one policy. Whoever is known is in the policies before an address leads
    there, and leaves them afterwards.
    """

    def __init__(self, tables: dict[str, Any], own: ExitStack, requests: RequestKinds) -> None:
        self._own, self._tables = own, tables
        self._requests = requests
        self._lock = threading.RLock()
        self._leads = Leads(tables)
        self._senders = Senders(tables)
        self._names = Names(tables["kd_names"])
        self._kept_answers = KeptAnswers(self._names)
        self._maps = PolicyMaps(tables, self._names, wait_for_programs, requests)
        self._compiler = PolicyCompiler()
        self._subjects: dict[str, Who] = {}  # pods of this node
        self._numbers: dict[Who, int] = {}
        self._taken: set[int] = set()
        self._uses: Counter[Who] = Counter()
        left = self._names.read()
        parties = {number: who for number, who in left[Named.PARTY].items() if number in LOCAL_NUMBERS}
        self._inherited = inherited_numbers(parties)
        taken = {*parties, *(numbers_in_use(tables) if self._names.full else ())}
        self._local = count(max(taken, default=LOCAL_NUMBERS.start - 1) + 1)
        self._policies: dict[str, Policy] = {}
        self._matches = RuleMatches(self._policies)
        self._left: list[Who] = []  # whose policies may still be asked, though no pod is to have them
        self._modes = PolicyFlags(0)
        self._firewall: HostFirewall | None = None
        self._talks: maps.LRUHash[Tuple, TalkRow] | None = tables.pop("kd_talks", None)
        self._kept: set[int] = set()  # subjects whose live connections have not felt a change yet
        self._kept_answers.take_over(left[Named.ANSWER], self._leads.answers)
        self._reserve()

    @classmethod
    def bind(
        cls, source: Bindable, *, l7: RequestRules | None = None, names: RequestRules | None = None
    ) -> IdentityPolicy:
        """The policies of a loaded object, pins or maps. The object may be closed before it.

        :param l7: who enforces what policies ask of requests; without, policies that do are refused.
        :param names: likewise of names that name servers are asked for.
        :raises ContractError: the maps are not there.
        :raises LayoutError: one holds something else.
        """
        tables, own = bind_maps(source, _with_talks(source), cls.__name__, keep=True)
        return cls(tables, own, RequestKinds(l7, names))

    # ---- policies

    @property
    def policies(self) -> Mapping[str, Policy]:
        """Those in force, by name."""
        return self._policies

    def upsert(self, *policies: Policy, existing: Existing = "enforce") -> Report:
        """Add policies, or give those of the same names another content.

        Of an object with ``specs`` each is a policy: those that it has no more are to be removed.

        :param existing: what becomes of connections that are no longer allowed. Those that were kept once are
            cut by the next change that is enforced, or when another comes to an address of theirs.
        :raises CapacityError: they do not fit; nothing was changed.
        :raises ModelError: two have one name, or one asks for requests and nobody enforces that.
        """
        return self._change(_values(policies), (), existing)

    def remove(self, *names: str, existing: Existing = "enforce") -> Report:
        """Take policies away; one that is not there is no error.

        :raises ModelError: a name is no text.
        """
        if wrong := [name for name in names if not isinstance(name, str)]:
            raise ModelError(f"{shown(wrong[0])} is no name of a policy, such as 'NetworkPolicy shop/web'")
        return self._change((), [name for name in names if name in self._policies], existing)

    def apply(self, policies: Iterable[Policy], *, existing: Existing = "enforce") -> Report:
        """These policies and no others; raises as :meth:`upsert`."""
        wanted = _values([policies] if isinstance(policies, str) else policies)
        with self._lock:
            names = {each.name for each in wanted}
            new = [each for each in wanted if self._policies.get(each.name) != each]
            return self._change(new, [name for name in self._policies if name not in names], existing)

    def plan(self, policies: Iterable[Policy]) -> PolicyPlan:
        """What :meth:`apply` of these would open and cut, among all who are known here and with the world.

        Also which connections it would end, of those that pods of this node have, and how many entries it
        takes. Nothing is changed.

        :raises CapacityError: rules about requests take more than there can be room for.
        """
        with self._lock:
            known = {name: each.workload for name, each in self._leads.known.items()}
            old, new, names = self._policies.values(), _values(policies), self._leads.answers.names
            found = plan_policies(old, new, known.values(), names=names, host_firewall=self._firewall)
            changed = {each.name: each for each in new} != self._policies
            if self._talks is None or self.audit or not changed:
                return found
            was, now = (PolicySet(each, names=names, host_firewall=self._firewall) for each in (old, new))
            cut = cut_connections(live_talks(self._talks), was, now, self._whose, self._revision_of)
            return evolve(found, connections=tuple(sorted(cut, key=str)))

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

    def attach(self, workload: Workload, identity: int) -> int:
        """The same of a pod of this node; returns the number of its policy, which is in force by then.

        A policy that it had before stays until :meth:`release`, or the next pod is attached: packets are
        judged by it for as long as the pod's row in kd_endpoints says so.
        """
        with self._lock:
            self.release()
            subject = Who(identity, workload.labels, None, workload.ports, workload.audit)
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
            if self._firewall != firewall:
                self._firewall = firewall
                self._compiler.update([firewall.failsafe])
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

    def forget_strangers(self) -> None:
        """All that there is was learned, attached and applied: what pinned maps still have from before goes.

        Until then pods that are not attached again keep the policies that an earlier process gave them.
        """
        with self._lock:
            self._leads.drop_strange()
            self._senders.drop_strange()
            self._maps.drop_strange()
            self._names.drop_strange()
            self._inherited.clear()
            self._maps.restamp(self._maps)
            self._requests.forget_strangers()

    # ---- its maps

    def move(self, target: Bindable, switch: Callable[[], object]) -> None:
        """Go on in other maps, which may be of other sizes, as :meth:`ServiceTable.move`.

        :param switch: puts programs over the new maps in place of those over the old. Until it is done both
            judge alike.
        :raises CapacityError: what is here does not fit there; ``switch`` was not called.
        """
        bound, owned = bind_maps(target, _with_talks(target), "policies", keep=True)
        with ExitStack() as undo, self._lock:
            undo.push(owned)
            talks = bound.pop("kd_talks", None)
            for name, new in bound.items():
                if new.info.id != self._tables[name].info.id:
                    copy_map(self._tables[name], new)
            switch()
            undo.pop_all()
            self._own.close()
            self._own, self._tables, self._talks = owned, bound, talks
            self._leads.go_on_in(bound)
            self._senders.go_on_in(bound)
            self._names.go_on_in(bound["kd_names"])
            self._maps.go_on_in(bound)

    def close(self) -> None:
        """Let go of the maps; packets are judged as they are."""
        self._own.close()

    def __repr__(self) -> str:
        return f"<IdentityPolicy {len(self._policies)} policies, {len(self._subjects)} pods>"

    # ---- how it is done

    def _follow_names(self, addresses: Iterable[IPAddress]) -> None:
        self._carry_out(named=addresses)

    def _set_mode(self, mode: PolicyFlags, on: bool) -> None:
        if type(on) is not bool:
            raise ModelError(f"{shown(on)} is neither True nor False")
        with self._lock:
            self._modes = self._modes | mode if on else self._modes & ~mode
            self._maps.set_modes(self._modes)

    def _whose(self, address: IPAddress) -> Workload | None:
        known = self._leads.claimant(address)
        return None if known is None else known.workload

    def _revision_of(self, workload: Workload, toward: Toward) -> int | None:
        """Of a pod's policy here; None: it is no pod of this node."""
        who = self._subjects.get(workload.name)
        return None if who is None else self._maps.revision_of(self._numbers[who], toward)

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
        self._carry_out(apart=True)

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
            self._requests.refuse(new)
            old = [self._policies[name] for name in {*by_name, *removed} if name in self._policies]
            changed = sum(name in self._policies for name in by_name)
            with ExitStack() as undo:
                undo.callback(self._tell_together, new)
                if self._leads.tell_apart(new):
                    self._carry_out(apart=True)
                self._carry_out(by_name, removed, existing=existing)
                undo.pop_all()
            for name in removed:
                del self._policies[name]
            self._policies.update(by_name)
            self._tell_together(old)
            return Report(len(new) - changed, changed, len(removed), time.perf_counter() - started)

    def _tell_together(self, policies: Iterable[Policy]) -> None:
        """What only these, which are not in force, tell apart is so no more."""
        if self._leads.tell_together(policies):
            with suppress(CapacityError):  # until there is room; the same is said of both
                self._carry_out(apart=True)

    def _carry_out(
        self,
        new: Mapping[str, Policy] = {},
        removed: Iterable[str] = (),
        *,
        learned: Mapping[str, Known] = {},
        attached: Mapping[str, Who] = {},
        gone: Set[str] = frozenset(),
        named: Iterable[IPAddress] = (),
        apart: bool = False,
        node: Who | None = None,
        existing: Existing = "enforce",
    ) -> None:
        """Everything that changes, in the order that no packet notices.

        Policies that tell more addresses apart find these so, and such as tell fewer leave them so: numbers
        and policies never change at once, or a packet would find the one as it was and the other as it is.

        :param apart: nothing but what addresses are told apart by; what is in force says the same of them.
        """
        turn = self._leads.turn(learned, gone, networks=apart, named=named)
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
        self._senders.lead(fresh, self._numbers)
        if self._leads.follow(turn, self._numbers) and not apart:
            felt = set(self._maps)
        follow_dict(self._subjects, subjects)
        if not (new or removed):  # what an earlier change has spared is judged where its own addresses change
            kept = felt & self._kept
            if kept and self._talks is not None:
                felt = felt - kept
                wait_for_programs()  # nobody is judged any more by who had these addresses before
                ask_again(self._talks, turn.addresses)
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
        self._senders.leave(gone)
        self._maps.settle(wait=bool(gone))
        if gone or strangers:
            self._maps.shrink(self._compiler.update(gone=gone.values(), no_subjects=strangers))
        self._names.forget(Named.PARTY, gone.values())
        for who, number in gone.items():
            del self._numbers[who], self._uses[who]
            self._taken.discard(number)

    def _number(self, who: Who) -> int:
        """Its labels' own, where nothing else makes a difference; else what an earlier process gave it."""
        if who.network is None and not who.audited and who.identity not in self._taken:
            number = who.identity
        else:
            number = self._inherited.pop(str(who), 0) or next(self._local)
        self._taken.add(number)
        return number


def _with_talks(source: Bindable) -> dict[str, Any]:
    """The contract, and what programs note of connections where there are any."""
    return {**CONTRACT, **({"kd_talks": _TALKS} if "kd_talks" in names_of(source)[1] else {})}


def _values(policies: Iterable[Policy]) -> tuple[Policy, ...]:
    """Policies that are some."""
    found = tuple(policies)
    if wrong := [each for each in found if not isinstance(each, Policy)]:
        raise ModelError(f"{shown(wrong[0])} is no Policy: parse_policies makes some of a text")
    return found
