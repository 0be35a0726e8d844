"""What of a rule decides, as flows tell it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from k8sdatapath.datapath.policy_rows import Cause
from k8sdatapath.model.flow import PolicyMatch
from k8sdatapath.model.policy import EVERYBODY, Policy, Rule

__all__ = ["RuleMatches", "match_of"]

_NARROWEST = (
    PolicyMatch.L3_L4,
    PolicyMatch.L3_PROTO,
    PolicyMatch.L4_ONLY,
    PolicyMatch.L4_PROTO_ONLY,
    PolicyMatch.L3_ONLY,
    PolicyMatch.ALL,
    PolicyMatch.NONE,
)


def match_of(rule: Rule) -> PolicyMatch:
    """What a rule asks for: who, and which ports or which protocol, or neither."""
    who = EVERYBODY not in rule.peers
    if any(each.name or (each.first, each.last) != (0, 65535) for each in rule.ports):
        return PolicyMatch.L3_L4 if who else PolicyMatch.L4_ONLY
    if any(each.protocol is not None for each in rule.ports):
        return PolicyMatch.L3_PROTO if who else PolicyMatch.L4_PROTO_ONLY
    return PolicyMatch.L3_ONLY if who else PolicyMatch.ALL


class RuleMatches:
    """What the rules of policies ask for.

    :param policies: by name; may change.
    """

    def __init__(self, policies: Mapping[str, Policy]) -> None:
        self._policies = policies
        self._known: dict[str, tuple[Policy, dict[str, PolicyMatch]]] = {}

    def of(self, causes: Iterable[Cause]) -> PolicyMatch:
        """What the narrowest of these rules asks for."""
        return min(map(self._one, causes), key=_NARROWEST.index, default=PolicyMatch.NONE)

    def _one(self, cause: Cause) -> PolicyMatch:
        policy = self._policies.get(cause.policy)
        if policy is None:
            self._known.pop(cause.policy, None)
            return PolicyMatch.NONE
        known, matches = self._known.get(cause.policy, (None, {}))
        if known is not policy:
            matches = {rule.name: match_of(rule) for rule in policy.rules}
            self._known[cause.policy] = policy, matches
        return matches.get(cause.rule, PolicyMatch.NONE)
