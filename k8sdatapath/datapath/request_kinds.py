"""RequestKinds: what policies ask of requests, given to who enforces it: of HTTP, or names of DNS."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator

from attrs import frozen

from k8sdatapath.datapath.policy_maps import RequestRules, Requests
from k8sdatapath.errors import ModelError
from k8sdatapath.model.names import NamePattern
from k8sdatapath.model.policy import Policy, Rule, Toward

__all__ = ["RequestKinds"]


@frozen
class RequestKinds:
    """Who enforces what: as :class:`RequestRules`, of sets that are of one kind each.

    :param http: None: nobody; likewise ``names``.
    """

    http: RequestRules | None = None
    names: RequestRules | None = None

    def refuse(self, policies: Iterable[Policy]) -> None:
        """See that all is enforced by somebody.

        :raises ModelError: a policy asks for what nobody does, or where nobody reads it.
        """
        for policy in policies:
            for rule in policy.rules:
                if rule.l7:
                    self._refuse(f"{policy.name}, {rule.name}", rule)

    def _refuse(self, where: str, rule: Rule) -> None:
        names = [isinstance(each, NamePattern) for each in rule.l7]
        if any(names) and self.names is None:
            raise ModelError(
                f"{where}: asks for names of DNS, which nothing here enforces: a node needs dns=True"
            )
        if not all(names) and self.http is None:
            raise ModelError(f"{where}: asks for requests, which nothing here enforces: a node needs l7=True")
        if len(set(names)) > 1:
            raise ModelError(f"{where}: a port is read as HTTP or as DNS, not as both")
        if any(names) and rule.toward is not Toward.EGRESS:
            raise ModelError(f"{where}: names are asked for by the pods that a policy selects, so by egress")
        if any(each.protocol is None for each in rule.ports):
            raise ModelError(f"{where}: requests are asked of ports with a protocol")

    def check(self, sets: Iterable[Requests]) -> None:
        """See that these fit beside all that there are.

        :raises CapacityError: they do not.
        """
        found = list(sets)
        for rules, names in ((self.http, False), (self.names, True)):
            of_kind = [each for each in found if _is_names(each) is names]
            if rules is not None and of_kind:
                rules.check(of_kind)

    def use(self, requests: Requests) -> int:
        """The number of a set, which is enforced by the time this returns."""
        return self._of(requests).use(requests)

    def drop(self, requests: Requests) -> None:
        """Undo one :meth:`use`."""
        self._of(requests).drop(requests)

    def forget_strangers(self) -> None:
        """No rule leads any more to what an earlier process has used."""
        for rules in self._all():
            rules.forget_strangers()

    def _of(self, requests: Requests) -> RequestRules:
        rules = self.names if _is_names(requests) else self.http
        if rules is None:
            raise ModelError("nothing here enforces what a policy asks of requests")
        return rules

    def _all(self) -> Iterator[RequestRules]:
        return (each for each in (self.http, self.names) if each is not None)


def _is_names(requests: Iterable[Hashable]) -> bool:
    return any(isinstance(each, NamePattern) for each in requests)
