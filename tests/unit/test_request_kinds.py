"""What policies ask of requests where nobody can hold anybody to it is refused, before anything changes."""

from __future__ import annotations

from collections.abc import Hashable, Iterable

import pytest

from k8sdatapath.datapath.request_kinds import RequestKinds
from k8sdatapath.errors import ModelError
from k8sdatapath.model.names import NamePattern
from k8sdatapath.model.policy import ALL_PORTS, EVERYBODY, Policy, PortMatch, Rule, Selector, Toward

NAME, REQUEST = NamePattern("bank.example"), "GET"  # of HTTP is all that is no name
IN, OUT = Toward.INGRESS, Toward.EGRESS


class Somebody:
    """Enforces all that it is given."""

    def check(self, sets: Iterable[frozenset[Hashable]]) -> None: ...

    def use(self, requests: frozenset[Hashable]) -> int:
        return 1

    def drop(self, requests: frozenset[Hashable]) -> None: ...

    def forget_strangers(self) -> None: ...


ALL = RequestKinds(Somebody(), Somebody())


def asking(toward: Toward, port: PortMatch, *requests: Hashable) -> Policy:
    rule = Rule("rule 1", toward, [EVERYBODY], [port], l7=requests)
    return Policy("NetworkPolicy shop/web", Selector(), rules=[rule])


@pytest.mark.parametrize(
    ("kinds", "policy", "wrong"),
    [
        (RequestKinds(Somebody()), asking(OUT, PortMatch(17, 53, 53), NAME), "nothing here enforces"),
        (RequestKinds(None, Somebody()), asking(IN, PortMatch(6, 80, 80), REQUEST), "nothing here enforces"),
        (ALL, asking(OUT, PortMatch(17, 53, 53), NAME, REQUEST), "as HTTP or as DNS"),
        (ALL, asking(IN, PortMatch(17, 53, 53), NAME), "so by egress"),
        (ALL, asking(OUT, ALL_PORTS, NAME), "with a protocol"),
        (ALL, asking(IN, ALL_PORTS, REQUEST), "with a protocol"),
    ],
)
def test_what_nobody_can_enforce_is_refused(kinds: RequestKinds, policy: Policy, wrong: str) -> None:
    with pytest.raises(ModelError, match=f"^NetworkPolicy shop/web, rule 1: .*{wrong}"):
        kinds.refuse([policy])


def test_what_can_be_enforced_is_not_refused() -> None:
    ALL.refuse([asking(OUT, PortMatch(17, 53, 53), NAME), asking(IN, PortMatch(6, 80, 80), REQUEST)])
