"""Peers that policies know by DNS names: addresses have them for as long as answers say."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping
from threading import RLock
from typing import Any

from k8sdatapath.datapath.policy_dns import KeptAnswers
from k8sdatapath.datapath.policy_leads import Leads, Who
from k8sdatapath.errors import CapacityError
from k8sdatapath.model import IPAddress, address
from k8sdatapath.model.names import name_patterns
from k8sdatapath.model.policy import Policy
from k8sdatapath.resource import Resource

__all__ = ["NamedPeers"]


class NamedPeers(Resource):
    """Policies that are told what name servers answer."""

    _lock: RLock
    _leads: Leads
    _kept_answers: KeptAnswers
    _subjects: dict[str, Who]
    _policies: Mapping[str, Policy]

    @abstractmethod
    def _follow_names(self, addresses: Iterable[IPAddress]) -> None:
        """Put in force that these have other names."""

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
                self._follow_names(found)
            except CapacityError:
                self._leads.answers.restore(name, before)
                raise
            self._kept_answers.keep(name, found, self._leads.answers)

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
                gone = self._leads.answers.expire(now, live())
                self._follow_names(dict.fromkeys(address for address, _ in gone))
                self._kept_answers.forget(gone)
