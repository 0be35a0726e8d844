"""What is in force of policies, and who is who to them."""

from __future__ import annotations

from threading import RLock

from k8sdatapath.datapath.flow_names import Ruling, policy_ref
from k8sdatapath.datapath.policy_compiler import PolicyCompiler
from k8sdatapath.datapath.policy_leads import Leads, Who
from k8sdatapath.datapath.policy_maps import PolicyMaps, RuleCount
from k8sdatapath.datapath.policy_pairs import EndpointPolicy, IdentityPair
from k8sdatapath.datapath.policy_rows import Because
from k8sdatapath.datapath.rule_matches import RuleMatches
from k8sdatapath.model import IPAddress
from k8sdatapath.model import address as to_address
from k8sdatapath.model.policy import Action, Toward
from k8sdatapath.model.workload import Workload
from k8sdatapath.resource import Resource

__all__ = ["PolicyRecords"]


class PolicyRecords(Resource):
    """Policies that can be asked what they say."""

    _lock: RLock
    _leads: Leads
    _maps: PolicyMaps
    _compiler: PolicyCompiler
    _subjects: dict[str, Who]
    _numbers: dict[Who, int]
    _matches: RuleMatches

    @property
    def endpoints(self) -> tuple[EndpointPolicy, ...]:
        """The pods of this node, and the node itself, if policies are enforced for it."""
        with self._lock:
            return tuple(self._endpoint(name, who) for name, who in self._subjects.items())

    @property
    def revision(self) -> int:
        """Of the latest change for which live connections are asked again. It grows, over new starts too."""
        return self._maps.revision

    def identity_of(self, address: IPAddress | str) -> int | None:
        """Whose an address is, if it is known.

        :raises ModelError: it is no address.
        """
        who = self._leads.at(to_address(address))
        return None if who is None else who.identity

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

    def ruling(self, counter: int, at: int | None = None) -> Ruling | None:
        """What a counter of a rule stood for; None: nobody remembers.

        :param at: when, in nanoseconds of CLOCK_MONOTONIC; None is now.
        """
        found = self._maps.ruling(counter, at)
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
